"""Cora, 7 fields of machine learning: a citation graph."""

from __future__ import annotations

from workbench.datasets.graphs import StoredGraph


class Cora(StoredGraph):
    """2,708 papers that cite each other, binary words, 20 labelled papers a class (Sen et al. 2008; Yang, Cohen &
    Salakhutdinov, ICML 2016).
    """

    dataset = "cora"
    models = ("node",)
    title = "Cora, 7 fields of machine learning"
    kind = "node_classification"
    embedded = False
