"""Deep Graph Infomax, on PyG's implementation of the objective.

Veličković, Fedus, Hamilton, Liò, Bengio & Hjelm, "Deep Graph Infomax", ICLR 2019, arXiv:1809.10341.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import GraphConvolution, pyg, shuffled
from workbench.methods.graphs._training import EncoderParams, TrainedEncoder, Whole
from workbench.params import Field

if TYPE_CHECKING:
    from torch_geometric.nn import DeepGraphInfomax


class OneLayerEncoder(nn.Module):
    """``PReLU(Â X W + b)``, the paper's encoder of transductive graphs (eq. 3); ``x (N, inputs)`` to ``(N, outputs)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution, self.activation = GraphConvolution(inputs, outputs), nn.PReLU()

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.activation(self.convolution(x, adjacency))


def summary(z: Tensor, *graph: Tensor) -> Tensor:
    """The graph's summary: the logistic function of the mean representation (Section 3.4)."""
    return torch.sigmoid(z.mean(0))


def corruption(x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """The same graph with the rows of its features in random order (Section 4.2)."""
    return shuffled(x, torch.randperm(x.shape[0], device=x.device)), adjacency


def deep_graph_infomax(inputs: int, hidden: int) -> DeepGraphInfomax:
    """Encoder, summary, corruption and bilinear discriminator; ``loss(*model(x, adjacency))`` is the objective (eq. 1)."""
    return pyg().DeepGraphInfomax(hidden, OneLayerEncoder(inputs, hidden), summary, corruption)


class _Model(nn.Module):
    """The model that gives representations when it is called."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.infomax = deep_graph_infomax(inputs, hidden)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.infomax.encoder(x, adjacency)


class DGI(TrainedEncoder):
    """Representations of nodes that tell the graph's own nodes from those of a shuffled graph."""

    id = "dgi"
    title = "DGI"
    family = "graphs"
    paper = "arXiv:1809.10341"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 30, "hidden": 32, "lr": 0.02},
    }

    class Params(EncoderParams):
        hidden: int = Field(512, ge=1, le=8192, description="size of the representation")
        epochs: int = Field(10_000, ge=1, le=100_000, description="full-batch steps at most")
        patience: int = Field(
            20,
            ge=0,
            le=100_000,
            description="epochs without a lower training loss that end it, at its best weights; "
            "0 = never, last weights",
        )

    def network(self, task: GraphTask) -> nn.Module:
        return _Model(task.x.shape[1], self.params.hidden)

    def loss(self, model: nn.Module, graph: Whole) -> Tensor:
        return model.infomax.loss(*model.infomax(graph.x, graph.adjacency))
