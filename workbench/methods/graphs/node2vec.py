"""node2vec: walks between breadth-first and depth-first search, by skip-gram with negative sampling.

Grover & Leskovec, "node2vec: Scalable Feature Learning for Networks", KDD 2016, arXiv:1607.00653.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.methods.graphs._skipgram import negative_sampling_loss
from workbench.methods.graphs._walking import WalkEmbedding, WalkParams, WalkState
from workbench.methods.graphs._walks import Neighbours, random_walks
from workbench.params import Field


class Node2Vec(WalkEmbedding):
    """Vectors that predict which nodes a walk with a memory of one step meets near a node."""

    id = "node2vec"
    title = "Node2Vec"
    family = "graphs"
    paper = "arXiv:1607.00653"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {
            "dim": 16,
            "walks_per_node": 8,
            "walk_length": 12,
            "window": 3,
            "batch_walks": 16,
            "lr": 0.05,
            "noise_nodes": 16,
        },
    }
    published = {"source": "the paper's experiments: d = 128, r = 10, l = 80, k = 10"}

    class Params(WalkParams):
        p: float = Field(
            1.0, gt=0, le=1000, description="return parameter: large, and the walk seldom goes straight back"
        )
        q: float = Field(
            1.0, gt=0, le=1000, description="in-out parameter: large, and the walk stays near where it came from"
        )
        negatives: int = Field(5, ge=1, le=1000, description="negative pairs that weigh against one positive")
        noise_nodes: int = Field(
            64, ge=1, le=65_536, description="nodes drawn for the negatives of a walk, shared by its centres (ours)"
        )

    def walk(self, graph: Neighbours, start: Tensor, generator: torch.Generator) -> Tensor:
        return random_walks(graph, start, self.params.walk_length, generator, self.params.p, self.params.q)

    def loss(self, state: WalkState, graph: Neighbours, walks: Tensor) -> Tensor:
        p = self.params
        law = graph.degree.float() ** 0.75  # word2vec's law, with degrees as frequencies
        noise = torch.multinomial(law, len(walks) * p.noise_nodes, replacement=True, generator=state.walks)
        return negative_sampling_loss(
            state.inputs, state.outputs, walks, noise.reshape(len(walks), -1), p.window, p.negatives
        )
