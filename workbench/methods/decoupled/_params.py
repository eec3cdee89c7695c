"""Parameters that the decoupled methods share."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from workbench.methods.supervised import SupervisedParams
from workbench.params import Field

Rule = tuple[str, bool, str]
Head = Literal["mlp_sr", "mlp", "cnn", "average", "linear", "conv5"]


class SplitParams(SupervisedParams):
    """How the network is cut, and the unit of its clock."""

    modules: int = Field(2, ge=1, le=10, description="modules that the network is cut into (K)")
    cuts: tuple[int, ...] = Field(
        (), description="units of the network before which it is cut, counted from 0; empty = so that the dearest module is cheapest")
    step_time: float = Field(
        1.0, gt=0, le=1e6, description="virtual seconds that one worker takes for a step of end-to-end training on a batch")

    @model_validator(mode="after")
    def _rules(self) -> SplitParams:
        for name, holds, rule in self.rules():
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)!r} is refused. Allowed: {rule}")
        return self

    def rules(self) -> list[Rule]:
        """Rules over several parameters: the field to name, whether the rule holds, and what is allowed."""
        fits = not self.cuts or (len(self.cuts) == self.modules - 1 and list(self.cuts) == sorted(set(self.cuts)) and self.cuts[0] > 0)
        return [("cuts", fits, f"empty, or modules - 1 = {self.modules - 1} growing whole numbers from 1 on")]


class WorkerParams(SplitParams):
    """Modules on workers of their own, and the links between these."""

    slow_module: int = Field(0, ge=0, le=10, description="module whose worker is slow, counted from 1; 0 = none")
    slowdown: float = Field(1.0, ge=1, le=1000, description="factor on the time of the slow worker's steps (S)")
    latency: float = Field(0.0, ge=0, le=1e6, description="virtual seconds a message takes, whatever its size")
    bandwidth: float = Field(0.0, ge=0, description="bytes a virtual second of the links between modules; 0 = no limit")

    def rules(self) -> list[Rule]:
        return [
            *super().rules(),
            ("slow_module", self.slow_module <= self.modules, f"0 <= x <= modules = {self.modules}"),
            ("slowdown", self.slowdown == 1 or self.slow_module > 0, "1 with slow_module = 0: no worker is slow"),
        ]

    def pace(self, j: int) -> float:
        """Factor on the time of the steps of module ``j``, from 0."""
        return self.slowdown if j + 1 == self.slow_module else 1.0


class LocalParams(SplitParams):
    """Training by local losses."""

    head: Head = Field(
        "mlp_sr", description="auxiliary network of every module but the last: 1x1 convolutions and an MLP, the MLP alone, 3x3 "
        "convolutions, spatial averaging, linear, or 5x5 convolutions")
