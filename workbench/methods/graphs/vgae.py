"""Variational graph auto-encoder, on PyG's implementation.

Kipf & Welling, "Variational Graph Auto-Encoders", NIPS workshop 2016, arXiv:1611.07308.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import GraphConvolution, pyg
from workbench.methods.graphs._training import EncoderParams, TrainedEncoder, Whole
from workbench.params import Field

if TYPE_CHECKING:
    from torch_geometric.nn import VGAE as PyGVGAE


class GaussianEncoder(nn.Module):
    """Mean and logarithm of the standard deviation of every node's law, from a shared first layer (Section 1): each ``(N, outputs)``."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.shared = GraphConvolution(inputs, hidden)
        self.mean, self.log_deviation = GraphConvolution(hidden, outputs), GraphConvolution(hidden, outputs)

    def forward(self, x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.shared(x, adjacency))
        return self.mean(h, adjacency), self.log_deviation(h, adjacency)


def variational_auto_encoder(inputs: int, hidden: int, outputs: int) -> PyGVGAE:
    """Encoder and inner-product decoder, with PyG's losses."""
    return pyg().VGAE(GaussianEncoder(inputs, hidden, outputs))


def evidence_loss(model: PyGVGAE, z: Tensor, edge_index: Tensor) -> Tensor:
    """Reconstruction of the edges against as many pairs that are none, drawn anew, plus the divergence from the prior over N.

    The paper weighs all pairs instead of drawing some; drawing is PyG's, and linear in the number of edges.
    """
    from torch_geometric.utils import negative_sampling

    return model.recon_loss(z, edge_index, negative_sampling(edge_index, len(z))) + model.kl_loss() / len(z)


class _Model(nn.Module):
    """The model that gives mean representations when it is called."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.variational = variational_auto_encoder(inputs, hidden, outputs)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.variational.encoder(x, adjacency)[0]


class VGAE(TrainedEncoder):
    """Random representations whose inner products give the edges back."""

    id = "vgae"
    title = "VGAE"
    family = "graphs"
    paper = "arXiv:1611.07308"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 50},
    }

    class Params(EncoderParams):
        hidden: int = Field(32, ge=1, le=4096, description="units of the first layer")
        dim: int = Field(16, ge=1, le=4096, description="size of the representation")
        lr: float = Field(0.01, gt=0, le=10, description="learning rate of Adam")

    def network(self, task: GraphTask) -> nn.Module:
        return _Model(task.x.shape[1], self.params.hidden, self.params.dim)

    def loss(self, model: nn.Module, graph: Whole) -> Tensor:
        z = model.variational.encode(graph.x, graph.adjacency)
        return evidence_loss(model.variational, z, graph.edge_index)
