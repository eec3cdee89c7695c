"""Embeddings learnt by skip-gram on random walks: the loop that DeepWalk and node2vec share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.method import Context, Progress
from workbench.methods.graphs._derived import derived
from workbench.methods.graphs._embedding import EmbeddingParams, NodeEmbedding
from workbench.methods.graphs._skipgram import HuffmanTree
from workbench.methods.graphs._walks import Neighbours, random_walks
from workbench.params import Field


class WalkParams(EmbeddingParams):
    """What both have. Adam in place of word2vec's plain SGD, and its rate, are ours; the rate falls linearly to 0, as word2vec's does."""

    dim: int = Field(128, ge=1, le=4096, description="size of the representation")
    walks_per_node: int = Field(10, ge=1, le=1000, description="walks from each node")
    walk_length: int = Field(80, ge=2, le=1000, description="nodes of a walk")
    window: int = Field(10, ge=1, le=1000, description="steps before and after a node that are its context")
    batch_walks: int = Field(64, ge=16, le=65_536, description="walks of an optimiser's step")
    lr: float = Field(0.02, gt=0, le=10, description="learning rate of Adam at the start")
    report_every: int = Field(10, ge=1, le=1000, description="optimiser's steps between reports")


@dataclass
class WalkState:
    """All that the training remembers."""

    inputs: Tensor
    """Vectors of the nodes as centre, ``(N, d)``: the representation."""
    outputs: Tensor
    """Vectors of the nodes as context, or of a tree's inner nodes."""
    optimizer: torch.optim.Optimizer
    walks: torch.Generator
    order: Tensor
    """Starts of the walks of this pass."""
    tree: HuffmanTree | None = None
    done: int = 0


class WalkEmbedding(NodeEmbedding):
    """Base of the methods that read walks as sentences. Features are not looked at; a node without edges has the vector zero."""

    Params = WalkParams
    params: WalkParams

    # --- what a method overrides ------------------------------------------------------------------------

    def walk(self, graph: Neighbours, start: Tensor, generator: torch.Generator) -> Tensor:
        """Walks from these nodes, ``(B, walk_length)``."""
        return random_walks(graph, start, self.params.walk_length, generator)

    def loss(self, state: WalkState, graph: Neighbours, walks: Tensor) -> Tensor:
        """Mean loss of a batch of walks over its pairs of centre and context."""
        raise NotImplementedError

    def tree(self, graph: Neighbours) -> HuffmanTree | None:
        """The tree over the nodes, where the loss needs one."""
        return None

    # --- the loop ---------------------------------------------------------------------------------------

    def init(self, task: GraphTask, ctx: Context) -> WalkState:
        p, graph, generator = self.params, self.graph(task), ctx.generator("init", cpu=True)
        inputs = (
            ((torch.rand(task.num_nodes, p.dim, generator=generator) - 0.5) / p.dim).to(ctx.device).requires_grad_()
        )
        outputs = torch.zeros(task.num_nodes, p.dim, device=ctx.device, requires_grad=True)
        starts = torch.nonzero(graph.degree).squeeze(1)
        return WalkState(
            inputs,
            outputs,
            torch.optim.Adam([inputs, outputs], lr=p.lr),
            ctx.generator("walks"),
            starts,
            self.tree(graph),
        )

    def graph(self, task: GraphTask) -> Neighbours:
        return derived(task, "neighbours", lambda: Neighbours.of(task.edge_index, task.num_nodes))

    def step(self, state: WalkState, task: GraphTask, ctx: Context) -> dict[str, float]:
        p, graph, losses = self.params, self.graph(task), []
        batches = self._batches(state)
        for _ in range(p.report_every):
            at = state.done % batches
            if at == 0:  # a new pass over all nodes, in another order
                shuffle = torch.randperm(len(state.order), generator=state.walks, device=state.order.device)
                state.order = state.order[shuffle]
            for group in state.optimizer.param_groups:
                group["lr"] = p.lr * (1 - state.done / (batches * p.walks_per_node))
            walks = self.walk(graph, state.order[at * p.batch_walks : (at + 1) * p.batch_walks], state.walks)
            loss = self.loss(state, graph, walks)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            state.optimizer.step()
            losses.append(loss.item())
            state.done += 1
            if state.done >= batches * p.walks_per_node:
                break
        return {"train/loss": sum(losses) / len(losses), "train/epoch": state.done / batches}

    def _batches(self, state: WalkState) -> int:
        """Optimiser's steps of a pass: one walk from each node that has an edge."""
        return -(-len(state.order) // self.params.batch_walks)

    def features(self, state: WalkState, task: GraphTask, ctx: Context) -> Tensor:
        alone = self.graph(task).degree == 0
        return state.inputs.detach().masked_fill(alone[:, None], 0.0)

    def progress(self, state: WalkState) -> Progress:
        return Progress(state.done, self._batches(state) * self.params.walks_per_node)
