"""FastRP: powers of the walk matrix seen through a very sparse random projection.

Chen, Sultan, Tian, Chen & Skiena, "Fast and Accurate Network Embeddings via Very Sparse Random Projection", CIKM 2019, arXiv:1908.11512.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.graphs.averaging import csr
from workbench.method import Context, Progress
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.params import Field


def sparse_projection(rows: int, dim: int, s: float, generator: torch.Generator) -> Tensor:
    """Very sparse random projection ``(rows, dim)``: ``+sqrt(s)`` and ``-sqrt(s)`` with probability ``1/2s`` each, else 0; variance 1."""
    draw = torch.rand(rows, dim, generator=generator)
    return ((draw < 1 / (2 * s)).float() - (draw >= 1 - 1 / (2 * s)).float()) * s**0.5


def walk_matrix(adjacency: Tensor) -> Tensor:
    """``S = D^-1 A`` of a sparse CSR matrix ``(N, N)``; rows of nodes without edges are zero."""
    counts = adjacency.crow_indices().diff().long()
    sums = torch.segment_reduce(adjacency.values(), "sum", lengths=counts, initial=0)
    return csr(
        adjacency.crow_indices(),
        adjacency.col_indices(),
        adjacency.values() / torch.repeat_interleave(sums, counts),
        len(counts),
    )


def degree_weights(degree: Tensor, beta: float) -> Tensor:
    """Diagonal of ``L``: ``(d_j / 2m)^beta``, ``(N,)``, m the number of edges (Section 3.2); 0 for a node without edges."""
    return torch.where(degree > 0, (degree / degree.sum()).clamp(min=1e-30) ** beta, 0.0)


@dataclass
class FastRPState:
    """All that the method remembers."""

    power: Tensor
    """``S^k L R`` for the last k, ``(N, d)``."""
    embedding: Tensor
    """Sum of the powers so far, weighted."""
    done: int = 0


class FastRP(NodeEmbedding):
    """Weighted powers of the random walk's matrix, projected at random; nothing is learnt and features are not looked at."""

    id = "fastrp"
    title = "FastRP"
    family = "graphs"
    paper = "arXiv:1908.11512"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"dim": 64},
    }

    class Params(EmbeddingParams):
        dim: int = Field(512, ge=1, le=8192, description="size of the representation")
        weights: tuple[float, ...] = Field(
            (0.0, 0.0, 1.0, 6.67),
            min_length=1,
            max_length=64,
            description="weights of the powers 1, 2, … of the walk matrix; the paper "
            "tunes the fourth, and this value of it is ours",
        )
        beta: float = Field(
            -0.628,
            ge=-2,
            le=2,
            description="exponent of the degrees, below 0: hubs weigh less; tuned in the paper, and this value is ours",
        )
        sparsity: float = Field(
            0.0, ge=0, description="s: one entry in s of the projection is not zero; 0 = sqrt(N), from 1 on"
        )
        standardise: bool = Field(
            True, description="bring every column to mean 0 and variance 1 at the end, as the authors' code does"
        )

    def init(self, task: GraphTask, ctx: Context) -> FastRPState:
        p = self.params
        s = max(p.sparsity or task.num_nodes**0.5, 1.0)
        projection = sparse_projection(task.num_nodes, p.dim, s, ctx.generator("projection", cpu=True)).to(ctx.device)
        degree = torch.bincount(task.edge_index[0], minlength=task.num_nodes).float()
        start = degree_weights(degree, p.beta)[:, None] * projection
        return FastRPState(start, torch.zeros_like(start))

    def step(self, state: FastRPState, task: GraphTask, ctx: Context) -> dict[str, float]:
        state.power = walk_matrix(task.adjacency()) @ state.power
        state.embedding = state.embedding + self.params.weights[state.done] * state.power
        state.done += 1
        return {"train/epoch": state.done}

    def features(self, state: FastRPState, task: GraphTask, ctx: Context) -> Tensor:
        z = state.embedding
        if not self.params.standardise:
            return z
        spread = z.std(0, correction=0)
        return (z - z.mean(0)) / torch.where(spread > 0, spread, 1.0)  # a constant column is left constant: zero

    def progress(self, state: FastRPState) -> Progress:
        return Progress(state.done, len(self.params.weights))
