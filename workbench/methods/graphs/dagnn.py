"""DAGNN, a supervised reference: predictions spread to many distances, and a learnt weight of each distance for each node.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import SparseLinear, dropout, pyg
from workbench.methods.graphs._sparse_supervised import SparseNodeClassifier
from workbench.methods.graphs._supervised import ClassifierParams
from workbench.params import Field


class DAGNNetwork(nn.Module):
    """``Z = MLP(X)``, ``H_l = Â^l Z`` for l = 0 … K, ``s_l = sigmoid(H_l w)``, output ``sum_l s_l H_l`` (eq. 8); ``(N, classes)``.

    Dropout is on the inputs of both layers of the perceptron.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, k: int, drop: float) -> None:
        super().__init__()
        self.first, self.second = SparseLinear(inputs, hidden), nn.Linear(hidden, classes)
        # one step of APPNP that keeps nothing of the start is the product with Â
        self.average = pyg().APPNP(1, 0.0, cached=True)
        self.weigh = nn.Linear(classes, 1)
        self.k, self.drop = k, drop

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.first(dropout(x, self.drop, self.training)))
        spread = [self.second(F.dropout(h, self.drop, self.training))]
        for _ in range(self.k):
            spread.append(self.average(spread[-1], edge_index))
        every = torch.stack(spread, dim=1)
        return (torch.sigmoid(self.weigh(every)) * every).sum(1)


class DAGNN(SparseNodeClassifier):
    """A perceptron's predictions at many distances, each weighed by itself."""

    id = "dagnn"
    title = "DAGNN"
    family = "graphs"
    paper = "arXiv:2007.09296"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 30, "lr": 0.05, "dropout": 0.5, "k": 3},
    }

    class Params(ClassifierParams):
        k: int = Field(10, ge=0, le=1000, description="largest distance; the paper has 10 on Cora and 20 on Pubmed")
        hidden: int = Field(64, ge=1, le=4096, description="units of the hidden layer")
        dropout: float = Field(
            0.8, ge=0, lt=1, description="share of units dropped in training; the paper has 0.5 on Citeseer"
        )
        weight_decay: float = Field(
            5e-3, ge=0, le=1, description="L2 penalty on all weights; the paper has 0.02 on Citeseer"
        )
        epochs: int = Field(1000, ge=1, le=100_000, description="full-batch steps at most")
        patience: int = Field(
            100, ge=0, le=100_000, description="epochs without progress on the stopping nodes that end it; 0 = never"
        )

    def network(self, task: GraphTask) -> nn.Module:
        p = self.params
        return DAGNNetwork(task.x.shape[1], p.hidden, task.num_classes, p.k, p.dropout)
