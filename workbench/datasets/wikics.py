"""Wiki-CS: articles on computer science that link to each other."""

from __future__ import annotations

from typing import Literal

from workbench import data
from workbench.datasets.graphs import Graph, GraphParams, StoredGraph
from workbench.params import Field


class WikiCSParams(GraphParams):
    """Twenty splits come with the data; published figures are means over all of them."""

    protocol: Literal["public", "random", "fractions"] = Field(
        "public",
        description="public: one of the data set's splits; random: train_per_class of each class, then val_size, then "
        "test_size; fractions: shares of all nodes",
    )
    split: int = Field(0, ge=0, le=19, description="which of the data set's 20 splits (public)")


class WikiCS(StoredGraph):
    """11,701 articles that link to each other, mean word vectors, 10 fields, 20 splits (Mernyei & Cangea 2020,
    arXiv:2007.02901).
    """

    dataset = "wikics"
    models = ("node",)
    title = "Wiki-CS, 10 fields of computer science"
    kind = "node_classification"
    embedded = False

    Params = WikiCSParams
    params: WikiCSParams

    def read(self) -> Graph:
        return data.declaration(self.dataset).graph(data.load(self.dataset), self.params.split)
