"""What training with Boolean layers and its control share: the network and its parameters."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from workbench.boolean.layers import BooleanLayer
from workbench.boolean.networks import BooleanOptions, booleanise
from workbench.method import Context
from workbench.methods.supervised import SupervisedParams, SupervisedTraining
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class BooleanParams(SupervisedParams):
    """The network, and the training of its real-valued parameters; defaults are the paper's."""

    batch_norm: bool = Field(
        False, description="keep the network's batch norms, with the approx_sign window and unscaled signals; else leave them out")
    window: Literal["auto", "tanh", "approx_sign", "rational", "exponential", "none"] = Field(
        "auto", description="weight of a signal by its unit's distance from the threshold; auto = approx_sign with batch norm, else tanh'")
    scaling: Literal["auto", "on", "off"] = Field(
        "auto", description="constants that keep the variance of upstream signals; auto = on without batch norm (paper), else off (ours)")
    signal: Literal["real", "bool"] = Field("real", description="signals that a Boolean layer receives: as they come, or their signs alone")
    pad_value: Literal[0, -1] = Field(0, description="what stands beyond an image's border: 0, neutral, or -1, FALSE (paper: not stated)")
    shortcut_kernel: Literal[1, 3] = Field(3, description="convolution in a residual block's shortcut (paper's final networks: 3)")
    lr: float = Field(1e-3, gt=0, le=100, description="learning rate of the real-valued parameters at the start (paper: Adam, 1e-3)")
    lr_schedule: Literal["steps", "cosine"] = Field(
        "cosine", description="all rates: half a cosine down to 0 over the epochs (paper), or lr_decay at the decay epochs")
    signal_bits: Literal[1, 8, 16, 32] = Field(
        16, description="width of signals that energy is modelled for, accumulators having 16 bits; the training itself is in float32")


class BooleanNetworkTraining(SupervisedTraining):
    """Supervised training of the Boolean form of a task's network."""

    Params = BooleanParams
    params: BooleanParams

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        p = self.params
        options = BooleanOptions(
            batch_norm=p.batch_norm, window=None if p.window == "auto" else p.window, signal=p.signal, pad_value=p.pad_value,
            scaling=None if p.scaling == "auto" else p.scaling == "on", shortcut_kernel=p.shortcut_kernel)
        return booleanise(model, options, generator=ctx.generator("boolean", cpu=True))

    def precision(self, model: nn.Module) -> PrecisionPlan:
        from tracking.energy_model.plan import FP32, bold

        plan = bold(self.params.signal_bits)
        # layer by layer: in networks of other kinds than classification not only the ends are real
        named = model.named_modules()
        formats = ((name, plan.body if isinstance(m, BooleanLayer) else FP32) for name, m in named
                   if isinstance(m, (BooleanLayer, nn.Linear, _ConvNd)) or getattr(m, "stays_real", False))
        return dataclasses.replace(plan, overrides=tuple((f"{name}{suffix}", p) for name, p in formats for suffix in ("", "#*")))
