"""The neural path of ReALLM: an autoencoder of a matrix's patches, of which the quantised latent and the decoder are stored.

The encoder (ConvNeXt: Liu et al., CVPR 2022) is thrown away. The decoder learns with its weights already rounded to
NormalFloat; the latent is rounded to a k-means codebook during training (``straight-through``), or after half of it
(``after``), and then the decoder and the codebook go on learning with the indices fixed. The released code of ReALLM
(Bedin et al., arXiv:2405.13155) has the decoder's rounding and no vector quantisation of the latent; that part is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.formats_autoencoder import (
    STRETCH,
    Layer,
    Network,
    assemble,
    cut,
    latent_vectors,
    normal_float_codes,
    store_layers,
    stored_layers,
    to_latent,
)
from workbench.llm.formats_vq import index_bits, look_up, to_weight
from workbench.llm.packed import pack_bits
from workbench.llm.reallm_identity import Coded, scaled
from workbench.llm.vq.kmeans import assign, kmeans

REFRESH = 50
"""Steps between two fits of the codebook while the latent still moves."""


@dataclass(frozen=True)
class Autoencoder:
    """Shape and training of the autoencoder of one matrix.

    Args:
        bits, dim: b and d of the latent's codebook: b d bits for d channels at one place; d divides ``latent``.
        patch: side of a patch, a multiple of the product of the strides. 512 in the released code; 192 fits matrices of 576.
        strides: of the encoder's stages, and backwards of the decoder's blocks.
        latent: channels of the latent.
        channels: of the encoder between its stages.
        width: channels C0 behind the decoder's stem; each block divides them by ``narrowing`` down to ``least``.
        decoder_bits: NormalFloat bits of the decoder's convolutions, 2 to 8.
        quantise: when the latent is rounded, ``straight-through`` or ``after``.
        steps, batch, lr: of Adam; the rate rises over a tenth of the steps and falls to zero as a cosine.
    """

    bits: int = 2
    dim: int = 4
    patch: int = 192
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    latent: int = 16
    channels: int = 64
    width: int = 32
    narrowing: float = 1.2
    least: int = 12
    decoder_bits: int = 6
    head: Literal["tanh", "linear"] = "tanh"
    quantise: Literal["straight-through", "after"] = "after"
    steps: int = 1000
    batch: int = 2
    lr: float = 1e-3
    group: int = 64

    def network(self) -> Network:
        """The decoder's shape. Kernels grow 1, 3, 5, 5 … from block to block."""
        if self.patch % math.prod(self.strides) or self.latent % self.dim or not 1 <= self.bits * self.dim <= 16:
            raise UserError(f"patch = {self.patch} is to be a multiple of the product of the strides {self.strides}, latent = "
                            f"{self.latent} of dim = {self.dim}, and bits times dim at most 16; bits = {self.bits}.")
        widths = [self.width]
        for _ in self.strides:
            widths.append(max(round(widths[-1] / self.narrowing), self.least))
        kernels = tuple(min(1 + 2 * i, 5) for i in range(len(self.strides)))
        return Network(self.latent, tuple(widths), self.strides[::-1], kernels, self.patch, self.head)

    def __call__(self, weight: Tensor, generator: torch.Generator, *, order: Tensor | None = None) -> Coded:
        """Train on ``weight`` (p, q) and store it."""
        target, tensors = scaled(weight, order, self.group)
        network = self.network()
        patches = cut(target, self.patch)
        with torch.enable_grad():
            book, codes, layers = _Training(self, network, patches, generator).run()
        books = book[None].half()
        decoder = store_layers(layers, self.decoder_bits)
        latent = to_latent(look_up(books, codes[None]), network)
        decoded = assemble(network(latent, stored_layers(decoder, network, self.decoder_bits)), *weight.shape)
        meta = {"bits": self.bits, "dim": self.dim, "group": self.group, "patch": self.patch, "latent": self.latent,
                "widths": list(network.widths), "strides": list(network.strides), "kernels": list(network.kernels), "head": self.head,
                "decoder_bits": self.decoder_bits}
        tensors = {"indices": pack_bits(codes, index_bits(len(book))), "codebooks": books, **tensors, **decoder}
        return Coded(tensors, meta, to_weight(decoded, tensors, meta), books.float())


class Stage(nn.Module):
    """A stage of the encoder: normalisation, a convolution that shrinks by its stride, and one ConvNeXt block."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else nn.LayerNorm(inputs)
        self.shrink = nn.Conv2d(inputs, outputs, stride, stride)
        self.depthwise = nn.Conv2d(outputs, outputs, 7, padding=3, groups=outputs)
        self.inner = nn.LayerNorm(outputs)
        self.wide, self.back = nn.Linear(outputs, 4 * outputs), nn.Linear(4 * outputs, outputs)
        self.scale = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.norm(x.movedim(1, 3)).movedim(3, 1))
        inner = self.back(F.gelu(self.wide(self.inner(self.depthwise(x).movedim(1, 3)))))
        return x + (self.scale * inner).movedim(3, 1)

    def initialise(self, generator: torch.Generator) -> None:
        """Truncated normal weights of 0.02, layer scale 1e-6 (ConvNeXt, appendix A)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            else:
                nn.init.constant_(parameter, {"scale": 1e-6, "norm.weight": 1.0, "inner.weight": 1.0}.get(name, 0.0))


def encoder(options: Autoencoder, generator: torch.Generator) -> nn.Sequential:
    """The ConvNeXt encoder: patches (n, 1, patch, patch) to latents; initialised without the global generators."""
    widths = [1, *[options.channels] * (len(options.strides) - 1), options.latent]
    with torch.device("meta"):
        stages = [Stage(a, b, s, i == 0) for i, (a, b, s) in enumerate(zip(widths[:-1], widths[1:], options.strides, strict=True))]
    made = nn.Sequential(*stages).to_empty(device="cpu")
    for stage in made:
        stage.initialise(generator)
    return made


class _Training:
    """One matrix's training: Adam on the mean squared error of random batches of patches."""

    def __init__(self, options: Autoencoder, network: Network, patches: Tensor, generator: torch.Generator) -> None:
        self.options, self.network, self.patches, self.generator = options, network, patches, generator
        self.inputs = (patches[:, None] / STRETCH + 1) / 2
        self.encoder = encoder(options, generator).to(patches.device)
        self.layers = [Layer(*(t.requires_grad_() for t in self._layer(shape))) for shape in network.shapes()]
        self.book: Tensor | None = None

    def _layer(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """PyTorch's own start of a convolution."""
        fan_in = math.prod(shape[1:])
        weight, bias = torch.empty(shape), torch.empty(shape[0])
        for t in (weight, bias):
            t.uniform_(-fan_in**-0.5, fan_in**-0.5, generator=self.generator)
        return weight.to(self.patches.device), bias.to(self.patches.device)

    def run(self) -> tuple[Tensor, Tensor, list[Layer]]:
        """Codebook (K, d), codes (n,) and the decoder's layers, not yet rounded."""
        o = self.options
        learn = o.steps if o.quantise == "straight-through" else -(-o.steps // 2)
        self._fit(learn, lambda batch, step: self._round(self.encoder(self.inputs[batch]), step), list(self.encoder.parameters()))
        with torch.no_grad():
            latent = torch.cat([self.encoder(part) for part in self.inputs.split(o.batch)])
            vectors = latent_vectors(latent, o.dim)
            book = self._codebook(vectors, 40)
            codes, _ = assign(vectors, book)
        book = book.clone().requires_grad_()
        places = torch.arange(len(codes), device=codes.device).view(len(latent), -1)
        self._fit(o.steps - learn, lambda batch, _: to_latent(book[codes[places[batch].flatten()]], self.network), [book])
        return book.detach(), codes, [Layer(w.detach(), b.detach()) for w, b in self.layers]

    def _round(self, latent: Tensor, step: int) -> Tensor:
        """The latent, or with ``straight-through`` its codewords with the latent's gradient; training starts without them."""
        o = self.options
        if o.quantise == "after" or step < o.steps // 10:
            return latent
        vectors = latent_vectors(latent, o.dim)
        with torch.no_grad():
            if self.book is None or step % REFRESH == 0:
                everything = torch.cat([self.encoder(part) for part in self.inputs.split(o.batch)])
                self.book = self._codebook(latent_vectors(everything, o.dim), 5)
            rounded = self.book[assign(vectors, self.book)[0]]
        return to_latent(vectors + (rounded - vectors).detach(), self.network)

    def _codebook(self, vectors: Tensor, iterations: int) -> Tensor:
        start = "k-means++" if self.book is None else self.book
        return kmeans(vectors, 2 ** (self.options.bits * self.options.dim), start=start, iterations=iterations, half=True,
                      generator=self.generator).codebook

    def _fit(self, steps: int, latent_of, parameters: list[Tensor]) -> None:
        if steps == 0:
            return
        o = self.options
        adam = torch.optim.Adam([*parameters, *(t for layer in self.layers for t in layer)], lr=o.lr)
        warm = max(steps // 10, 1)
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = o.lr * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))))
            batch = torch.randperm(len(self.patches), generator=self.generator)[:o.batch].to(self.patches.device)
            out = self.network(latent_of(batch, step), [*map(self._rounded, self.layers[:-1]), self.layers[-1]])
            loss = F.mse_loss(out, self.patches[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()

    def _rounded(self, layer: Layer) -> Layer:
        """The layer as it will be stored, with the gradient of the one that learns."""
        with torch.no_grad():
            gap = normal_float_codes(layer.weight, self.options.decoder_bits)[2] - layer.weight
        return Layer(layer.weight + gap, layer.bias)
