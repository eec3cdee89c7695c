"""SGC: features averaged over neighbourhoods a few times, and nothing else.

Wu, Souza, Zhang, Fifty, Yu & Weinberger, "Simplifying Graph Convolutional Networks", ICML 2019, arXiv:1902.07153.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.method import Context, Progress
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.params import Field


@dataclass
class SGCState:
    """All that the method remembers."""

    x: Tensor
    """``Â^k X`` for the last k, ``(N, P)``."""
    done: int = 0


class SGC(NodeEmbedding):
    """The features ``Â^K X`` of a simplified graph convolution, with the common probe as its classifier."""

    id = "sgc"
    title = "SGC"
    family = "graphs"
    paper = "arXiv:1902.07153"
    kinds = ("node_classification",)
    example = {
        "task": "sbm/node",
        "task_params": {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60},
        "params": {},
    }

    class Params(EmbeddingParams):
        k: int = Field(2, ge=1, le=100, description="times that features are averaged")
        normalise: Literal["none", "l1", "l2"] = Field(
            "l1", description="norm to which each node's features are brought first"
        )

    def init(self, task: GraphTask, ctx: Context) -> SGCState:
        return SGCState(self.inputs(task))

    def step(self, state: SGCState, task: GraphTask, ctx: Context) -> dict[str, float]:
        state.x = task.averaging("symmetric", 1)(state.x)
        state.done += 1
        return {"train/epoch": state.done}

    def features(self, state: SGCState, task: GraphTask, ctx: Context) -> Tensor:
        return state.x

    def progress(self, state: SGCState) -> Progress:
        return Progress(state.done, self.params.k)
