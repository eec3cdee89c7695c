"""BGRL: predict a slow copy of oneself on another view of the graph, without negatives.

Thakoor, Tallec, Azar, Azabou, Dyer, Munos, Veličković & Valko, "Large-Scale Representation Learning on Graphs via Bootstrapping",
ICLR 2022, arXiv:2102.06514.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import (
    GraphConvolution,
    symmetric_adjacency,
    with_edges_dropped,
    with_features_masked,
)
from workbench.methods.graphs._training import EncoderParams, EncoderState, TrainedEncoder, Whole
from workbench.params import Field


def bootstrap_loss(q1: Tensor, y1: Tensor, q2: Tensor, y2: Tensor) -> Tensor:
    """``2 - cos(q1, y2) - cos(q2, y1)``, means over nodes (eq. 2, both directions, up to its sign and constant); all ``(N, d)``."""
    return 2 - F.cosine_similarity(q1, y2).mean() - F.cosine_similarity(q2, y1).mean()


def warm_cosine(epoch: int, warmup: int, epochs: int) -> float:
    """Factor on the learning rate: up linearly over ``warmup`` epochs, then down a half cosine to 0 at ``epochs``."""
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1)))


def moving_average_decay(epoch: int, epochs: int, start: float) -> float:
    """Decay of the target's weights: from ``start`` to 1 over the training, along a half cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


class NormalisedEncoder(nn.Module):
    """Two graph convolutions, each with batch norm and PReLU (Appendix); ``x (N, inputs)`` to ``(N, outputs)``."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(inputs, hidden), GraphConvolution(hidden, outputs)
        # torch's momentum is the weight of the new batch: the running figures are all but those of the last epoch
        self.after_first = nn.Sequential(nn.BatchNorm1d(hidden, momentum=0.99), nn.PReLU())
        self.after_second = nn.Sequential(nn.BatchNorm1d(outputs, momentum=0.99), nn.PReLU())

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.after_second(self.second(self.after_first(self.first(x, adjacency)), adjacency))


class _Model(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, predictor: int) -> None:
        super().__init__()
        self.online, self.target = (NormalisedEncoder(inputs, hidden, outputs) for _ in range(2))
        self.target.requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(outputs, predictor), nn.PReLU(), nn.Linear(predictor, outputs))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.online(x, adjacency)


class BGRL(TrainedEncoder):
    """Representations that predict those of a slowly moving copy on another random view of the graph."""

    id = "bgrl"
    title = "BGRL"
    family = "graphs"
    paper = "arXiv:2102.06514"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 30, "hidden": 32, "dim": 16, "predictor": 32, "lr": 0.01, "warmup": 5},
    }

    class Params(EncoderParams):
        hidden: int = Field(512, ge=1, le=8192, description="units of the encoder's first layer")
        dim: int = Field(256, ge=1, le=8192, description="size of the representation")
        predictor: int = Field(512, ge=1, le=8192, description="units between the layers of the predictor")
        epochs: int = Field(10_000, ge=1, le=100_000, description="full-batch steps")
        lr: float = Field(5e-4, gt=0, le=10, description="learning rate of AdamW after the warm-up")
        weight_decay: float = Field(1e-5, ge=0, le=1, description="decoupled weight decay")
        warmup: int = Field(
            1000,
            ge=0,
            le=100_000,
            description="epochs over which the learning rate rises; then it falls by a half cosine",
        )
        momentum: float = Field(
            0.99, ge=0, le=1, description="decay of the target's moving average at the start; it rises to 1"
        )
        drop_edges_1: float = Field(0.2, ge=0, lt=1, description="share of the edges dropped in the first view")
        drop_edges_2: float = Field(0.3, ge=0, lt=1, description="share of the edges dropped in the second view")
        mask_features_1: float = Field(0.2, ge=0, lt=1, description="share of the features masked in the first view")
        mask_features_2: float = Field(0.1, ge=0, lt=1, description="share of the features masked in the second view")

    def network(self, task: GraphTask) -> nn.Module:
        p = self.params
        return _Model(task.x.shape[1], p.hidden, p.dim, p.predictor)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        p = self.params
        learnt = [*model.online.parameters(), *model.predictor.parameters()]
        return torch.optim.AdamW(learnt, lr=p.lr, weight_decay=p.weight_decay)

    def before_epoch(self, state: EncoderState) -> None:
        p = self.params
        for group in state.optimizer.param_groups:
            group["lr"] = p.lr * warm_cosine(state.epoch + 1, p.warmup, p.epochs + 1)

    def loss(self, model: nn.Module, graph: Whole) -> Tensor:
        p, seen = self.params, []
        for edges, features in ((p.drop_edges_1, p.mask_features_1), (p.drop_edges_2, p.mask_features_2)):
            adjacency = symmetric_adjacency(with_edges_dropped(graph.edge_index, edges), graph.x.shape[0])
            x = with_features_masked(graph.x, features)
            with torch.no_grad():
                target = model.target(x, adjacency)
            seen += [model.predictor(model.online(x, adjacency)), target]
        return bootstrap_loss(*seen)

    @torch.no_grad()
    def after_epoch(self, state: EncoderState) -> None:
        decay = moving_average_decay(state.epoch, self.params.epochs, self.params.momentum)
        for slow, fast in zip(state.model.target.parameters(), state.model.online.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
