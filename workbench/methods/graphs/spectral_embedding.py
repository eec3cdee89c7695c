"""Spectral embedding: the smoothest functions on the graph as coordinates of its nodes.

Belkin & Niyogi, "Laplacian Eigenmaps for Dimensionality Reduction and Data Representation", Neural Computation 15(6), 2003. A constant is
added to all entries of the adjacency matrix, as regularised spectral clustering does (Amini, Chen, Bickel & Levina, Annals of Statistics
41(4), 2013; Qin & Rohe, NIPS 2013): without it the smoothest functions of a sparse graph are the indicators of its smallest components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.datasets.graphs import GraphTask
from workbench.method import Context, Progress, derive_seed
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.params import Field

DENSE = 800
"""Nodes up to which the whole matrix is decomposed, which needs PyTorch alone."""


def laplacian_eigenmaps(adjacency: Tensor, dim: int, tau: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The ``dim`` lowest solutions of ``L f = lambda D f`` after the constant one, for ``A + (tau / N) 1 1^T``, D its degrees, L = D - A.

    Args:
        adjacency: symmetric, sparse CSR ``(N, N)``.
        tau: what regularisation adds to every degree.
        seed: of the iteration's first vector.

    Returns eigenvalues ``(dim,)``, increasing, and eigenfunctions ``(N, dim)`` with ``f^T D f = 1`` and the entry of largest magnitude
    positive. Fewer where the graph has no more than ``dim`` nodes. With ``tau = 0`` a node without edges has zeros.
    """
    n = adjacency.shape[0]
    counts = adjacency.crow_indices().diff().long()
    degree = torch.segment_reduce(adjacency.values(), "sum", lengths=counts, initial=0).double() + tau
    scale = torch.where(degree > 0, degree.clamp(min=1e-30).rsqrt(), 0.0)
    count = min(dim + 1, n)
    if n <= DENSE or count > n // 2:
        dense = (adjacency.to_dense().double() + tau / n) * scale[:, None] * scale
        values, vectors = torch.linalg.eigh(dense)
        values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    else:
        values, vectors = _lanczos(adjacency, scale, tau, count, seed)
    order = torch.arange(1, count, device=adjacency.device)  # the first one is constant
    functions = vectors[:, order] * scale[:, None]
    signs = functions.gather(0, functions.abs().argmax(0, keepdim=True)).sign()
    return 1 - values[order], functions * torch.where(signs == 0, 1.0, signs)


def _lanczos(adjacency: Tensor, scale: Tensor, tau: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Largest eigenpairs of ``D^-1/2 (A + tau/N) D^-1/2``, by SciPy's implicitly restarted Lanczos iteration."""
    try:
        from scipy.sparse import csr_matrix
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError:
        raise UserError(
            f"The eigenvectors of a graph with more than {DENSE} nodes need SciPy, which is not installed here: "
            "pip install scipy."
        ) from None
    n = adjacency.shape[0]
    parts = (adjacency.values().double(), adjacency.col_indices(), adjacency.crow_indices())
    matrix, s = csr_matrix(tuple(t.cpu().numpy() for t in parts), shape=(n, n)), scale.cpu().numpy()

    def product(v: np.ndarray) -> np.ndarray:
        u = s * v.ravel()
        return s * (matrix @ u + tau / n * u.sum())

    start = np.random.default_rng(seed).standard_normal(n)
    values, vectors = eigsh(LinearOperator((n, n), product, dtype=np.float64), count, which="LA", v0=start, tol=1e-9)
    order = np.argsort(-values)
    device = adjacency.device
    return torch.from_numpy(values[order]).to(device), torch.from_numpy(np.ascontiguousarray(vectors[:, order])).to(
        device
    )


@dataclass
class SpectralState:
    """All that the method remembers: the eigenfunctions, empty before they are known."""

    functions: Tensor
    done: int = 0


class SpectralEmbedding(NodeEmbedding):
    """Lowest eigenfunctions of the graph's Laplacian; features are not looked at."""

    id = "spectral_embedding"
    title = "Spectral embedding"
    family = "graphs"
    paper = "doi:10.1162/089976603321780317"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {"dim": 4},
    }

    class Params(EmbeddingParams):
        dim: int = Field(128, ge=1, le=4096, description="eigenfunctions, at most one fewer than nodes")
        regularisation: float = Field(
            1.0, ge=0, le=1000, description="what is added to every degree, in mean degrees; 0 = nothing"
        )

    def init(self, task: GraphTask, ctx: Context) -> SpectralState:
        return SpectralState(torch.zeros(task.num_nodes, 0, device=ctx.device))

    def step(self, state: SpectralState, task: GraphTask, ctx: Context) -> dict[str, float]:
        tau = self.params.regularisation * task.edge_index.shape[1] / task.num_nodes
        seed = derive_seed(ctx.seed, "eigenvectors")
        functions = laplacian_eigenmaps(task.adjacency(), self.params.dim, tau, seed)[1]
        state.functions = functions.float() * task.num_nodes**0.5
        state.done = 1
        return {"train/epoch": 1.0}

    def features(self, state: SpectralState, task: GraphTask, ctx: Context) -> Tensor:
        return state.functions

    def progress(self, state: SpectralState) -> Progress:
        return Progress(state.done, 1)
