"""The degree-corrected stochastic block model: communities whose nodes have degrees of a power law."""

from __future__ import annotations

import numpy as np

from workbench.datasets.sbm import SbmGraph, SbmParams
from workbench.graphs.block_model import degree_corrected, pareto_propensity
from workbench.params import Field


class DcSbmParams(SbmParams):
    """The law of the degrees; sizes are ours."""

    exponent: float = Field(
        2.5, gt=1, le=10, description="density of a node's propensity t is proportional to t^-exponent"
    )
    largest: float = Field(20.0, ge=1, le=1e6, description="largest propensity over the smallest; 1 = all alike")


class DcSbm(SbmGraph):
    """Communities as in the stochastic block model, degrees of a power law (Karrer & Newman 2011); repeated edges count
    once.
    """

    dataset = "dcsbm"
    models = ("node",)
    title = "Degree-corrected block model"
    kind = "node_classification"
    embedded = True

    Params = DcSbmParams
    params: DcSbmParams

    def edges(self, sizes: np.ndarray) -> np.ndarray:
        p = self.params
        pairs = np.outer(sizes, sizes) * (1 - 0.5 * np.eye(len(sizes))) - 0.5 * np.diag(sizes)
        propensity = pareto_propensity(p.nodes, p.exponent, p.largest, self.rng("degrees"))
        return degree_corrected(sizes, pairs * self.probabilities(), propensity, self.rng("edges"))
