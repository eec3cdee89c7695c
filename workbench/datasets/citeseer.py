"""Citeseer, 6 fields of computer science: a citation graph."""

from __future__ import annotations

from workbench.datasets.graphs import StoredGraph


class Citeseer(StoredGraph):
    """3,327 papers that cite each other, binary words, 20 labelled papers a class (Sen et al. 2008; Yang, Cohen &
    Salakhutdinov, ICML 2016).

    Fifteen papers without words, citations and label belong to no set; they are nodes of the graph.
    """

    dataset = "citeseer"
    models = ("node",)
    title = "Citeseer, 6 fields of computer science"
    kind = "node_classification"
    embedded = False
