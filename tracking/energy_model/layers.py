"""What a network does on one batch, layer by layer: shapes alone, so that joules can be computed later without the network."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tracking.energy_model.product import Window
from tracking.errors import UserError

Kind = Literal["linear", "conv", "matmul", "norm", "activation", "pool", "embedding", "softmax", "elementwise"]
ProductPass = Literal["forward", "input_gradient", "weight_gradient"]
Role = Literal["input", "weight", "other", "signal"]
"""Operands of a layer's products: its input, its weight (``other`` is the second input of a product of two activations), and the
gradient that arrives at its output."""

PRODUCT_PASSES: tuple[ProductPass, ...] = get_args(ProductPass)


@dataclass(frozen=True)
class Geometry:
    """Sizes of the product that a layer computes in one pass, and which of its tensors are the operands.

    ``macs`` counts useful multiply-accumulates; it differs from ``m n k count`` where the pass has no exact form as one product
    (input gradient of a strided convolution).
    """

    m: int
    n: int
    k: int
    count: int
    macs: int
    roles: tuple[Role, Role]
    window: Window | None = None


@dataclass(frozen=True)
class Layer:
    """One heavy operation, or the small ones of one module together.

    Shapes are of the whole batch: products have ``input (..., m, k)`` and ``output (..., m, n)``, convolutions
    ``(batch, channels, *positions)``.
    """

    name: str
    kind: Kind
    module: str
    """Class of the module that runs it."""
    samples: int
    """Samples of the batch: first size of the model's input."""
    input: tuple[int, ...]
    output: tuple[int, ...]
    weight: tuple[int, ...] = ()
    """Second operand: ``(out, in)`` of a linear layer, ``(c, k, n)`` of a product of activations, torch's layout of a convolution."""
    parameters: int = 0
    """Trainable parameters (biases with them) that no earlier layer used."""
    saved: int = 0
    """Elements of activations kept for the backward pass that no earlier layer keeps."""
    input_gradient: bool = False
    """Whether the gradient to the input is needed: something trainable lies before it."""
    weight_gradient: bool = False
    """Whether the gradient to the second operand is needed."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    logic_ops: int = 0
    """Comparisons, signs and selections in the forward pass."""
    float_ops: int = 0
    """Other operations on single elements; a transcendental function counts as one."""
    operands: int = 1
    """Full-size inputs of an element-wise operation."""

    @property
    def is_product(self) -> bool:
        return self.kind in ("linear", "conv", "matmul")

    @property
    def passes(self) -> tuple[ProductPass, ...]:
        """The products of a training step."""
        wanted = (True, self.input_gradient, self.weight_gradient)
        return tuple(p for p, w in zip(PRODUCT_PASSES, wanted, strict=True) if w) if self.is_product else ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass."""
        return self.geometry("forward").macs if self.is_product else 0

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of forward and backward pass. Every product of a layer has as many useful ones as its forward."""
        return self.macs * len(self.passes)

    def geometry(self, which: ProductPass) -> Geometry:
        """The product of a pass; raises ``ValueError`` for a layer that is none."""
        if not self.is_product:
            raise ValueError(f"Layer {self.name!r} of kind {self.kind} is no product.")
        return self._convolution(which) if self.kind == "conv" else self._matmul(which)

    def _matmul(self, which: ProductPass) -> Geometry:
        *lead, m, k = self.input
        n, count = self.output[-1], math.prod(lead)
        second: Role = "other" if self.kind == "matmul" else "weight"
        sizes, roles = {
            "forward": ((m, n, k), ("input", second)),
            "input_gradient": ((m, k, n), ("signal", second)),
            "weight_gradient": ((n, k, m), ("signal", "input")),
        }[which]
        return Geometry(*sizes, count=count, macs=m * n * k * count, roles=roles)

    def _convolution(self, which: ProductPass) -> Geometry:
        """A convolution reads windows of a fine grid for every position of a coarse one; a transposed one goes the other way.

        Towards the fine grid, each position receives ``kernel / stride^2`` terms on average; zeros that a dilated evaluation would
        multiply are not counted.
        """
        batch, area = self.input[0], math.prod(self.kernel)
        fine, coarse = (self.output, self.input) if self.transposed else (self.input, self.output)
        n_fine, n_coarse = batch * math.prod(fine[2:]), batch * math.prod(coarse[2:])
        c_fine, c_coarse = fine[1] // self.groups, coarse[1] // self.groups
        macs = n_coarse * area * c_fine * c_coarse * self.groups
        # the square window no larger and the square stride no smaller than the real ones: reuse is never overstated
        side, stride = math.isqrt(area), math.ceil(math.sqrt(math.prod(self.stride)))
        if which == "weight_gradient":
            window = Window(side, stride, "b") if side > 1 else None
            roles: tuple[Role, Role] = ("input", "signal") if self.transposed else ("signal", "input")
            return Geometry(c_coarse, c_fine * area, n_coarse, self.groups, macs, roles, window)
        roles = ("input" if which == "forward" else "signal", "weight")
        if (which == "forward") != self.transposed:
            return Geometry(n_coarse, c_coarse, c_fine * area, self.groups, macs, roles, Window(side, stride) if side > 1 else None)
        touched = min(n_fine, n_coarse * area)  # a window smaller than its stride leaves positions out
        k = max(1, round(macs / (touched * c_fine * self.groups)))
        return Geometry(touched, c_fine, k, self.groups, macs, roles, Window(side, 1) if side > 1 and touched == n_fine else None)


FORMAT = 1
_FIELDS = {f.name: f for f in dataclasses.fields(Layer)}


def to_json(layers: Iterable[Layer]) -> str:
    """A trace as JSON, to be read by :func:`from_json`."""
    return json.dumps({"format": FORMAT, "layers": [dataclasses.asdict(layer) for layer in layers]})


def from_json(text: str) -> tuple[Layer, ...]:
    """Read a trace. Raises :class:`UserError` for a text that is none, or was written by a newer version."""
    try:
        data = json.loads(text)
        rows, version = data["layers"], data["format"]
    except (ValueError, TypeError, KeyError):
        raise UserError("This is no trace: expected JSON with 'format' and 'layers', as written by to_json().") from None
    if version != FORMAT:
        raise UserError(f"The trace has format {version!r}; this version reads format {FORMAT}. Trace the model again.")
    return tuple(_layer(row) for row in rows)


def _layer(row: dict[str, Any]) -> Layer:
    unknown = set(row) - set(_FIELDS)
    missing = {n for n, f in _FIELDS.items() if f.default is dataclasses.MISSING} - set(row)
    if unknown or missing or row["kind"] not in get_args(Kind):
        raise UserError(f"A layer of the trace is refused: unknown fields {sorted(unknown)}, missing {sorted(missing)}, "
                        f"kind {row.get('kind')!r} (allowed: {', '.join(get_args(Kind))}).")
    return Layer(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
