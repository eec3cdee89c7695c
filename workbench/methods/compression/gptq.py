"""GPTQ: columns are rounded in order, and each makes up for the errors of those before it.

Frantar, Ashkboos, Hoefler & Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
arXiv:2210.17323.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.feedback import feedback_matrix, required, round_with_feedback, row_errors
from workbench.llm.formats_grid import Steps, UniformGrid
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class GPTQ:
    """GPTQ (Frantar et al. 2023, Alg. 1) on a uniform grid. ``GPTQ(UniformGrid(bits=3))(weight, stats)`` is the packed matrix.

    Minimises ``tr(E H E^T)`` greedily, column by column. Greedy rounding can lose to rounding each weight for itself; rows of W are
    independent problems, so a row that lost keeps its nearest levels, and the answer never has a larger objective than rounding to
    nearest in the same groups (published code keeps the greedy answer).

    Args:
        grid: levels; where it searches its ranges, errors count by the second moments of their inputs (the published code counts all
            inputs alike, and so cuts off weights of the inputs that matter most).
        damping: added to the diagonal of H, as a share of its mean (paper: 0.01).
        act_order: round inputs of large second moment first (the published code's option of that name).
        static_groups: fit every group's grid to the weights as they are. Otherwise a group's grid is fitted when its first column is
            reached, to the weights as the feedback has changed them; with ``act_order`` groups are then made of re-ordered inputs,
            and the order is stored with the matrix and billed.

    An input that calibration never saw active is rounded to nearest (published code sets its weights to zero).
    """

    grid: UniformGrid = field(default_factory=UniformGrid)
    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian,), weight = required("GPTQ", stats, "hessian"), weight.float()
        order = hessian.diagonal().argsort(descending=True, stable=True) if self.act_order else torch.arange(len(hessian))
        h = hessian[order][:, order]
        if not self.static_groups:
            codes, steps = self._moving(weight[:, order], h)
            return self.grid.pack(codes, steps, permutation=order if self.act_order else None)
        steps = self.grid.fit(weight, hessian.diagonal())
        scale, zero = (t[:, order] for t in self.grid.spread(steps, weight.shape[1]))
        ordered = weight[:, order]
        # the same grid with a scale for every single input: its groups need not be neighbours any more
        single, each = replace(self.grid, group_size=1), Steps(scale, zero)
        greedy, nearest = single.encode(self._greedy(ordered, h, scale, zero), each), single.encode(ordered, each)
        lost = self._lost(ordered, h, single.decode(greedy, each), single.decode(nearest, each))
        return self.grid.pack(torch.where(lost, nearest, greedy)[:, order.argsort()], steps)

    def _greedy(self, weight: Tensor, h: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        top = self.grid.top

        def nearest(k: int, w: Tensor) -> Tensor:
            return ((w / scale[:, k] + zero[:, k]).round_().clamp_(0, top) - zero[:, k]) * scale[:, k]

        return round_with_feedback(weight, feedback_matrix(h, self.damping), nearest)

    def _moving(self, weight: Tensor, h: Tensor) -> tuple[Tensor, Steps]:
        size = self.grid.group_size or weight.shape[1]
        scales: list[Tensor] = []
        zeros: list[Tensor] = []

        def begin(start: int, best: Tensor) -> None:
            fitted = replace(self.grid, group_size=0).fit(best, h.diagonal()[start:start + size])
            scales.append(fitted.scale[:, 0])
            zeros.append(fitted.zero[:, 0])

        def nearest(k: int, w: Tensor) -> Tensor:
            return ((w / scales[-1] + zeros[-1]).round_().clamp_(0, self.grid.top) - zeros[-1]) * scales[-1]

        rounded = round_with_feedback(weight, feedback_matrix(h, self.damping), nearest, begin=begin, block=size)
        steps, plain = Steps(torch.stack(scales, 1), torch.stack(zeros, 1)), self.grid.fit(weight, h.diagonal())
        greedy, nearest = self.grid.encode(rounded, steps), self.grid.encode(weight, plain)
        lost = self._lost(weight, h, rounded, self.grid.decode(nearest, plain))
        return torch.where(lost, nearest, greedy), Steps(*(torch.where(lost, b, a) for a, b in zip(steps, plain, strict=True)))

    @staticmethod
    def _lost(weight: Tensor, h: Tensor, greedy: Tensor, nearest: Tensor) -> Tensor:
        """(p, 1): the rows where rounding to nearest has the smaller objective."""
        return (row_errors(weight - greedy, h) > row_errors(weight - nearest, h))[:, None]


class GPTQCompression(Compression):
    """Columns are rounded in order, each making up for the errors of those before it."""

    id, title, family, paper = "gptq", "GPTQ", "compression", "arXiv:2210.17323"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2}}

    class Params(Compression.Params):
        symmetric: bool = Field(False, description="levels symmetric about zero, without zero points")
        damping: float = Field(0.01, gt=0, le=10, description="added to the diagonal of the inputs' second moment, share of its mean")
        act_order: bool = Field(True, description="round inputs of large second moment first")
        static_groups: bool = Field(True, description="fit the grids before rounding; false: as rounding reaches each group")
        clip: int = Field(1, ge=1, le=100, description="ranges tried a group, from the full one down; 1 = the full one")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> GPTQ:
        p = self.params
        return GPTQ(UniformGrid(p.bits, p.group_size, p.symmetric, p.clip), p.damping, p.act_order, p.static_groups)
