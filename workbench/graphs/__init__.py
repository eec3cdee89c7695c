"""Representations of the nodes of one large graph, usable in anyone's own code.

The Interferometric Graph Transform (:mod:`igt`) with its averages (:mod:`averaging`), filters (:mod:`filters`) and
expectation (:mod:`expectation`); random graphs with communities (:mod:`block_model`); and how representations are
measured (:mod:`scaling`, :mod:`probe`, :mod:`clustering`). None of these knows of runs or tasks.
"""

from __future__ import annotations

from workbench.graphs.averaging import Averaging
from workbench.graphs.clustering import adjusted_rand, kmeans, normalised_mutual_information
from workbench.graphs.expectation import expected_transform, gaussian_orders
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.inputs import as_graph, normalise_rows
from workbench.graphs.probe import linear_probe, probe_blocks
from workbench.graphs.scaling import directions, scale_blocks

__all__ = [
    "Averaging",
    "InterferometricGraphTransform",
    "adjusted_rand",
    "as_graph",
    "directions",
    "expected_transform",
    "gaussian_orders",
    "kmeans",
    "linear_probe",
    "normalise_rows",
    "normalised_mutual_information",
    "probe_blocks",
    "scale_blocks",
]
