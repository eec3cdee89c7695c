"""What tests of one-bit networks share: a small task whose network has a layer between its first and its last."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests import lowbit_helpers as h
from workbench.method import Context
from workbench.task import SupervisedParams, SupervisedTask


class DeepBlobs(h.Blobs):
    """Blobs with a network of three layers, so that one is between the first and the last."""

    def build_model(self, ctx: Context) -> nn.Module:
        model = super().build_model(ctx)
        g = ctx.generator("init", cpu=True)
        inner = nn.Linear(16, 16, bias=False)
        with torch.no_grad():
            inner.weight.copy_((2 * torch.rand(16, 16, generator=g) - 1) / 4)
        return nn.Sequential(*list(model)[:3], inner, nn.BatchNorm1d(16, affine=False), nn.ReLU(), *list(model)[3:])


def begin(method: type, **params: object) -> tuple[Any, Any, SupervisedTask, Context]:
    """A method before its first step on :class:`DeepBlobs`: ``(method, state, task, context)``."""
    return h.begin(method, DeepBlobs("", SupervisedParams()), **{"epochs": 6, "batch_size": 40, **params})
