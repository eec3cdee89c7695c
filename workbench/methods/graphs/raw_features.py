"""Node features as they are: what a probe reaches without the graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.method import Context, Progress
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding


@dataclass
class FixedState:
    """Nothing is learnt: whether the one step is done."""

    done: int = 0


class FixedFeatures(NodeEmbedding):
    """Base of the methods whose features need no learning: one step, in which nothing happens."""

    params: EmbeddingParams

    def init(self, task: GraphTask, ctx: Context) -> FixedState:
        return FixedState()

    def step(self, state: FixedState, task: GraphTask, ctx: Context) -> dict[str, float]:
        state.done = 1
        return {}

    def progress(self, state: FixedState) -> Progress:
        return Progress(state.done, 1)


class RawFeatures(FixedFeatures):
    """The node features alone, under the same probe as every representation: what the graph has to improve on."""

    id = "raw_features"
    title = "Raw features"
    family = "graphs"
    paper = ""
    kinds = ("node_classification",)
    example = {"task": "digits_graph/node", "params": {}}

    def features(self, state: FixedState, task: GraphTask, ctx: Context) -> Tensor:
        return self.inputs(task)
