"""One matrix: quantised, checked and judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.calibration import NEEDS, LayerStatistics
from workbench.llm.packed import Packed
from workbench.method import derive_seed


@runtime_checkable
class Quantiser(Protocol):
    """What compresses a matrix: any callable with the names of the statistics that it needs."""

    needs: frozenset[str]
    """Of ``inputs`` (mean magnitudes, samples), ``hessian``, ``fisher``."""

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        """Compress ``weight`` (p, q), float32. What it draws comes from ``generator``, a CPU generator seeded for this
        matrix."""
        ...


@dataclass
class MatrixReport:
    """What became of one matrix."""

    name: str
    shape: tuple[int, int]
    format: str
    bits: dict[str, int]
    """Bits by term."""
    code_bpw: float
    bpw: float
    error: float
    """||W - W'|| / ||W|| in the Frobenius norm; absent as nan where W is zero."""
    weighted_error: float | None = None
    """sqrt(tr(E H E^T) / tr(W H W^T)), the relative error of the outputs on the calibration inputs; ``None`` without
    them."""
    seconds: float | None = None

    def row(self) -> dict[str, Any]:
        """One row of a table; terms without bits are absent."""
        row = {"matrix": self.name, "shape": f"{self.shape[0]}×{self.shape[1]}", "format": self.format, "code_bpw": self.code_bpw,
               "total_bpw": self.bpw, "error": self.error, "weighted_error": self.weighted_error, "seconds": self.seconds}
        return row | {f"{term}_bits": bits for term, bits in self.bits.items()}


def check_quantiser(quantiser: Any) -> frozenset[str]:
    """Its needs; an object that is none, or asks for what nobody gathers, raises :class:`tracking.errors.UserError`."""
    needs = getattr(quantiser, "needs", None)
    if isinstance(quantiser, type):
        raise UserError(f"{quantiser.__name__} is a class; give a quantiser with its settings, such as {quantiser.__name__}().")
    if not callable(quantiser) or needs is None:
        raise UserError(f"{quantiser!r} is no quantiser: it must be callable and say in `needs` what statistics it "
                        f"takes, of {sorted(NEEDS)}.")
    if not set(needs) <= NEEDS:
        raise UserError(f"{type(quantiser).__name__} asks for {sorted(set(needs) - NEEDS)}; there are {sorted(NEEDS)}.")
    return frozenset(needs)


def plan_of(quantiser: Any, matrices: Iterable[tuple[str, Tensor]], budget: float,
            trials: MutableMapping[str, Any]) -> Mapping[str, Callable[..., Packed]]:
    """The quantiser's choice for each matrix under a budget; ``trials``, if it takes them, is what it remembers of each matrix."""
    plan = getattr(quantiser, "plan", None)
    if plan is None:
        raise UserError(f"{type(quantiser).__name__} takes no budget: its bits follow from its settings.")
    remembered = {"trials": trials} if "trials" in signature(plan).parameters else {}
    return plan(matrices, budget, **remembered)


def check_finite(name: str, weight: Tensor) -> None:
    """A matrix with a weight that is nan or infinite raises :class:`tracking.errors.UserError` with its name."""
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise UserError(f"{name} holds {bad} {'weight that is' if bad == 1 else 'weights that are'} not finite (nan "
                        f"or inf). Mend the model, or "
                        "leave the matrix out of `targets`.")


@torch.no_grad()
def quantise(name: str, weight: Tensor, quantiser: Callable[..., Packed], stats: LayerStatistics | None, seed: int) -> Packed:
    """Compress one matrix. A weight that is not finite, or a quantiser that gives one, raises
    :class:`tracking.errors.UserError`."""
    check_finite(name, weight)
    packed = quantiser(weight.detach().float(), stats, torch.Generator().manual_seed(derive_seed(seed, name)))
    if packed.shape != tuple(weight.shape):
        raise UserError(f"{type(quantiser).__name__} gave a matrix {packed.shape} for {name}, whose shape is "
                        f"{tuple(weight.shape)}.")
    return packed


@torch.no_grad()
def judge(name: str, weight: Tensor, packed: Packed, stats: LayerStatistics | None) -> MatrixReport:
    """Bits and errors of a compressed matrix, from what is stored."""
    weight = weight.detach().float()
    error = weight - packed.dequantise()
    if not bool(error.isfinite().all()):
        raise UserError(f"The compressed {name} decodes to weights that are not finite: its values lie beyond what "
                        f"the format {packed.format!r} "
                        "stores (fp16 ends at 65504). Rescale the model, or leave the matrix out of `targets`.")
    report = MatrixReport(name, packed.shape, packed.format, packed.bits(), packed.code_bpw(), packed.bpw(),
                          float(error.norm() / weight.norm()) if bool(weight.any()) else math.nan)
    if stats is not None and stats.hessian is not None:
        whole = _energy(weight, stats.hessian)
        report.weighted_error = math.sqrt(_energy(error, stats.hessian) / whole) if whole > 0 else math.nan
    return report


def _energy(matrix: Tensor, hessian: Tensor) -> float:
    """tr(M H M^T), not below zero by rounding."""
    return max(float(((matrix @ hessian) * matrix).sum()), 0.0)


def describe(thing: Any) -> Any:
    """A quantiser and its settings as JSON: two descriptions are equal when the quantisers are."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {"is": type(thing).__qualname__, **{f.name: describe(getattr(thing, f.name)) for f in dataclasses.fields(thing)}}
    if isinstance(thing, (bool, int, float, str, type(None))):
        return thing
    if isinstance(thing, Mapping):
        return {str(k): describe(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [describe(v) for v in (sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else thing)]
    if isinstance(thing, Tensor):
        return {"is": "tensor", "shape": list(thing.shape), "sum": float(thing.double().sum()), "norm": float(thing.double().norm())}
    return {"is": getattr(thing, "__qualname__", type(thing).__qualname__), **describe(dict(getattr(thing, "__dict__", {})))}
