"""Node features averaged over the graph: order 0 of the Interferometric Graph Transform, and what smoothing alone
gives.

With the symmetric average these are the features of SGC: F. Wu et al., "Simplifying Graph Convolutional Networks", ICML
2019.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.method import Context
from workbench.methods.graphs._embedding import EmbeddingParams
from workbench.methods.graphs.raw_features import FixedFeatures, FixedState
from workbench.params import Field


class AveragedFeaturesParams(EmbeddingParams):
    """The average."""

    averaging: Literal["symmetric", "row", "lazy", "lowrank"] = Field(
        "symmetric",
        description="operator: normalised adjacency, mean over neighbours, half way from the identity, smoothest eigenvectors",
    )
    power: int = Field(2, ge=1, le=100, description="times the average is applied")
    self_loops: float = Field(1.0, ge=0, le=100, description="weight of the edge of a node to itself")
    rank: int = Field(64, ge=1, le=10_000, description="eigenvectors (lowrank)")


class AveragedFeatures(FixedFeatures):
    """Node features averaged over the graph, nothing learnt."""

    id = "averaged_features"
    title = "Averaged features"
    family = "graphs"
    paper = "arXiv:1902.07153"
    kinds = ("node_classification",)
    example = {"task": "sbm/node", "params": {}}

    Params = AveragedFeaturesParams
    params: AveragedFeaturesParams

    def features(self, state: FixedState, task: GraphTask, ctx: Context) -> Tensor:
        p = self.params
        return task.averaging(p.averaging, p.power, p.self_loops, p.rank)(self.inputs(task))
