"""Full-batch training of an encoder without labels: the loop that DGI, GRACE, BGRL and VGAE share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from workbench.datasets.graphs import GraphTask
from workbench.graphs.randomness import lent
from workbench.method import Context, Progress
from workbench.methods.graphs._derived import derived, sparse_inputs
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.methods.graphs._layers import symmetric_adjacency
from workbench.params import Field


class EncoderParams(EmbeddingParams):
    """What every trained encoder has."""

    epochs: int = Field(200, ge=1, le=100_000, description="full-batch steps at most")
    lr: float = Field(0.001, gt=0, le=10, description="learning rate of Adam")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="L2 penalty; decoupled from the gradient where the method uses AdamW"
    )
    patience: int = Field(
        0,
        ge=0,
        le=100_000,
        description="epochs without a lower training loss that end it, at its best weights; 0 = never, last weights",
    )
    report_every: int = Field(5, ge=1, le=1000, description="epochs between reports")


class Whole(NamedTuple):
    """The graph as an encoder sees it."""

    x: Tensor
    """Features ``(N, P)``, row-normalised; sparse CSR where few are not zero."""
    edge_index: Tensor
    adjacency: Tensor
    """``Â``, sparse CSR ``(N, N)``."""


@dataclass
class EncoderState:
    """All that a training remembers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    noise: torch.Generator
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights at the lowest training loss so far, where patience is asked for."""
    best_loss: float = float("inf")
    best_epoch: int = 0
    epoch: int = 0


class TrainedEncoder(NodeEmbedding):
    """Base of the encoders trained on the whole graph at once. Global random numbers are the run's own in all that a method overrides."""

    Params = EncoderParams
    params: EncoderParams

    # --- what a method overrides ------------------------------------------------------------------------

    def network(self, task: GraphTask) -> nn.Module:
        """A fresh model; called as ``model(x, adjacency)`` in evaluation mode, it gives the representations ``(N, D)``."""
        raise NotImplementedError

    def loss(self, model: nn.Module, graph: Whole) -> Tensor:
        """The training loss of an epoch."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.params.lr, weight_decay=self.params.weight_decay)

    def before_epoch(self, state: EncoderState) -> None:
        """Schedules, before epoch ``state.epoch`` (from 0)."""

    def after_epoch(self, state: EncoderState) -> None:
        """What follows the optimiser's step in epoch ``state.epoch`` (from 0)."""

    # --- the loop ---------------------------------------------------------------------------------------

    def init(self, task: GraphTask, ctx: Context) -> EncoderState:
        with lent(ctx.generator("init", cpu=True)):
            model = self.network(task)
        model = model.to(ctx.device)
        return EncoderState(model, self.optimizer(model), ctx.generator("noise"))

    def whole(self, task: GraphTask) -> Whole:
        """The graph as the encoder sees it."""
        adjacency = derived(task, "symmetric", lambda: symmetric_adjacency(task.edge_index, task.num_nodes))
        return Whole(sparse_inputs(task, self.params.normalise), task.edge_index, adjacency)

    def step(self, state: EncoderState, task: GraphTask, ctx: Context) -> dict[str, float]:
        graph, losses = self.whole(task), []
        state.model.train()
        for _ in range(self.params.report_every):
            losses.append(self._epoch(state, graph))
            done, total = self.progress(state)
            if done >= total:
                break
        return {"train/loss": sum(losses) / len(losses), "train/epoch": state.epoch}

    def _epoch(self, state: EncoderState, graph: Whole) -> float:
        self.before_epoch(state)
        state.optimizer.zero_grad(set_to_none=True)
        with lent(state.noise):
            loss = self.loss(state.model, graph)
        value = loss.item()
        if value < state.best_loss and self.params.patience:
            # before the update: these are the weights that have this loss
            state.best = {name: w.detach().clone() for name, w in state.model.state_dict().items()}
        loss.backward()
        state.optimizer.step()
        self.after_epoch(state)
        if value < state.best_loss:
            state.best_loss, state.best_epoch = value, state.epoch
        state.epoch += 1
        return value

    @torch.no_grad()
    def features(self, state: EncoderState, task: GraphTask, ctx: Context) -> Tensor:
        graph = self.whole(task)
        state.model.eval()
        try:
            return functional_call(state.model, state.best, (graph.x, graph.adjacency)).clone()
        finally:
            state.model.train()

    def progress(self, state: EncoderState) -> Progress:
        p = self.params
        ended = p.patience and state.epoch > 0 and state.epoch - 1 - state.best_epoch >= p.patience
        return Progress(state.epoch, state.epoch if ended else p.epochs)
