"""APPNP, a supervised reference: predictions of a perceptron, spread by personalised PageRank, on PyG's propagation.

Klicpera, Bojchevski & Günnemann, "Predict then Propagate", ICLR 2019, arXiv:1810.05997.
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


class APPNPNetwork(nn.Module):
    """``H = MLP(X)``, then ``Z <- (1 - alpha) Â Z + alpha H``, K times from ``Z = H`` (eq. 4); logits ``(N, classes)``.

    Dropout is on the inputs of both layers and on the edges in each step of the propagation.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, k: int, alpha: float, drop: float) -> None:
        super().__init__()
        self.first, self.second = SparseLinear(inputs, hidden), nn.Linear(hidden, classes)
        # one step that keeps nothing of the start is the product with Â. The loop over steps is ours: PyG's drops edges
        # from what the step before has left of them, so that after K steps hardly one is there
        self.average = pyg().APPNP(1, 0.0, dropout=drop, cached=True)
        self.k, self.alpha, self.drop = k, alpha, drop

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.first(dropout(x, self.drop, self.training)))
        h = self.second(F.dropout(h, self.drop, self.training))
        z = h
        for _ in range(self.k):
            z = (1 - self.alpha) * self.average(z, edge_index) + self.alpha * h
        return z


class APPNP(SparseNodeClassifier):
    """A perceptron's predictions, averaged over far neighbourhoods without forgetting the node's own."""

    id = "appnp"
    title = "APPNP"
    family = "graphs"
    paper = "arXiv:1810.05997"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 40, "k": 2},
    }

    class Params(ClassifierParams):
        k: int = Field(10, ge=1, le=1000, description="steps of the propagation")
        alpha: float = Field(0.1, gt=0, le=1, description="weight of a node's own prediction in each step")
        hidden: int = Field(64, ge=1, le=4096, description="units of the hidden layer")
        weight_decay: float = Field(5e-3, ge=0, le=1, description="L2 penalty on the first layer")
        epochs: int = Field(10_000, ge=1, le=100_000, description="full-batch steps at most")
        patience: int = Field(
            100, ge=0, le=100_000, description="epochs without progress on the stopping nodes that end it; 0 = never"
        )

    def network(self, task: GraphTask) -> nn.Module:
        p = self.params
        return APPNPNetwork(task.x.shape[1], p.hidden, task.num_classes, p.k, p.alpha, p.dropout)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The penalty is on the first layer, as in the paper."""
        return [
            {"params": list(model.first.parameters()), "weight_decay": self.params.weight_decay},
            {"params": list(model.second.parameters()), "weight_decay": 0.0},
        ]
