"""Decoder of matrices stored as the latent of an autoencoder: codebook gather, convolutions with pixel shuffle, block scales.

The network is that of HNeRV (Chen et al., CVPR 2023) as ReALLM applies it to patches of a matrix (Bedin et al.,
arXiv:2405.13155). Its convolutions are stored in NormalFloat, biases and head in float16, the latent as indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.llm.formats_vq import index_bits, look_up, to_weight
from workbench.llm.packed import Packed, decoder, pack_bits, unpack_bits
from workbench.llm.vq.normal_float import nearest_level, normal_float
from workbench.llm.vq.scales import divide

STRETCH = 1.05
"""Share beyond 1 that the tanh head can reach: absolute maximum scaling puts a weight of every block at exactly +-1."""


class Layer(NamedTuple):
    """A convolution: weight (out, in, k, k) and bias (out,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Network:
    """Shape of a decoder.

    Attributes:
        latent: channels of the latent, which has ``patch / prod(strides)`` places a side.
        widths: channels before each block and after the last one: ``len(strides) + 1`` numbers.
        strides: factor of each block's pixel shuffle.
        kernels: side of each block's convolution.
        patch: side of a patch.
        head: ``tanh`` (output within +-1.05) or ``linear``.
    """

    latent: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    kernels: tuple[int, ...]
    patch: int
    head: str

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes of the convolutions: stem, blocks, head."""
        blocks = [(after * s * s, before, k, k)
                  for before, after, s, k in zip(self.widths[:-1], self.widths[1:], self.strides, self.kernels, strict=True)]
        return [(self.widths[0], self.latent, 1, 1), *blocks, (1, self.widths[-1], 3, 3)]

    @property
    def side(self) -> int:
        """Places of the latent along a side."""
        return self.patch // math.prod(self.strides)

    def __call__(self, latent: Tensor, layers: Sequence[Layer]) -> Tensor:
        """Patches (n, patch, patch) in the units of the scaled matrix, of latents (n, c, side, side)."""
        stem, *blocks, head = layers
        x = F.gelu(F.conv2d(latent, stem.weight, stem.bias))
        for (weight, bias), s in zip(blocks, self.strides, strict=True):
            x = F.gelu(F.pixel_shuffle(F.conv2d(x, weight, bias, padding=weight.shape[2] // 2), s))
        x = F.conv2d(x, head.weight, head.bias, padding=1)[:, 0]
        return STRETCH * torch.tanh(x) if self.head == "tanh" else x


@decoder("autoencoder")
def autoencoder(packed: Packed) -> Tensor:
    """``s ⊙ D(C[codes])``, the patches put together and the columns put back; (p, q)."""
    (p, q), meta, books = packed.shape, packed.meta, packed.tensors["codebooks"]
    network = network_of(meta)
    patches = -(-p // network.patch) * -(-q // network.patch)
    stages, size, d = books.shape
    count = patches * network.side**2 * network.latent // d
    codes = unpack_bits(packed.tensors["indices"], index_bits(size), stages * count).view(stages, count)
    latent = to_latent(look_up(books, codes), network)
    decoded = assemble(network(latent, stored_layers(packed.tensors, network, meta["decoder_bits"])), p, q)
    return to_weight(decoded, packed.tensors, meta)


def network_of(meta: dict[str, Any]) -> Network:
    """The decoder that a stored matrix describes."""
    return Network(meta["latent"], tuple(meta["widths"]), tuple(meta["strides"]), tuple(meta["kernels"]), meta["patch"], meta["head"])


def latent_vectors(latent: Tensor, d: int) -> Tensor:
    """(n, d): d neighbouring channels at one place of a latent (patches, c, side, side); d divides c."""
    return latent.movedim(1, 3).reshape(-1, d)


def to_latent(vectors: Tensor, network: Network) -> Tensor:
    """The latent that these are the :func:`latent_vectors` of."""
    return vectors.reshape(-1, network.side, network.side, network.latent).movedim(3, 1)


def cut(weight: Tensor, patch: int) -> Tensor:
    """Patches (n, patch, patch) of a matrix (p, q), row by row; at the lower and right edge the last row and column are repeated."""
    p, q = weight.shape
    wide = F.pad(weight[None, None], (0, -q % patch, 0, -p % patch), mode="replicate")[0, 0]
    return wide.view(wide.shape[0] // patch, patch, -1, patch).transpose(1, 2).reshape(-1, patch, patch)


def assemble(patches: Tensor, p: int, q: int) -> Tensor:
    """The matrix (p, q) that :func:`cut` made the patches of."""
    side = patches.shape[-1]
    rows = -(-p // side)
    return patches.view(rows, -1, side, side).transpose(1, 2).reshape(rows * side, -1)[:p, :q]


def normal_float_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution's weight in NormalFloat: codes, float16 scales of each ``in_channels`` consecutive entries, and the values."""
    levels = normal_float(bits).to(weight.device)
    groups = weight.reshape(-1, weight.shape[1])
    scales = groups.abs().amax(1, keepdim=True).clamp(max=65504.0).half()
    codes = nearest_level(divide(groups, scales.float()), levels)
    return codes, scales[:, 0], (levels[codes] * scales.float()).view_as(weight)


def store_layers(layers: Sequence[Layer], bits: int) -> dict[str, Tensor]:
    """Tensors of a trained decoder: all convolutions but the head in NormalFloat, the rest in float16."""
    *coded, head = layers
    tensors = {}
    for i, layer in enumerate(coded):
        codes, scales, _ = normal_float_codes(layer.weight, bits)
        tensors |= {f"decoder.{i}.codes": pack_bits(codes, bits), f"decoder.{i}.scales": scales, f"decoder.{i}.bias": layer.bias.half()}
    return tensors | {"decoder.head.weight": head.weight.half(), "decoder.head.bias": head.bias.half()}


def stored_layers(tensors: dict[str, Tensor], network: Network, bits: int) -> list[Layer]:
    """The convolutions that the stored tensors stand for, float32."""
    *shapes, _ = network.shapes()
    levels, layers = normal_float(bits), []
    for i, shape in enumerate(shapes):
        scales = tensors[f"decoder.{i}.scales"].float()
        codes = unpack_bits(tensors[f"decoder.{i}.codes"], bits, scales.numel() * shape[1]).view(-1, shape[1])
        weight = levels.to(scales.device)[codes] * scales[:, None]
        layers.append(Layer(weight.view(shape), tensors[f"decoder.{i}.bias"].float()))
    return [*layers, Layer(tensors["decoder.head.weight"].float(), tensors["decoder.head.bias"].float())]
