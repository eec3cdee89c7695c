"""What follows from a task's graph and is wanted in every step, made once for each task object."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.graphs.inputs import normalise_rows

T = TypeVar("T")

_made: WeakKeyDictionary[GraphTask, tuple[Tensor, dict[Hashable, object]]] = WeakKeyDictionary()


def derived(task: GraphTask, name: Hashable, make: Callable[[], T]) -> T:
    """``make()``, kept under ``name`` for as long as the task is there and has the same graph. Do not write into it."""
    source, kept = _made.get(task, (None, {}))
    if source is not task.edge_index:  # set up anew, on another device perhaps
        kept = {}
        _made[task] = task.edge_index, kept
    if name not in kept:
        kept[name] = make()
    return kept[name]


def sparse_inputs(task: GraphTask, norm: str) -> Tensor:
    """The task's features with rows of unit norm, ``(N, P)``, sparse CSR where that pays."""
    return derived(task, ("inputs", norm), lambda: sparse_where_worth(normalise_rows(task.x, norm)))


def sparse_where_worth(x: Tensor, limit: float = 0.2) -> Tensor:
    """``x`` as sparse CSR where at most a share ``limit`` of its entries is not zero; else ``x`` itself."""
    return x.to_sparse_csr() if torch.count_nonzero(x) <= limit * x.numel() else x
