"""Asynchronous DGL: no module waits for another; a replay buffer stands before each but the first.

Belilovsky, Leconte, Caccia, Eickenberg & Oyallon, "Decoupled greedy learning of CNNs for synchronous and asynchronous distributed
learning", arXiv:2106.06401; Algorithm 2 of arXiv:1901.08164.
"""

from __future__ import annotations

from torch import nn

from workbench.decoupled import Channel
from workbench.method import Context
from workbench.methods.decoupled._asynchronous import AsynchronousMethod, AsynchronousParams
from workbench.methods.decoupled._channels import Encoding, channels
from workbench.params import Field
from workbench.task import SupervisedTask


class AsynchronousDGL(AsynchronousMethod):
    """DGL in which every module goes at its own pace, on batches that the one before left in a buffer."""

    id = "async_dgl"
    title = "Asynchronous DGL"
    family = "decoupled"
    paper = "arXiv:2106.06401"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "head": "linear"}}
    published = {"source": "the authors' buffer experiments on CIFAR-10, by their code", "params": {
        "epochs": 50, "batch_size": 128, "base": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "lr_decay": 0.2,
        "lr_decay_epochs": [15, 30, 45], "schedule": "random", "head": "mlp", "reset_momentum": True}}

    class Params(AsynchronousParams):
        codec: Encoding = Field("dense_fp32", description="encoding of the activations that modules send and buffers hold")

    params: Params

    def links(self, task: SupervisedTask, network: nn.Module, ctx: Context) -> list[Channel]:
        return channels(self.params, task, ctx)
