"""Transformer encoder classifiers in the form and the sizes of BERT, in float and in Boolean form.

Devlin, Chang, Lee & Toutanova, "BERT", NAACL 2019, arXiv:1810.04805; the small sizes: Turc, Chang, Lee & Toutanova, "Well-Read Students
Learn Better", arXiv:1908.08962. No dropout: all draws of a run come from its own generators.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError, unknown
from workbench.datasets.models import scaled
from workbench.datasets.models_superresolution import with_modules

if TYPE_CHECKING:
    from workbench.boolean.networks import BooleanOptions

PAD, UNKNOWN, CLS, SEP = range(4)
"""Ids of the padding, of words outside the vocabulary, of the beginning and of the end of a text."""
HEAD = 64  # features of an attention head
SPREAD = 0.02  # standard deviation of initial weights

MODELS: dict[str, tuple[int, int]] = {"bert_tiny": (2, 128), "bert_mini": (4, 256), "bert_base": (12, 768)}
"""Layers and features."""


class Embedding(nn.Module):
    """Sums of word, position and segment vectors, normalised: ids ``(n, length)`` to ``(n, length, features)``.

    The segment is 0 up to the first separator, which it includes, and 1 behind.
    """

    def __init__(self, words: int, length: int, features: int) -> None:
        super().__init__()
        self.word, self.position, self.segment = nn.Embedding(words, features), nn.Embedding(length, features), nn.Embedding(2, features)
        self.norm = nn.LayerNorm(features, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        ends = (ids == SEP).long()
        segment = (ends.cumsum(1) - ends).clamp(max=1)
        return self.norm(self.word(ids) + self.position.weight[:ids.shape[1]] + self.segment(segment))


class SoftmaxAttention(nn.Module):
    """Attention of ``(n, length, features)`` in so many heads, only to the places where ``mask (n, length)`` is true; no weights."""

    stays_real = True
    """Its products are of real values in the Boolean form, too; the energy model is told so."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with projections in full precision."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(features, features) for _ in range(4))
        self.attend = SoftmaxAttention(heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.attend(self.query(x), self.key(x), self.value(x), mask))


class Layer(nn.Module):
    """Attention and a network of two layers, each added to its input and normalised behind (post-norm, as BERT)."""

    def __init__(self, features: int, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.norm1 = attention, nn.LayerNorm(features, eps=1e-12)
        self.feed_forward, self.norm2 = feed_forward, nn.LayerNorm(features, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.feed_forward(x))


class BooleanProjection(nn.Module):
    """Real values ``(…, inputs)`` to real ones ``(…, outputs)`` of unit size through Boolean weights: shift, threshold, sums, gain.

    The learnt shift and gain are one number each and projection, the elastic binarisation of BiT (Liu et al., NeurIPS 2022,
    arXiv:2205.13016) in +-1 units; the gain begins at ``1/sqrt(inputs)``, the deviation of the sums being ``sqrt(inputs)``. Several
    projections of one input share its shift and threshold, and the result is a tuple.
    """

    def __init__(self, inputs: int, outputs: int, options: BooleanOptions, generator: torch.Generator | None, count: int = 1) -> None:
        from workbench.boolean.activation import Fork
        from workbench.boolean.layers import BooleanLinear

        super().__init__()
        self.shift, self.gain = nn.Parameter(torch.zeros(())), nn.Parameter(torch.full((count,), 1 / math.sqrt(inputs)))
        self.threshold, self.fork = options.threshold(), Fork(count)
        self.layers = nn.ModuleList(BooleanLinear(inputs, outputs, scale=options.scale, signal=options.signal, generator=generator)
                                    for _ in range(count))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        copies = self.fork(self.threshold(x - self.shift))
        return tuple(gain * layer(c) for gain, layer, c in zip(self.gain, self.layers, copies, strict=True))


class BooleanAttention(nn.Module):
    """Self-attention with Boolean projections; scores, softmax and the weighted sum stay in full precision."""

    def __init__(self, features: int, heads: int, options: BooleanOptions, generator: torch.Generator | None) -> None:
        super().__init__()
        self.attend = SoftmaxAttention(heads)
        self.inputs = BooleanProjection(features, features, options, generator, count=3)
        self.out = BooleanProjection(features, features, options, generator)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.attend(*self.inputs(x), mask))[0]


class BooleanFeedForward(nn.Module):
    """Two Boolean layers with a threshold in the place of GELU between them; real values in and out."""

    def __init__(self, features: int, hidden: int, options: BooleanOptions, generator: torch.Generator | None) -> None:
        from workbench.boolean.layers import BooleanLinear

        super().__init__()
        common = {"scale": options.scale, "signal": options.signal, "generator": generator}
        self.shift, self.gain = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(1 / math.sqrt(hidden)))
        self.threshold, self.first = options.threshold(), BooleanLinear(features, hidden, **common)
        self.between, self.second = options.threshold(self.first), BooleanLinear(hidden, features, **common)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.second(self.between(self.first(self.threshold(x - self.shift))))


class Bert(nn.Module):
    """Word ids ``(n, length)`` to class scores ``(n, num_classes)``; places with the id :data:`PAD` are neither read nor do they count.

    Args:
        words: size of the vocabulary, with the four special ids.
        length: most words that it takes.
    """

    def __init__(self, words: int, length: int, num_classes: int, layers: int, features: int) -> None:
        super().__init__()
        heads = max(1, features // HEAD)
        if features % heads:
            raise UserError(f"{features} features cannot be shared by {heads} attention heads of about {HEAD}. Take a width that "
                            f"gives a multiple of {HEAD}, or fewer than {2 * HEAD} features.")
        self.heads, self.features = heads, features
        self.embedding = Embedding(words, length, features)
        self.layers = nn.ModuleList(
            Layer(features, Attention(features, heads),
                  nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(features, features), nn.Linear(features, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        x, mask = self.embedding(ids), ids != PAD
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))

    def boolean(self, options: BooleanOptions | None = None, *, generator: torch.Generator | None = None) -> Bert:
        """This network with Boolean projections in attention and feed-forward parts.

        In full precision stay, as its own modules, the embedding, the layer norms with the residual sums, pooler and classifier; and the
        softmax attention itself, which the paper (arXiv:2405.16339, section 4) takes from BiT in binary form.
        """
        from workbench.boolean.networks import BooleanOptions

        made = options or BooleanOptions()
        layers = nn.ModuleList(with_modules(
            layer, attention=BooleanAttention(self.features, self.heads, made, generator),
            feed_forward=BooleanFeedForward(self.features, 4 * self.features, made, generator)) for layer in self.layers)
        return with_modules(self, layers=layers.to(self.classifier.weight.device))


def build(name: str, words: int, length: int, num_classes: int, width: float, layers: int, generator: torch.Generator) -> Bert:
    """A network of :data:`MODELS` on the CPU, initialised as BERT from ``generator`` alone; ``layers`` = 0 takes the model's own number.

    Weights are drawn from N(0, 0.02^2), biases are 0. Raises :class:`tracking.errors.UserError` for an unknown name.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    own, features = MODELS[name]
    with torch.random.fork_rng(devices=[]):  # layers draw default weights when they are made
        model = Bert(words, length, num_classes, layers or own, scaled(features, width))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=SPREAD, generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
