"""GCN, the supervised reference, on PyG's convolution.

Kipf & Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017, arXiv:1609.02907.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import SparseLinear, dropout, pyg
from workbench.methods.graphs._sparse_supervised import SparseNodeClassifier
from workbench.methods.graphs._supervised import ClassifierParams
from workbench.params import Field


class GCNetwork(nn.Module):
    """``Â ReLU(Â X W1) W2`` with dropout before both layers (eq. 9); ``x (N, inputs)`` to logits ``(N, classes)``."""

    def __init__(self, inputs: int, hidden: int, classes: int, drop: float) -> None:
        super().__init__()
        convolution = pyg().GCNConv
        self.first, self.second = convolution(inputs, hidden, cached=True), convolution(hidden, classes, cached=True)
        self.first.lin = SparseLinear(inputs, hidden, bias=False)
        self.drop = drop

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.first(dropout(x, self.drop, self.training), edge_index))
        return self.second(F.dropout(h, self.drop, self.training), edge_index)


class GCN(SparseNodeClassifier):
    """Two graph convolutions, trained on the labelled nodes."""

    id = "gcn"
    title = "GCN"
    family = "graphs"
    paper = "arXiv:1609.02907"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 30, "lr": 0.05},
    }
    published = {"source": "the paper's experiments on citation networks", "task": "cora/node"}

    class Params(ClassifierParams):
        patience: int = Field(
            10, ge=0, le=100_000, description="epochs without progress on the stopping nodes that end it; 0 = never"
        )

    def network(self, task: GraphTask) -> nn.Module:
        return GCNetwork(task.x.shape[1], self.params.hidden, task.num_classes, self.params.dropout)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The penalty is on the first layer, as in the paper."""
        return [
            {"params": list(model.first.parameters()), "weight_decay": self.params.weight_decay},
            {"params": list(model.second.parameters()), "weight_decay": 0.0},
        ]
