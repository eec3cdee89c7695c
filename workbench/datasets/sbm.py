"""Stochastic block models with features: graphs whose communities, and whose difficulty, are known."""

from __future__ import annotations

from typing import Literal

import numpy as np

from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.block_model import block_model, planted_probabilities
from workbench.method import derive_seed
from workbench.params import Field


class SbmParams(GraphParams):
    """The graph and its features; all sizes are ours."""

    nodes: int = Field(
        1000,
        ge=20,
        le=10_000_000,
        description="nodes N, in equal communities (the first are larger by one where N is no multiple)",
    )
    communities: int = Field(2, ge=2, le=100, description="communities k, which are the labels")
    degree: float = Field(60.0, gt=0, le=100_000, description="expected number of neighbours")
    ratio: float = Field(0.2, ge=0, le=1, description="probability of an edge across communities over that within")
    features: Literal["spread", "means", "both"] = Field(
        "spread",
        description="what tells communities apart: the standard deviations of features (means are 0), their means, or both",
    )
    dim: int = Field(
        16,
        ge=1,
        le=10_000,
        description="features P; in group c of k equal groups, community c is the wide one, or has the mean",
    )
    wide: float = Field(
        1.5, gt=0, le=100, description="standard deviation of a community's own features (spread, both)"
    )
    narrow: float = Field(0.5, gt=0, le=100, description="standard deviation of all other features")
    shift: float = Field(0.5, ge=0, le=100, description="mean of a community's own features (means, both)")
    train_per_class: int = Field(20, ge=1, le=1_000_000, description="training nodes of each class (random)")
    val_size: int = Field(200, ge=1, le=10_000_000, description="validation nodes (random)")
    test_size: int = Field(0, ge=0, le=10_000_000, description="test nodes (random); 0 = all that are left")
    data_seed: int = Field(0, ge=0, description="seed of the graph and its features, apart from the seed of the run")


class SbmGraph(GraphTask):
    """Base: communities and features are the same, the edges are a subclass's. After :meth:`read`: ``law``, see
    :meth:`moments`.
    """

    Params = SbmParams
    params: SbmParams

    def rng(self, purpose: str) -> np.random.Generator:
        """NumPy's generator for one purpose, from the seed of the data."""
        return np.random.default_rng(derive_seed(self.params.data_seed, self.dataset, purpose))

    def sizes(self) -> np.ndarray:
        """Nodes of each community, int64 ``(k,)``."""
        p = self.params
        return np.full(p.communities, p.nodes // p.communities) + (np.arange(p.communities) < p.nodes % p.communities)

    def probabilities(self) -> np.ndarray:
        """Probability of an edge between nodes of two communities, ``(k, k)``."""
        p = self.params
        within, across = planted_probabilities(p.nodes, p.communities, p.degree, p.ratio)
        return np.where(np.eye(p.communities, dtype=bool), within, across)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of the independent Gaussian features of each community, both ``(k, P)``."""
        p = self.params
        own = np.arange(p.dim) * p.communities // p.dim == np.arange(p.communities)[:, None]
        means = p.shift * own if p.features != "spread" else np.zeros(own.shape)
        return means, np.where(own & (p.features != "means"), p.wide, p.narrow)

    def edges(self, sizes: np.ndarray) -> np.ndarray:
        """int64 ``(2, E)``, both directions, sorted."""
        raise NotImplementedError

    def read(self) -> Graph:
        sizes = self.sizes()
        y = np.repeat(np.arange(len(sizes)), sizes)
        means, deviations = (table.astype(np.float32) for table in self.moments())
        x = self.rng("features").standard_normal((len(y), self.params.dim), dtype=np.float32)
        x *= deviations[y]
        x += means[y]
        return Graph(x, self.edges(sizes), y)


class Sbm(SbmGraph):
    """Equal communities, independent edges; by default features tell communities apart by their spread alone.

    Then the expectation of averaged features is 0 everywhere. What averages tell of communities all the same comes from
    the graph: neighbours share the chance of the features that they average. It fades as N grows at a fixed degree.
    """

    dataset = "sbm"
    models = ("node",)
    title = "Stochastic block model"
    kind = "node_classification"
    embedded = True

    def edges(self, sizes: np.ndarray) -> np.ndarray:
        return block_model(sizes, self.probabilities(), self.rng("edges"))
