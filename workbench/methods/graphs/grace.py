"""GRACE: contrast every node of one random view of the graph with all nodes of two.

Zhu, Xu, Yu, Liu, Wu & Wang, "Deep Graph Contrastive Representation Learning", ICML workshop 2020, arXiv:2006.04131.
"""

from __future__ import annotations

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
from workbench.methods.graphs._training import EncoderParams, TrainedEncoder, Whole
from workbench.params import Field


def contrastive_loss(u: Tensor, v: Tensor, tau: float) -> Tensor:
    """Mean of both views' losses (eqs. 1 and 2) for projections ``u, v`` ``(N, d)`` of the same nodes at temperature ``tau``.

    A node's positive is itself in the other view; its negatives are all other nodes of both views.
    """
    u, v = F.normalize(u), F.normalize(v)
    across, own = u @ v.T / tau, torch.eye(len(u), dtype=torch.bool, device=u.device)
    terms = []
    for inside, between in ((u @ u.T / tau, across), (v @ v.T / tau, across.T)):
        others = torch.cat([between, inside.masked_fill(own, -torch.inf)], dim=1)
        terms.append(torch.logsumexp(others, 1) - between.diagonal())
    return torch.cat(terms).mean()


class TwoLayerEncoder(nn.Module):
    """Two graph convolutions with ReLU, twice as wide between them (Section 4.1.3); ``x (N, inputs)`` to ``(N, outputs)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(inputs, 2 * outputs), GraphConvolution(2 * outputs, outputs)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x, adjacency)), adjacency))


class _Model(nn.Module):
    def __init__(self, inputs: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.encoder = TwoLayerEncoder(inputs, hidden)
        self.projection = nn.Sequential(nn.Linear(hidden, projection), nn.ELU(), nn.Linear(projection, hidden))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.encoder(x, adjacency)


class GRACE(TrainedEncoder):
    """Representations that tell a node, seen in two random views of the graph, from all other nodes."""

    id = "grace"
    title = "GRACE"
    family = "graphs"
    paper = "arXiv:2006.04131"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 30, "hidden": 16, "lr": 0.01},
    }

    class Params(EncoderParams):
        hidden: int = Field(128, ge=1, le=4096, description="size of the representation")
        projection: int = Field(
            128, ge=1, le=4096, description="units between the layers of the projection that the loss sees"
        )
        lr: float = Field(5e-4, gt=0, le=10, description="learning rate of Adam")
        weight_decay: float = Field(1e-5, ge=0, le=1, description="L2 penalty")
        tau: float = Field(0.4, gt=0, le=100, description="temperature")
        drop_edges_1: float = Field(0.2, ge=0, lt=1, description="share of the edges dropped in the first view")
        drop_edges_2: float = Field(0.4, ge=0, lt=1, description="share of the edges dropped in the second view")
        mask_features_1: float = Field(0.3, ge=0, lt=1, description="share of the features masked in the first view")
        mask_features_2: float = Field(0.4, ge=0, lt=1, description="share of the features masked in the second view")
        contrast_nodes: int = Field(
            0,
            ge=0,
            description="nodes drawn in each epoch that the loss is over, 0 = all; fewer bound its memory on large graphs (ours)",
        )

    def network(self, task: GraphTask) -> nn.Module:
        return _Model(task.x.shape[1], self.params.hidden, self.params.projection)

    def loss(self, model: nn.Module, graph: Whole) -> Tensor:
        p, nodes = self.params, slice(None)
        if 0 < p.contrast_nodes < graph.x.shape[0]:
            nodes = torch.randperm(graph.x.shape[0], device=graph.x.device)[: p.contrast_nodes]
        views = []
        for edges, features in ((p.drop_edges_1, p.mask_features_1), (p.drop_edges_2, p.mask_features_2)):
            adjacency = symmetric_adjacency(with_edges_dropped(graph.edge_index, edges), graph.x.shape[0])
            z = model.encoder(with_features_masked(graph.x, features), adjacency)
            views.append(model.projection(z[nodes]))
        return contrastive_loss(*views, p.tau)
