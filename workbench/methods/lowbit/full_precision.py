"""Full precision: SGD or Adam on float32 weights, the reference that low-bit methods are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from workbench.method import View
from workbench.methods.lowbit._views import weight_views
from workbench.methods.supervised import SupervisedState, SupervisedTraining

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan
    from workbench.task import SupervisedTask


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

    def views(self, state: SupervisedState, task: SupervisedTask) -> list[View]:
        """Distribution of the weights, by layer."""
        return weight_views(state.model)
