"""Training with quantised weights: what the low-bit methods add to supervised training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from tracking.codecs import index_width
from workbench.method import Context, View
from workbench.methods.lowbit._levels import LEVELS, Weights, quantised_layers, quantised_parameters
from workbench.methods.lowbit._optim import LowBitOptimizer
from workbench.methods.lowbit._views import latent_views
from workbench.methods.supervised import SupervisedParams, SupervisedState, SupervisedTraining, copy_with
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan
    from workbench.task import SupervisedTask


class LowBitParams(SupervisedParams):
    """What every low-bit training has."""

    weights: Weights = Field("binary", description="level set of the quantised weights")
    scale: Literal["unit", "sawb"] = Field("unit", description="levels at integer values, or scaled by layer (SAWB)")
    layers: Literal["all", "inner", "conv3x3"] = Field("all", description="which layers' weights are quantised")
    activations: Literal["fp32", "binary", "4bit"] = Field("fp32", description="what the activation functions put out")


def quantised_plan(name: str, model: nn.Module, quantised: Iterable[nn.Module], *, weights: Weights | None, activations: str = "fp32",
                   inputs: bool = False, signals: str = "fp32", latent: bool = False, scaled: bool = False,
                   weight_ops: int = 0) -> PrecisionPlan:
    """Formats of a network some of whose layers are quantised, for the energy model; the others are in fp32.

    ``weights``: their level set in the products; ``None``: products at real-valued weights. ``latent``: another fp32 value is remembered
    for each weight, and the update works on that. ``activations``: what activation functions put out, so the first layer sees real-valued
    inputs unless ``inputs``. An index of a level has as many bits as it takes to tell the levels apart; sums are integers where both
    factors are.
    """
    from tracking.energy_model import Precision, PrecisionPlan

    width = index_width(len(LEVELS[weights])) if weights else 0
    stored = {0: "fp32", 1: "bool"}.get(width, f"int{width}")
    taken = {"fp32": "fp32", "binary": "bool", "4bit": "int4"}[activations]
    names = {id(module): path for path, module in model.named_modules()}
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]

    def precision(first: bool) -> Precision:
        entering = "fp32" if first and not inputs else taken
        integers = stored != "fp32" and entering != "fp32"
        return Precision(stored, entering, accumulators="int32" if integers else "fp32", signals=signals, latent="fp32" if latent else None,
                         projection_ops=weight_ops, scaled=scaled)

    return PrecisionPlan(name, overrides=tuple((names[id(m)], precision(m is layers[0])) for m in quantised))


class LowBitTraining(SupervisedTraining):
    """Supervised training whose optimiser is a :class:`LowBitOptimizer`."""

    Params = LowBitParams
    params: LowBitParams

    at_levels: ClassVar[bool] = False
    """Forward and backward run at quantised weights; else at real-valued ones."""
    keeps_latent: ClassVar[bool] = False
    """The update works on a latent value beside the weight that is run."""
    weight_ops: ClassVar[int] = 0
    """Element-wise operations for each quantised weight and step that come on top of SGD or Adam."""

    def precision(self, model: nn.Module) -> PrecisionPlan:
        p = self.params
        return quantised_plan(self.id, model, quantised_layers(model, p.layers), weights=p.weights if self.at_levels else None,
                              activations=p.activations, latent=self.keeps_latent, scaled=self.at_levels and p.scale == "sawb",
                              weight_ops=self.weight_ops)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        from workbench.methods.lowbit._activations import quantise_activations

        return quantise_activations(model, self.params.activations)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: the quantised weights, then the others (trained plainly), if any."""
        p = self.params
        quantised = quantised_parameters(model, p.layers)
        ids = {id(w) for w in quantised}
        plain = [w for w in model.parameters() if id(w) not in ids]
        groups = [{"params": quantised, "weights": p.weights}, {"params": plain, "weights": None}]
        return [g for g in groups if g["params"]]

    def common(self) -> dict[str, Any]:
        """Keyword arguments that every :class:`LowBitOptimizer` takes."""
        p = self.params
        return dict(lr=p.lr, base=p.base, momentum=p.momentum, weight_decay=p.weight_decay, scale=p.scale)

    def optimizer(self, model: nn.Module, ctx: Context) -> LowBitOptimizer:
        raise NotImplementedError

    def deploy(self, state: SupervisedState) -> nn.Module:
        return copy_with(state.model, state.optimizer.deployed())

    def views(self, state: SupervisedState, task: SupervisedTask) -> list[View]:
        """Weights before and after quantisation, and how far the latent weights are from their levels."""
        return latent_views(state.model, state.optimizer)
