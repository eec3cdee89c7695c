"""LUQ: 4-bit training with logarithmic unbiased quantisation of the neural gradients.

Chmiel, Banner, Hoffer, Ben Yaacov & Soudry, "Accurate Neural Training with 4-bit Matrix Multiplications at Standard
Formats" (LUQ), ICLR 2023, arXiv:2112.10769.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from workbench.method import Context, View
from workbench.methods.lowbit._activations import FourBitActivation, straight_through
from workbench.methods.lowbit._levels import LEVELS, nearest_level, quantised_layers, sawb_scale
from workbench.methods.lowbit._training import quantised_plan
from workbench.methods.lowbit._views import quantised_views
from workbench.methods.supervised import SupervisedParams, SupervisedState, SupervisedTraining, copy_with
from workbench.params import Field
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan

EXPONENTS = 8
"""Magnitudes are ``al 2^k`` with ``k`` in 0..7: three exponent bits."""


def luq(G: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Quantise a neural gradient to ``{0, +-al, +-2 al, .. +-2^7 al}`` without bias: ``E[luq(G)] = G`` element-wise.

    ``al = max |G| / 2^7``, so nothing is clipped. Below ``al`` an entry becomes ``+-al`` with probability ``|G|/al`` and
    otherwise 0 (stochastic underflow); above, it goes to one of the two powers of two around it, up with probability
    ``|G| / (al 2^k) - 1`` (logarithmic stochastic rounding). ``samples`` independent draws are averaged, which divides
    the variance by their number (variance reduction) and leaves the mean.

    Args:
        G: gradient, any shape. (The authors' code takes ``max G``, which clips where the largest magnitude is negative.)
        samples: number of draws averaged, >= 1.
        generator: source of the draws, on ``G``'s device.
    """
    if samples < 1:
        raise ValueError(f"samples = {samples}; allowed: 1 and more.")
    al = G.abs().amax() / 2 ** (EXPONENTS - 1) if G.numel() else G.new_ones(())
    # an all-zero gradient stays zero; so does one too small to be divided
    ratio = torch.where(al > 0, G.abs() / al, 0.0)
    mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa 2^exponent, mantissa in [1/2, 1): exact, unlike log2
    small = ratio < 1
    low = torch.where(small, 0.0, torch.ldexp(torch.ones_like(ratio), exponent - 1))
    step = torch.where(small, 1.0, low)
    up = torch.where(small, ratio, 2 * mantissa - 1)
    total = torch.zeros_like(ratio)
    for _ in range(samples):
        draw = torch.rand(G.shape, generator=generator, dtype=G.dtype, device=G.device)
        total += torch.where(draw < up, low + step, low)
    return torch.sign(G) * al * (total / samples)


class LUQGradient(torch.autograd.Function):
    """Identity forward; :func:`luq` of the gradient backward. Put it on a layer's output."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
        ctx.samples, ctx.generator = samples, generator
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return luq(grad, ctx.samples, ctx.generator), None, None


class QuantisedLayer(nn.Module):
    """A linear or convolutional layer with quantised weight, input and output gradient, straight-through where rounded.

    Args:
        layer: the layer to wrap; its parameters stay the real-valued ones that an optimiser updates.
        weights: level set of the weight (SAWB scale of the tensor at hand); ``None``: taken as it is.
        inputs: whether the input is rounded to 4 bits (:class:`FourBitActivation`).
        samples: draws averaged in :func:`luq`; 0: the gradient is left alone.
        generator: source of the draws. The caller's to keep and to save: it is no part of the ``state_dict``.
    """

    def __init__(self, layer: nn.Module, weights: str | None, inputs: bool, samples: int,
                 generator: torch.Generator | None) -> None:
        super().__init__()
        self.layer, self.weights, self.samples, self.generator = layer, weights, samples, generator
        self.input = FourBitActivation() if inputs else nn.Identity()

    def quantised_weight(self) -> Tensor:
        """The nearest levels of the weight; its gradient passes straight through."""
        w = self.layer.weight
        if self.weights is None:
            return w
        with torch.no_grad():
            s = sawb_scale(w, self.weights)
            q = nearest_level(w / s, torch.tensor(LEVELS[self.weights], dtype=w.dtype, device=w.device)) * s
        return straight_through(w, q)

    def forward(self, x: Tensor) -> Tensor:
        parameters = dict(self.layer.named_parameters()) | {"weight": self.quantised_weight()}
        y = torch.func.functional_call(self.layer, parameters, (self.input(x),))
        return LUQGradient.apply(y, self.samples, self.generator) if self.samples else y


def quantise_layers(
    model: nn.Module, weights: Literal["2bit", "4bit", "4bit16"] | None = "4bit", *, inputs: bool = True, samples: int = 1,
    layers: Literal["all", "inner", "conv3x3"] = "all", generator: torch.Generator | None = None,
) -> nn.Module:
    """Wrap layers of ``model`` in place in :class:`QuantisedLayer`; returns the model. Then train it in any loop."""
    if weights is not None and weights not in LEVELS:
        raise ValueError(f"weights = {weights!r}; allowed: {', '.join(LEVELS)}, None.")
    chosen = {id(m) for m in quantised_layers(model, layers)}
    if id(model) in chosen:
        return QuantisedLayer(model, weights, inputs, samples, generator).to(model.weight.device)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in chosen:
                wrapped = QuantisedLayer(child, weights, inputs, samples, generator)
                setattr(parent, name, wrapped.to(child.weight.device))
    return model


# --- the method -------------------------------------------------------------------------------------------


class LUQParams(SupervisedParams):
    """Forward at quantised weights and inputs; backward with quantised neural gradients."""

    weights: Literal["2bit", "4bit", "4bit16"] = Field(
        "4bit", description="level set of the weights; 4bit has the 17 levels -8..8 of the authors' code")
    layers: Literal["all", "inner", "conv3x3"] = Field(
        "inner", description="which layers are quantised (authors' code: conv3x3)")
    inputs: bool = Field(True, description="round the inputs of quantised layers to 4 bits")
    samples: int = Field(
        1, ge=0, le=64, description="quantised draws of each neural gradient that are averaged (variance reduction; authors' code: 1); "
        "0 = the gradient is left in full precision")


@dataclass
class LUQState(SupervisedState):
    """With the source of the stochastic rounding."""

    rounding: torch.Generator = None


class LUQTraining(SupervisedTraining):
    """4-bit weights, activations and unbiased logarithmic neural gradients."""

    id = "luq"
    title = "LUQ"
    family = "lowbit"
    paper = "arXiv:2112.10769"
    kinds = ("classification",)
    example = {"task": "digits/mlp", "params": {"epochs": 8, "lr": 0.01, "layers": "all"}}

    Params = LUQParams
    params: LUQParams

    def init(self, task: SupervisedTask, ctx: Context) -> LUQState:
        base = super().init(task, ctx)
        state = LUQState(**vars(base), rounding=ctx.generator("rounding"))
        for layer in quantised_modules(state.model):
            layer.generator = state.rounding
        return state

    def precision(self, model: nn.Module) -> PrecisionPlan:
        p = self.params
        layers = [m.layer for m in quantised_modules(model)]
        return quantised_plan(self.id, model, layers, weights=p.weights, latent=True, activations="4bit" if p.inputs else "fp32",
                              inputs=p.inputs, signals="int4" if p.samples else "fp32", scaled=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        p = self.params
        return quantise_layers(model, p.weights, inputs=p.inputs, samples=p.samples, layers=p.layers)

    def evaluate(self, state: LUQState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        return self.quality(self.deploy(state), task, ctx)  # the network never runs at its latent weights

    def deploy(self, state: LUQState) -> nn.Module:
        values = {m.layer.weight: m.quantised_weight().detach() for m in quantised_modules(state.model)}
        twin = copy_with(state.model, values)
        for layer in quantised_modules(twin):
            layer.weights = None  # already at its levels: a second SAWB scale would differ
        return twin

    def views(self, state: LUQState, task: SupervisedTask) -> list[View]:
        """Weights before and after quantisation."""
        layers = {name: m for name, m in state.model.named_modules() if isinstance(m, QuantisedLayer)}
        return quantised_views({name: m.layer.weight for name, m in layers.items()},
                               {name: m.quantised_weight() for name, m in layers.items()})


def quantised_modules(model: nn.Module) -> list[QuantisedLayer]:
    """The wrapped layers of a model."""
    return [m for m in model.modules() if isinstance(m, QuantisedLayer)]
