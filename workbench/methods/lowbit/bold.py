"""BOLD: Boolean weights trained by votes, without latent weights and without gradients of the Boolean layers.

Nguyen, Ocampo, Askri, Leconte & Tran, "BOLD: Boolean Logic Deep Learning", NeurIPS 2024, arXiv:2405.16339.

The algorithm stands by itself in :mod:`workbench.boolean`: layers, thresholds and the optimiser, for any training loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from tracking.errors import UserError
from workbench.boolean import BooleanOptimizer, JointOptimizer, split_parameters
from workbench.method import Context, View
from workbench.methods.lowbit._boolean import BooleanNetworkTraining, BooleanParams
from workbench.methods.lowbit._views import flip_views, vote_view
from workbench.methods.supervised import SupervisedState, plain_optimizer
from workbench.params import Field
from workbench.task import SupervisedTask


@dataclass
class BooleanState(SupervisedState):
    """Adds what the last report knew of the flips."""

    reported_flips: int = 0
    reported_batches: int = 0


class BOLD(BooleanNetworkTraining):
    """Boolean weights flipped by accumulated votes, Boolean activations, no latent weights; real first and last layer."""

    id = "bold"
    title = "BOLD (Boolean logic)"
    family = "lowbit"
    paper = "arXiv:2405.16339"
    kinds = ("classification", "superresolution", "segmentation", "text_classification")
    example = {"task": "digits/mlp", "params": {"epochs": 8, "batch_size": 100, "eta": 200.0, "lr": 0.003}}
    published = {"source": "the paper's image classification without batch norm", "task": "cifar10/vgg_small"}

    class Params(BooleanParams):
        epochs: int = Field(300, ge=1, le=10_000, description="passes over the training set (paper: 300)")
        batch_size: int = Field(300, ge=2, le=65_536, description="training samples a step (paper: 300)")
        eta: float = Field(
            12.0, ge=0, le=1e6, description="accumulation rate of votes at the start (paper: 12 without batch norm, 150 with it)")
        beta: float = Field(
            0.0, ge=0, le=1, description="factor on the accumulators a step; 0 = plasticity, the share of the layer left unchanged (paper)")
        threshold: float = Field(1.0, gt=0, le=1e6, description="size of an accumulator at which its weight flips (paper's code: 1)")
        clip: float = Field(0.0, ge=0, le=1e6, description="bound of the accumulators, at least the threshold; 0 = none (paper)")
        stochastic: bool = Field(False, description="flip with probability |m| / (2 threshold), as in the paper's analysis")
        accumulator_bits: Literal[16, 32] = Field(32, description="width of the accumulators: float32, or 16-bit fixed point (ours)")

    params: Params

    def optimizer(self, model: nn.Module, ctx: Context) -> JointOptimizer:
        p = self.params
        if p.clip and p.clip < p.threshold:
            raise UserError(f"clip = {p.clip:g} is below threshold = {p.threshold:g}, so no weight would ever flip. Allowed: 0, or at "
                            "least the threshold.")
        flipped, real = split_parameters(model)
        boolean = BooleanOptimizer(
            flipped, p.eta, beta=p.beta or "plasticity", threshold=p.threshold, clip=p.clip or None, stochastic=p.stochastic,
            accumulator="int16" if p.accumulator_bits == 16 else "float32", generator=ctx.generator("flips"))
        return JointOptimizer(real=plain_optimizer(real, p), boolean=boolean)

    def init(self, task: SupervisedTask, ctx: Context) -> BooleanState:
        return BooleanState(**vars(super().init(task, ctx)))

    def on_epoch(self, state: BooleanState) -> None:
        for group in state.optimizer.optimizers["boolean"].param_groups:
            group["lr"] = self.params.eta * self.lr_factor(state.epoch)

    def report(self, state: BooleanState) -> dict[str, float]:
        layers = state.optimizer.optimizers["boolean"].layers()
        flips, size = sum(x.total_flips for x in layers), sum(x.size for x in layers)
        batches = state.epoch * state.batches_per_epoch + state.batch
        since = flips - state.reported_flips, batches - state.reported_batches
        state.reported_flips, state.reported_batches = flips, batches
        return {"train/flips": flips, "train/flip_rate": since[0] / (since[1] * size),
                "train/plasticity": sum(x.beta for x in layers) / len(layers)}

    def views(self, state: BooleanState, task: SupervisedTask) -> list[View]:
        """Flips by layer, and how near the weights are to their next one."""
        optimizer, threshold = state.optimizer.optimizers["boolean"], self.params.threshold
        weights = {name.removesuffix(".weight"): p for name, p in state.model.named_parameters() if p in optimizer.state}
        reports = dict(zip(weights, optimizer.layers(), strict=True))
        if not reports:
            return []
        votes = {name: optimizer.accumulator(p) * p / threshold for name, p in weights.items()}
        note = f"A weight {'may flip' if self.params.stochastic else 'flips'} when its votes pass 1; below 0 they speak for it."
        return [*flip_views(reports), vote_view(votes, "votes [thresholds]", note)]
