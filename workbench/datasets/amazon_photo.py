"""Amazon Photo: goods that are bought together."""

from __future__ import annotations

from typing import Literal

from workbench.datasets.graphs import GraphParams, StoredGraph
from workbench.params import Field


class AmazonPhotoParams(GraphParams):
    """No split comes with the data; self-supervised methods draw 10 % to train, 10 % to validate (Thakoor et al., ICLR
    2022).
    """

    protocol: Literal["random", "fractions"] = Field(
        "fractions",
        description="fractions: shares of all nodes; random: train_per_class of each class, then val_size, then test_size",
    )
    val_size: int = Field(
        240, ge=1, le=10_000_000, description="validation nodes (random); Shchur et al. (2018) take 30 a class"
    )
    test_size: int = Field(0, ge=0, le=10_000_000, description="test nodes (random); 0 = all that are left")


class AmazonPhoto(StoredGraph):
    """7,650 goods joined where they are often bought together, words of their reviews, 8 kinds (Shchur et al. 2018,
    arXiv:1811.05868).
    """

    dataset = "amazon_photo"
    models = ("node",)
    title = "Amazon Photo, 8 kinds of goods"
    kind = "node_classification"
    embedded = False

    Params = AmazonPhotoParams
    params: AmazonPhotoParams
