"""A graph of handwritten digits: each image is joined to those most like it."""

from __future__ import annotations

import numpy as np
import torch

from workbench import data
from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.block_model import both_ways
from workbench.params import Field


class DigitsGraphParams(GraphParams):
    """How the graph is made, and sizes for 1,797 nodes."""

    neighbours: int = Field(
        8, ge=1, le=500, description="nearest images that an image is joined to, by Euclidean distance"
    )
    train_per_class: int = Field(5, ge=1, le=150, description="training nodes of each class (random)")
    val_size: int = Field(300, ge=1, le=1700, description="validation nodes (random)")
    test_size: int = Field(0, ge=0, le=1700, description="test nodes (random); 0 = all that are left")


class DigitsGraph(GraphTask):
    """1,797 images of 8x8 pixels (scikit-learn), each joined to its nearest ones and to those it is nearest to; few
    have a label.
    """

    dataset = "digits_graph"
    models = ("node",)
    title = "Nearest-neighbour graph of digits"
    kind = "node_classification"
    embedded = True

    Params = DigitsGraphParams
    params: DigitsGraphParams

    def read(self) -> Graph:
        arrays = data.load("digits")
        images = np.concatenate([arrays["train_x"], arrays["test_x"]]).reshape(1797, 64)
        y = np.concatenate([arrays["train_y"], arrays["test_y"]])
        return Graph(images.astype(np.float32) / 16, nearest_neighbours(images, self.params.neighbours), y)

    def source(self) -> dict[str, str]:
        return data.provenance("digits")


def nearest_neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """Edges ``(2, E)`` between each of ``points`` ``(n, d)``, whole numbers, and its ``count`` nearest others; of
    equals the earlier.

    Distances are exact, so that the graph is the same on every machine.
    """
    x = torch.from_numpy(points.astype(np.float64))
    square = x.square().sum(1)
    distance = square[:, None] + square - 2 * x @ x.T  # whole numbers below 2^53
    distance.fill_diagonal_(torch.inf)
    distance = distance * len(x) + torch.arange(len(x))  # no two alike
    near = distance.topk(count, largest=False).indices.numpy()
    return both_ways(np.repeat(np.arange(len(points)), count), near.ravel(), len(points))
