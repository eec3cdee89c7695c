"""Zachary's karate club: 34 people and who met whom outside the club."""

from __future__ import annotations

import numpy as np

from workbench.datasets.graphs import Graph, GraphParams, GraphTask
from workbench.graphs.block_model import both_ways
from workbench.params import Field

# W. W. Zachary, "An information flow model for conflict and fission in small groups", J. Anthropol. Res. 33 (1977): for
# each person the
# later ones they met, and those who stayed with the officer when the club split
MET = {
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31),
    1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32),
    3: (7, 12, 13),
    4: (6, 10),
    5: (6, 10, 16),
    6: (16,),
    8: (30, 32, 33),
    9: (33,),
    13: (33,),
    14: (32, 33),
    15: (32, 33),
    18: (32, 33),
    19: (33,),
    20: (32, 33),
    22: (32, 33),
    23: (25, 27, 29, 32, 33),
    24: (25, 27, 31),
    25: (31,),
    26: (29, 33),
    27: (33,),
    28: (31, 33),
    29: (32, 33),
    30: (32, 33),
    31: (32, 33),
    32: (33,),
}
OFFICER = (9, 14, 15, 18, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33)


class KarateParams(GraphParams):
    """Sizes for 34 nodes."""

    train_per_class: int = Field(4, ge=1, le=16, description="training nodes of each class (random)")
    val_size: int = Field(8, ge=1, le=30, description="validation nodes (random)")
    test_size: int = Field(0, ge=0, le=30, description="test nodes (random); 0 = all that are left")


class Karate(GraphTask):
    """34 people, 78 friendships, the two sides of a split (Zachary 1977); a feature is a person's own, so the graph
    tells all.
    """

    dataset = "karate"
    models = ("node",)
    title = "Karate club"
    kind = "node_classification"
    embedded = True

    Params = KarateParams
    params: KarateParams

    def read(self) -> Graph:
        rows, columns = (
            np.array(part) for part in zip(*((a, b) for a, later in MET.items() for b in later), strict=True)
        )
        return Graph(
            np.eye(34, dtype=np.float32), both_ways(rows, columns, 34), np.isin(np.arange(34), OFFICER).astype(np.int64)
        )

    def source(self) -> dict[str, str]:
        return {"source": "Zachary (1977), typed in"}
