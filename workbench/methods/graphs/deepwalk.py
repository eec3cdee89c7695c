"""DeepWalk: uniform random walks read as sentences, by skip-gram with a hierarchical softmax.

Perozzi, Al-Rfou & Skiena, "DeepWalk: Online Learning of Social Representations", KDD 2014, arXiv:1403.6652.
"""

from __future__ import annotations

from torch import Tensor

from workbench.methods.graphs._skipgram import HuffmanTree, hierarchical_softmax_loss
from workbench.methods.graphs._walking import WalkEmbedding, WalkParams, WalkState
from workbench.methods.graphs._walks import Neighbours
from workbench.params import Field


class DeepWalk(WalkEmbedding):
    """Vectors that predict which nodes a random walk meets near a node."""

    id = "deepwalk"
    title = "DeepWalk"
    family = "graphs"
    paper = "arXiv:1403.6652"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"dim": 16, "walks_per_node": 4, "walk_length": 12, "window": 3, "batch_walks": 32, "lr": 0.05},
    }
    published = {"source": "the paper's experiments: d = 128, gamma = 80, t = 40, w = 10"}

    class Params(WalkParams):
        walks_per_node: int = Field(80, ge=1, le=1000, description="walks from each node")
        walk_length: int = Field(40, ge=2, le=1000, description="nodes of a walk")

    def tree(self, graph: Neighbours) -> HuffmanTree:
        """By degree: the walks visit nodes in proportion to it."""
        return HuffmanTree.of(graph.degree)

    def loss(self, state: WalkState, graph: Neighbours, walks: Tensor) -> Tensor:
        return hierarchical_softmax_loss(state.inputs, state.outputs, walks, state.tree, self.params.window)
