"""ReALLM: a matrix as low rank plus a vector-quantised latent and its decoder (Bedin, Leconte et al., arXiv:2405.13155).

``W ≈ Q + B A`` with B A of rank r in high precision and ``Q = D(C[codes])``: an encoder makes a latent, k-means codes its vectors, a
decoder brings them back. With identities for encoder and decoder (:class:`VectorCode`) the latent is the matrix itself, its columns
ordered and its blocks scaled: the form of the released code for whole models. With a network for both (:class:`Autoencoder`) the
decoder is stored too. Round-to-nearest, k-means and NormalFloat with low rank are special cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tracking.errors import UserError, unknown
from workbench.llm.calibration import LayerStatistics
from workbench.llm.formats_vq import pack_order
from workbench.llm.packed import Packed, row_norm
from workbench.llm.reallm_identity import Coded, VectorCode
from workbench.llm.reallm_lowrank import Importance, alternate
from workbench.llm.reallm_network import Autoencoder
from workbench.llm.vq.ordering import order_columns

if TYPE_CHECKING:
    from workbench.llm.reallm_plan import Trials

Permute = Literal["auto", "always", "never"]
Weighting = Literal["none", "scale", "hessian", "fisher"]
Magnitude = Literal["none", "approximation", "weight"]


@dataclass(frozen=True)
class ReALLM:
    """Quantiser of one matrix.

    Args:
        code: encoder, vector quantiser and decoder: :class:`VectorCode` (identity path) or :class:`Autoencoder` (neural path).
        rank: r of the low-rank part; 0 has none. One above what a matrix has is cut to that.
        turns: most turns of the alternation between the two parts (100 in the released code).
        permute: order the columns of each block of 64 rows. ``auto``: only where the error it saves is worth
            its bits.
        weighting: of squared errors, ours beyond ``none``. ``scale``: of the weights rather than of the scaled latent.
            ``hessian``: by the mean square of each input. ``fisher``: by the empirical Fisher information.
        magnitude: store a row norm (DoRA: Liu et al., ICML 2024), that of the ``approximation``, which leaves the map as it
            is, or that of the ``weight``, which restores the rows' lengths.
        tolerance: turns stop with the first one that lowers the error by less than this share, ours; 0: before the first one that
            raises it, as released.
        candidates: what :meth:`plan` may choose from; empty: :func:`workbench.llm.reallm_plan.default_candidates`.
    """

    code: VectorCode | Autoencoder = field(default_factory=VectorCode)
    rank: int = 0
    turns: int = 100
    permute: Permute = "auto"
    weighting: Weighting = "none"
    magnitude: Magnitude = "none"
    tolerance: float = 1e-3
    candidates: tuple[ReALLM, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that calibration must gather."""
        return frozenset({self.weighting} & {"hessian", "fisher"}).union(*(c.needs for c in self.candidates))

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        """Compress ``weight`` (p, q).

        Raises:
            UserError: a statistic that is missing, an unknown option, a code that cannot be stored, a weight that is not finite.
        """
        self._check()
        weight = weight.detach().float()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        importance = self._importance(weight, stats)
        found = alternate(weight, min(self.rank, *weight.shape), _Coder(self, importance, generator), steps=self.turns, generator=generator,
                          importance=importance, tolerance=self.tolerance)
        tensors = dict(found.code.tensors)
        if found.a is not None:
            tensors |= {"low_rank.a": found.a, "low_rank.b": found.b}
        if self.magnitude != "none":
            tensors["magnitude"] = row_norm(found.code.value, found.a, found.b) if self.magnitude == "approximation" else weight.norm(dim=1)
        return Packed("vq" if isinstance(self.code, VectorCode) else "autoencoder", tuple(weight.shape), tensors, found.code.meta)

    def plan(self, matrices: Iterable[tuple[str, Tensor]], budget: float, trials: Trials | None = None) -> dict[str, ReALLM]:
        """Choose a shape for each matrix under a budget of bits a weight over all; see :func:`workbench.llm.reallm_plan.plan`."""
        from workbench.llm.reallm_plan import default_candidates, plan

        return plan(self.candidates or default_candidates(self), matrices, budget, trials)

    def _check(self) -> None:
        for name, value, allowed in (("permute", self.permute, Permute), ("weighting", self.weighting, Weighting),
                                     ("magnitude", self.magnitude, Magnitude)):
            if value not in allowed.__args__:
                raise unknown(name, value, allowed.__args__)
        if isinstance(self.code, Autoencoder) and self.weighting != "none":
            raise UserError("The neural path is trained on the plain error; take weighting = 'none' with an Autoencoder.")

    def _importance(self, weight: Tensor, stats: LayerStatistics | None) -> Importance | None:
        if self.weighting == "none":
            return None
        if self.weighting == "scale":
            return Importance(weight.new_ones(1, 1), None, weight.new_ones(weight.shape[1]))
        statistic = getattr(stats, self.weighting, None)
        if statistic is None:
            raise UserError(f"weighting = {self.weighting!r} needs {self.weighting} statistics: give calibration text.")
        return Importance.of_hessian(statistic) if self.weighting == "hessian" else Importance.of_fisher(statistic)


class _Coder:
    """Codes what the low-rank part leaves, turn after turn: the column order is decided once, codebooks go on from the last turn's."""

    def __init__(self, method: ReALLM, importance: Importance | None, generator: torch.Generator) -> None:
        self.method, self.importance, self.generator = method, importance, generator
        self.order: Tensor | None = None
        self.books: Tensor | None = None

    def __call__(self, residual: Tensor) -> tuple[Coded, Tensor]:
        coded = self.first(residual) if self.books is None else self.code(residual, self.order, self.books)
        self.books = coded.books
        return coded, coded.value

    def first(self, residual: Tensor) -> Coded:
        """The first turn decides on the order.

        An order of B bits a weight pays if it lowers the root mean square error by more than a factor ``2^B``: that is what as many bits
        more of code would do at high resolution (Bennett; six decibels a bit).
        """
        if self.method.permute == "never":
            return self.code(residual, None, None)
        order = order_columns(residual)
        with_order = self.code(residual, order, None)
        if self.method.permute == "auto":
            plain = self.code(residual, None, None)
            price = 8 * pack_order(order).nbytes / residual.numel()
            if not self._error(residual, plain) > self._error(residual, with_order) * 2**price:
                return plain
        self.order = order
        return with_order

    def code(self, residual: Tensor, order: Tensor | None, start: Tensor | None) -> Coded:
        code = self.method.code
        if isinstance(code, Autoencoder):
            return code(residual, self.generator, order=order)
        entries = None if self.importance is None else self.importance.entries
        return code(residual, self.generator, order=order, importance=entries, start=start)

    def _error(self, residual: Tensor, coded: Coded) -> float:
        left = residual - coded.value
        return self.importance.error(left) if self.importance else float(left.norm())


