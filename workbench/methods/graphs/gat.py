"""GAT, a supervised reference, on PyG's convolution.

Veličković, Cucurull, Casanova, Romero, Liò & Bengio, "Graph Attention Networks", ICLR 2018, arXiv:1710.10903.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._layers import SparseLinear, dropout, pyg
from workbench.methods.graphs._sparse_supervised import SparseNodeClassifier
from workbench.methods.graphs._supervised import ClassifierParams
from workbench.params import Field


class GATNetwork(nn.Module):
    """Two layers of attention (Section 3.3): heads side by side with ELU, then heads averaged.

    Dropout is on the inputs of both layers and on the attention. ``x (N, inputs)`` to logits ``(N, classes)``.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, heads: int, output_heads: int, drop: float) -> None:
        super().__init__()
        attention = pyg().GATConv
        self.first = attention(inputs, hidden, heads=heads, dropout=drop)
        self.second = attention(heads * hidden, classes, heads=output_heads, concat=False, dropout=drop)
        self.first.lin = SparseLinear(inputs, heads * hidden, bias=False)
        self.drop = drop

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.elu(self.first(dropout(x, self.drop, self.training), edge_index))
        return self.second(F.dropout(h, self.drop, self.training), edge_index)


class GAT(SparseNodeClassifier):
    """Convolutions whose weights are learnt attention between neighbours, trained on the labelled nodes."""

    id = "gat"
    title = "GAT"
    family = "graphs"
    paper = "arXiv:1710.10903"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"epochs": 40, "lr": 0.02, "heads": 2, "dropout": 0.3},
    }
    published = {"source": "the paper's transductive experiments", "task": "cora/node"}

    class Params(ClassifierParams):
        hidden: int = Field(8, ge=1, le=4096, description="units of a head in the first layer")
        heads: int = Field(8, ge=1, le=64, description="heads of the first layer")
        output_heads: int = Field(1, ge=1, le=64, description="heads of the second layer; the paper has 8 on Pubmed")
        dropout: float = Field(
            0.6, ge=0, lt=1, description="share of units and of attention weights dropped in training"
        )
        lr: float = Field(0.005, gt=0, le=10, description="learning rate of Adam")
        epochs: int = Field(1000, ge=1, le=100_000, description="full-batch steps at most")
        patience: int = Field(
            100, ge=0, le=100_000, description="epochs without progress on the stopping nodes that end it; 0 = never"
        )

    def network(self, task: GraphTask) -> nn.Module:
        p = self.params
        return GATNetwork(task.x.shape[1], p.hidden, task.num_classes, p.heads, p.output_heads, p.dropout)
