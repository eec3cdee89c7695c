"""The control of Boolean training: the same network, whose Boolean layers stay as they were drawn; only the real-valued ends learn.

With random Boolean layers in between, the first and the last layer alone learn a good deal, so the accuracy of a Boolean network says
little about Boolean training by itself. What counts is the gain over this control at the same budget.
"""

from __future__ import annotations

import torch
from torch import nn

from workbench.boolean import split_parameters
from workbench.method import Context
from workbench.methods.lowbit._boolean import BooleanNetworkTraining
from workbench.methods.supervised import plain_optimizer


class FrozenBoolean(BooleanNetworkTraining):
    """Boolean layers frozen at random, first and last layer trained: what Boolean training has to beat."""

    id = "frozen_boolean"
    title = "Frozen Boolean layers (control)"
    family = "lowbit"
    paper = ""
    kinds = ("classification", "superresolution", "segmentation", "text_classification")
    example = {"task": "digits/mlp", "params": {"epochs": 10, "lr": 0.01}}

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        model = super().prepare(model, ctx)
        for p in split_parameters(model)[0]:
            p.requires_grad_(False)
        return model

    def optimizer(self, model: nn.Module, ctx: Context) -> torch.optim.Optimizer:
        return plain_optimizer(split_parameters(model)[1], self.params)
