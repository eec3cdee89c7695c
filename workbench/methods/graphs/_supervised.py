"""Full-batch training of a graph network on labelled nodes, with early stopping: what the supervised references share.

A method gives :meth:`NodeClassifier.network`. Reported is the test accuracy of the network as it was at its best on the
stopping nodes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.datasets.graphs import GraphTask
from workbench.graphs.inputs import normalise_rows
from workbench.graphs.randomness import lent
from workbench.method import Context, Method, Progress, View
from workbench.methods.graphs._views import plane_view
from workbench.params import Field, Params


class ClassifierParams(Params):
    """What every supervised training on a graph has; the defaults are those of Kipf & Welling (ICLR 2017)."""

    epochs: int = Field(200, ge=1, le=100_000, description="full-batch steps at most")
    lr: float = Field(0.01, gt=0, le=10, description="learning rate of Adam")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="L2 penalty, on the parameters that the network names")
    hidden: int = Field(16, ge=1, le=4096, description="units of a hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of units dropped in training")
    patience: int = Field(
        0, ge=0, le=100_000, description="epochs without progress on the stopping nodes that end it; 0 = never"
    )
    stop_on: Literal["loss", "accuracy"] = Field("loss", description="what counts as progress on the stopping nodes")
    normalise: Literal["none", "l1", "l2"] = Field(
        "l1", description="norm to which each node's features are brought first"
    )
    eval_every: int = Field(10, ge=0, description="epochs between evaluations; 0 = at the end alone")


@dataclass
class ClassifierState:
    """All that a training remembers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    noise: torch.Generator
    best: dict[str, Tensor]
    """Parameters and buffers at the best epoch so far."""
    best_loss: float = float("inf")
    best_accuracy: float = -1.0
    best_epoch: int = 0
    epoch: int = 0


class NodeClassifier(Method):
    """Base of the supervised references on graphs."""

    kinds = ("node_classification",)

    Params = ClassifierParams
    params: ClassifierParams

    def network(self, task: GraphTask) -> nn.Module:
        """A fresh network, ``forward(x, edge_index) -> logits (N, num_classes)``; random numbers may come from the
        global generators, which are lent the run's own while this is called and in training.
        """
        raise NotImplementedError

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for Adam. By default the penalty is on all parameters."""
        return [{"params": list(model.parameters()), "weight_decay": self.params.weight_decay}]

    def inputs(self, task: GraphTask) -> Tensor:
        """The task's features, row-normalised as the parameters say, ``(N, P)``."""
        return normalise_rows(task.x, self.params.normalise)

    def init(self, task: GraphTask, ctx: Context) -> ClassifierState:
        with lent(ctx.generator("init", cpu=True)):
            model = self.network(task)
        model = model.to(ctx.device)
        optimizer = torch.optim.Adam(self.parameter_groups(model), lr=self.params.lr)
        return ClassifierState(model, optimizer, ctx.generator("noise"), copy.deepcopy(model.state_dict()))

    def step(self, state: ClassifierState, task: GraphTask, ctx: Context) -> dict[str, float]:
        x = self.inputs(task)
        state.model.train()
        state.optimizer.zero_grad(set_to_none=True)
        with lent(state.noise):
            logits = state.model(x, task.edge_index)
        loss = F.cross_entropy(logits[task.train_mask], task.y[task.train_mask])
        loss.backward()
        state.optimizer.step()
        state.epoch += 1
        stopping_loss, accuracy = self.measure(state.model, x, task, task.stopping_mask)
        ahead = stopping_loss < state.best_loss if self.params.stop_on == "loss" else accuracy > state.best_accuracy
        if ahead or state.epoch == 1:
            state.best_loss, state.best_accuracy, state.best_epoch = stopping_loss, accuracy, state.epoch
            state.best = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
        return {
            "train/loss": loss.item(),
            "train/epoch": state.epoch,
            "train/val_loss": stopping_loss,
            "train/val_accuracy": accuracy,
        }

    @torch.no_grad()
    def measure(self, model: nn.Module, x: Tensor, task: GraphTask, mask: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy on the nodes of a mask, without dropout; the model's mode is put back."""
        was_training = model.training
        model.eval()
        logits, y = model(x, task.edge_index)[mask], task.y[mask]
        model.train(was_training)
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()

    def evaluate(self, state: ClassifierState, task: GraphTask, ctx: Context) -> dict[str, float]:
        best = copy.deepcopy(state.model)
        best.load_state_dict(state.best)
        x = self.inputs(task)
        loss, accuracy = self.measure(best, x, task, task.test_mask)
        return {
            "eval/loss": loss,
            "eval/accuracy": accuracy,
            "eval/val_accuracy": self.measure(best, x, task, task.val_mask)[1],
        }

    @torch.no_grad()
    def views(self, state: ClassifierState, task: GraphTask) -> list[View]:
        """The nodes as the logits of the best network so far place them."""
        best = copy.deepcopy(state.model)
        best.load_state_dict(state.best)
        z = best.eval()(self.inputs(task), task.edge_index)
        return [plane_view(z, task, "the logits", f"All labelled nodes; network of epoch {state.best_epoch}.")]

    def evaluation_due(self, state: ClassifierState) -> bool:
        return self.params.eval_every > 0 and state.epoch % self.params.eval_every == 0

    def progress(self, state: ClassifierState) -> Progress:
        p = self.params
        ended = p.patience and state.epoch - state.best_epoch >= p.patience
        return Progress(state.epoch, state.epoch if ended else p.epochs)
