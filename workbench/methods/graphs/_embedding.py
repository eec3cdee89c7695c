"""Unsupervised node features and the one evaluation that all of them share: a linear probe, and clustering.

A method gives ``init``, ``step``, ``progress`` and :meth:`NodeEmbedding.features`; labels are read by the evaluation
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.graphs.clustering import adjusted_rand, kmeans, normalised_mutual_information
from workbench.graphs.inputs import normalise_rows
from workbench.graphs.probe import C_GRID, probe_blocks
from workbench.graphs.scaling import directions
from workbench.method import Context, Method, View, derive_seed
from workbench.methods.graphs._views import plane_view
from workbench.params import Field, Params


class EmbeddingParams(Params):
    """What every unsupervised method has."""

    normalise: Literal["none", "l1", "l2"] = Field(
        "l2", description="norm to which each node's features are brought first"
    )
    probe_c: tuple[float, ...] = Field(
        C_GRID, description="inverse strengths of the probe's L2 penalty; the best on the validation nodes is taken"
    )
    cluster_restarts: int = Field(
        10, ge=1, le=1000, description="k-means runs, of which the tightest gives NMI and ARI"
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 = at the end alone")


class NodeEmbedding(Method):
    """Base of the unsupervised methods on graphs."""

    kinds = ("node_classification",)

    Params = EmbeddingParams
    params: EmbeddingParams

    def inputs(self, task: GraphTask) -> Tensor:
        """The task's features, row-normalised as the parameters say, ``(N, P)``."""
        return normalise_rows(task.x, self.params.normalise)

    def features(self, state: Any, task: GraphTask, ctx: Context) -> Tensor:
        """The representation of every node as it is now, ``(N, D)`` on the device. Leaves ``state`` as it is."""
        raise NotImplementedError

    def blocks(self, state: Any, task: GraphTask, ctx: Context) -> Sequence[Tensor]:
        """The features cut into blocks ``(N, D_b)``, each of which the evaluation scales by one number.

        One block, unless a method overrides this.
        """
        return (self.features(state, task, ctx),)

    def views(self, state: Any, task: GraphTask) -> list[View]:
        """The nodes as the representation places them."""
        z = self.features(state, task, Context(task.x.device, 0))
        return [plane_view(z, task, "the representation", "Colours are labels, which the method never reads.")]

    def evaluate(self, state: Any, task: GraphTask, ctx: Context) -> dict[str, float]:
        """Accuracy of a linear probe, its scaling of blocks and its penalty chosen on validation nodes; and how k-means on
        directions agrees with labels.
        """
        blocks = self.blocks(state, task, ctx)
        ctx.poll()
        probe = probe_blocks(blocks, task.y, task.train_mask, task.val_mask, task.test_mask, self.params.probe_c)
        ctx.poll()
        labels = task.y[task.labelled]
        clusters = kmeans(
            directions(blocks)[task.labelled],
            task.num_classes,
            restarts=self.params.cluster_restarts,
            seed=derive_seed(ctx.seed, "kmeans"),
        )
        return {
            "eval/accuracy": probe.test_accuracy,
            "eval/val_accuracy": probe.val_accuracy,
            "eval/probe_c": probe.c,
            "eval/nmi": normalised_mutual_information(labels, clusters),
            "eval/ari": adjusted_rand(labels, clusters),
        }

    def evaluation_due(self, state: Any) -> bool:
        return self.params.eval_every > 0 and self.progress(state).done % self.params.eval_every == 0
