"""AWQ: inputs that are large on average are scaled up before rounding, and down again after.

Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", MLSys 2024, arXiv:2306.00978.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.feedback import required, row_errors
from workbench.llm.formats_grid import HUGE, TINY, Steps, UniformGrid
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


@dataclass(frozen=True)
class AWQ:
    """Activation-aware scales (Lin et al. 2024, equations 4 and 5): ``s = s_X^alpha`` with ``s_X`` the mean magnitude of each input.

    alpha is the one of ``points`` values 0, 1/points, … below 1 for which ``Q(W diag(s)) diag(s)^-1`` has the least error on the
    calibration inputs, ``tr(E H E^T)``; s is divided by ``sqrt(max s min s)``. alpha = 0 is rounding to nearest. Then ranges of the
    groups are shrunk by up to half in ``clip`` steps where that lowers the error of a row; the choice of a group weighs inputs by
    their second moments alone (the paper measures the group's output error).

    ``1/s`` is stored with the matrix, 16 q bits, and billed. The paper folds it into the layer before, which saves those bits and ties the
    scales of all matrices that share an input.
    """

    grid: UniformGrid = field(default_factory=UniformGrid)
    points: int = 20
    clip: int = 20
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian, mean_abs), weight = required("AWQ", stats, "hessian", "mean_abs"), weight.float()
        # the errors come back together, and the best point is made again: a GPU need not be waited for at each
        errors = torch.stack([self.scaled(weight, hessian, mean_abs, step / self.points)[0] for step in range(self.points)])
        _, codes, steps, back = self.scaled(weight, hessian, mean_abs, int(errors.argmin()) / self.points)
        if self.clip:
            codes, steps = self._clipped(weight, hessian, codes, steps, back)
        return self.grid.pack(codes, steps, column=None if bool((back == 1).all()) else back)

    def scaled(self, weight: Tensor, hessian: Tensor, mean_abs: Tensor, alpha: float) -> tuple[Tensor, Tensor, Steps, Tensor]:
        """Error, codes, grids and the stored factors ``1/s`` (q,) for one alpha. Inputs that were always zero are not scaled."""
        used = mean_abs > 0
        mean = mean_abs.sum() / used.sum().clamp(min=1)
        s = torch.where(used, mean_abs, torch.where(mean > 0, mean, 1.0)).pow(alpha)
        s = s / (s.max() * s.min()).sqrt()
        back = (1 / s).clamp(TINY, HUGE).half().float()  # as it is stored
        wide = weight / back
        steps = self.grid.fit(wide)
        codes = self.grid.encode(wide, steps)
        error = row_errors(weight - self.grid.decode(codes, steps) * back, hessian)
        return error.sum(), codes, steps, back

    def _clipped(self, weight: Tensor, hessian: Tensor, codes: Tensor, steps: Steps, back: Tensor) -> tuple[Tensor, Steps]:
        shrunk = replace(self.grid, clip=self.clip, least=0.5).fit(weight / back, hessian.diagonal() * back.square())
        again = self.grid.encode(weight / back, shrunk)
        before, after = (row_errors(weight - self.grid.decode(c, s) * back, hessian) for c, s in ((codes, steps), (again, shrunk)))
        better = (after < before)[:, None]
        return torch.where(better, again, codes), Steps(*(torch.where(better, a, b) for a, b in zip(shrunk, steps, strict=True)))


class AWQCompression(Compression):
    """Inputs that are large on average are scaled up before rounding, and down again after."""

    id, title, family, paper = "awq", "AWQ", "compression", "arXiv:2306.00978"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2}}

    class Params(Compression.Params):
        symmetric: bool = Field(False, description="levels symmetric about zero, without zero points")
        points: int = Field(20, ge=1, le=200, description="values of alpha tried, from 0 to below 1; 1 = no scaling")
        clip: int = Field(20, ge=0, le=100, description="ranges tried a group, down to half; 0 = no clipping")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> AWQ:
        p = self.params
        return AWQ(UniformGrid(p.bits, p.group_size, p.symmetric), p.points, p.clip)
