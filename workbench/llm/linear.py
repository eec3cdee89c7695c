"""A linear layer whose weight is compressed, and the low-rank factors and magnitude that fine-tuning changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.packed import HIGH_PRECISION, PRODUCTS, Packed, combine, row_norm, term_of

FACTORS = ("low_rank.a", "low_rank.b", "magnitude")


class CompressedLinear(nn.Linear):
    """``y = x W^T + bias`` with W as a :class:`workbench.llm.packed.Packed`; a linear layer to PEFT and to whoever
    looks at its kind.

    The payload lies in buffers that keep their format whatever the module is cast to; ``weight`` is decoded at each
    access, in ``dtype``. On a CPU the forward pass multiplies by the format's fused product for few rows; it decodes for
    many, and on a GPU, and keeps the decoded matrix while :func:`dense` is in force. Low-rank factors are applied beside
    the matrix, ``(x A^T) B^T``, and the rows are rescaled at the end.

    Args:
        packed: the matrix (p, q).
        bias: (p,) or ``None``; stays as it is.
        dtype: what ``weight`` is decoded to.
    """

    FEW_ROWS = 4
    """Up to so many rows the fused product is taken: more of them pay for decoding once."""

    def __init__(self, packed: Packed, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)  # no weight is made
        self.out_features, self.in_features = packed.shape
        self.format, self.meta, self.dtype = packed.format, packed.meta, dtype
        self.names = tuple(packed.tensors)
        for name, tensor in packed.tensors.items():
            self.register_buffer(_attribute(name), tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.master = nn.ParameterDict()
        self._code: Tensor | None = None
        self._keep = False
        self._rows: Tensor | None = None

    # --- what it holds ----------------------------------------------------------------------------------------

    @property
    def packed(self) -> Packed:
        """The matrix as it would be stored now; factors under training are rounded to their stored type."""
        packed = self._stored(self.names)
        packed.tensors |= {n: self.master[_attribute(n)].detach().to(packed.tensors[n].dtype) for n in self._trained()}
        return packed

    @property
    def weight(self) -> Tensor:
        """W (p, q), decoded now. Differentiable in the factors under training."""
        return combine(self.code(), *map(self.factor, FACTORS)).to(self.dtype)

    def code(self) -> Tensor:
        """Q, float32 (p, q), kept while :func:`dense` is in force."""
        if self._code is not None:
            return self._code
        code = self._stored([name for name in self.names if term_of(name) not in HIGH_PRECISION]).code()
        if self._keep:
            self._code = code
        return code

    def _stored(self, names: Iterable[str]) -> Packed:
        """Some of the stored tensors, as they lie in the buffers."""
        return Packed(self.format, (self.out_features, self.in_features), {n: getattr(self, _attribute(n)) for n in names}, self.meta)

    def factor(self, name: str) -> Tensor | None:
        """A low-rank factor or the magnitude: under training the float32 parameter, else what is stored; ``None``
        where there is none."""
        if name not in self.names:
            return None
        return self.master[_attribute(name)] if _attribute(name) in self.master else getattr(self, _attribute(name))

    def _trained(self) -> list[str]:
        return [name for name in FACTORS if _attribute(name) in self.master]

    # --- forward ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        a, b, magnitude = map(self.factor, FACTORS)
        y = self._times_code(x)
        if a is not None:
            y = y + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
        if magnitude is not None:
            y = y * self._row_scale(a, b, magnitude).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _times_code(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if x.device.type == "cpu" and self.format in PRODUCTS and rows <= self.FEW_ROWS and self._code is None and not self._keep and not (
                x.requires_grad and torch.is_grad_enabled()):
            return PRODUCTS[self.format](self._stored(self.names), x.detach().reshape(rows, -1).float()).to(x.dtype).view(*x.shape[:-1], -1)
        return F.linear(x, self.code().to(x.dtype))

    def _row_scale(self, a: Tensor | None, b: Tensor | None, magnitude: Tensor) -> Tensor:
        """m over the norm of the rows of Q + B A; the norm is held fixed in the backward pass (DoRA, section 4.3)."""
        if self.master:
            with torch.no_grad():
                norm = row_norm(self.code(), a, b)
        else:
            if self._rows is None:
                self._rows = row_norm(self.code(), a, b)
            norm = self._rows
        return torch.where(norm > 0, magnitude.float() / norm, torch.zeros_like(norm))

    # --- fine-tuning ------------------------------------------------------------------------------------------

    def attach(self, rank: int = 0, magnitude: bool = False, generator: torch.Generator | None = None) -> None:
        """Give a matrix that has none a low-rank part (A Gaussian, B zero: LoRA, Hu et al., ICLR 2022) or a magnitude;
        W stays as it is."""
        if rank and "low_rank.a" not in self.names:
            a = torch.randn(rank, self.in_features, generator=generator) / self.in_features**0.5
            device = getattr(self, _attribute(self.names[0])).device
            self.give_factors({"low_rank.a": a.to(device), "low_rank.b": torch.zeros(self.out_features, rank, device=device)})
        if magnitude and "magnitude" not in self.names:
            self.give_factors({"magnitude": row_norm(self.code(), self.factor("low_rank.a"), self.factor("low_rank.b"))})

    def take_factors(self) -> dict[str, Tensor]:
        """Remove low-rank factors and magnitude and return them: what is left is the code."""
        taken = {name: getattr(self, _attribute(name)) for name in self.names if name in FACTORS}
        self.names, self._rows = tuple(name for name in self.names if name not in taken), None
        for name in taken:
            delattr(self, _attribute(name))
        return taken

    def give_factors(self, factors: Mapping[str, Tensor]) -> None:
        """Low-rank factors, stored in fp16, and a magnitude, in fp32, for a layer that has none."""
        for name, tensor in factors.items():
            self._add(name, tensor.to(torch.float32 if name == "magnitude" else torch.float16))

    def _add(self, name: str, tensor: Tensor) -> None:
        self.names, self._rows = (*self.names, name), None
        self.register_buffer(_attribute(name), tensor)

    def train_factors(self, on: bool = True) -> list[nn.Parameter]:
        """Make float32 parameters of the low-rank factors and the magnitude and return them; ``False`` rounds them
        back to storage."""
        if on and not self.master:
            for name in (n for n in self.names if n in FACTORS):
                self.master[_attribute(name)] = nn.Parameter(getattr(self, _attribute(name)).float().clone())
        elif not on and self.master:
            for name, tensor in self.packed.tensors.items():
                setattr(self, _attribute(name), tensor)
            self.master.clear()
            self._rows = None
        return list(self.master.values())

    def restore(self, packed: Packed) -> None:
        """Take the tensors of another matrix of the same format, shape and names."""
        for name in self.names:
            setattr(self, _attribute(name), packed.tensors[name])
        self._code = self._rows = None

    # --- casting and moving -----------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> CompressedLinear:
        """Casts change what ``weight`` is decoded to; stored tensors only move from device to device."""
        first = getattr(self, _attribute(self.names[0]))
        probe = fn(torch.empty(0, dtype=self.dtype, device=first.device))
        self.dtype, self._code, self._rows = probe.dtype, None, None
        for name in self.names:
            setattr(self, _attribute(name), getattr(self, _attribute(name)).to(probe.device))
        for parameter in self.master.values():
            parameter.data = parameter.data.to(probe.device)
        if self.bias is not None:
            self.bias.data = fn(self.bias.data)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}, bpw={self.packed.bpw():.3f}"


@contextmanager
def dense(module: nn.Module) -> Iterator[None]:
    """While it lasts, every compressed layer keeps its decoded matrix once it was needed: for training, or many passes
    where memory allows."""
    layers = compressed_layers(module).values()
    before = [layer._keep for layer in layers]
    for layer in layers:
        layer._keep = True
    try:
        yield
    finally:
        for layer, keep in zip(layers, before, strict=True):
            layer._keep = keep
            if not keep:
                layer._code = None


def compressed_layers(module: nn.Module) -> dict[str, CompressedLinear]:
    """The compressed layers of a model by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, CompressedLinear)}


def replace(module: nn.Module, name: str, packed: Packed) -> CompressedLinear:
    """Put a compressed layer in the place of the linear layer ``name``; its bias goes along."""
    there = module.get_submodule(name)
    if not isinstance(there, nn.Linear) or (there.out_features, there.in_features) != packed.shape:
        raise UserError(f"{name} is no linear layer of shape {packed.shape} ({type(there).__name__}); the compressed "
                        f"matrix does not fit.")
    layer = CompressedLinear(packed, there.bias, there.dtype if isinstance(there, CompressedLinear) else there.weight.dtype)
    layer.train(there.training)
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
    return layer


@contextmanager
def swapped(module: nn.Module, matrices: Mapping[str, Packed]) -> Iterator[dict[str, CompressedLinear]]:
    """While it lasts, compressed layers stand in the places of the linear layers named; then these come back,
    unchanged."""
    before = {name: module.get_submodule(name) for name in matrices}
    try:
        yield {name: replace(module, name, packed) for name, packed in matrices.items()}
    finally:
        for name, linear in before.items():
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, linear)


def _attribute(name: str) -> str:
    """A buffer's name cannot have dots."""
    return f"packed_{name.replace('.', '__')}"
