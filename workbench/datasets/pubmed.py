"""Pubmed, 3 kinds of diabetes: a citation graph."""

from __future__ import annotations

from workbench.datasets.graphs import StoredGraph


class Pubmed(StoredGraph):
    """19,717 papers that cite each other, TF-IDF words, 20 labelled papers a class (Sen et al. 2008; Yang, Cohen &
    Salakhutdinov, ICML 2016).
    """

    dataset = "pubmed"
    models = ("node",)
    title = "Pubmed, 3 kinds of diabetes"
    kind = "node_classification"
    embedded = False
