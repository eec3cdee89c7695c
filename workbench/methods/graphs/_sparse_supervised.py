"""Supervised training of networks whose first layer takes sparse features."""

from __future__ import annotations

from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.methods.graphs._derived import sparse_inputs
from workbench.methods.graphs._supervised import NodeClassifier


class SparseNodeClassifier(NodeClassifier):
    """The common training, with features as sparse CSR where few are not zero: products and dropout then cost what is stored."""

    def inputs(self, task: GraphTask) -> Tensor:
        return sparse_inputs(task, self.params.normalise)
