"""Full precision: SGD or Adam on float32 weights, the reference that low-bit methods are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from workbench.methods.supervised import SupervisedTraining

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class FullPrecision(SupervisedTraining):
    """Float32 weights trained by SGD or Adam (parameter ``base``), nothing quantised."""

    id = "full_precision"
    title = "Full precision"
    family = "lowbit"
    paper = ""
    kinds = ("classification", "superresolution", "segmentation", "text_classification")
    example = {"task": "digits/mlp", "params": {"epochs": 5, "lr": 0.01}}

    def precision(self, model: nn.Module) -> PrecisionPlan:
        from tracking.energy_model.plan import fp32

        return fp32()
