"""What a deployment is told: one set of values, checked on the server and handed to every client that joins."""

from __future__ import annotations

import os
from typing import Literal, Self

from pydantic import model_validator

from tracking.errors import UserError
from workbench.methods.federated._federated import Aggregator
from workbench.methods.federated.favas import FAVAS
from workbench.methods.federated.fedbuff import FedBuff
from workbench.params import Field, Params

PROTOCOL = 1
"""Version of the calls between client and server; both must have the same."""
KEY = "WORKBENCH_DEPLOYMENT_KEY"
"""Environment variable with the secret that all processes of a deployment share."""
ADDRESS = "address"
"""File of the run folder with ``host:port`` of the server, there as soon as it can be joined."""


class Settings(Params):
    """Method, task and pace of a deployment. Times are real seconds."""

    method: Literal["favas", "fedbuff"] = Field("favas", description="the server's rule")
    task: str = Field("digits/perceptron", description="id of a supervised task")
    seed: int = Field(0, ge=0, description="seed of the initial model, the partition, the batches and the selection")
    clients: int = Field(4, ge=1, le=10_000, description="client numbers are 0 to this less 1 (n)")
    local_steps: int = Field(20, ge=1, le=10_000, description="most gradient steps a client does with one model (K)")
    lr: float = Field(0.1, gt=0, le=100, description="learning rate of the clients' plain SGD")
    batch_size: int = Field(32, ge=1, le=65_536, description="samples a gradient step, drawn with replacement")
    partition: Literal["iid", "shards", "dirichlet"] = Field("iid", description="how samples are shared out among clients")
    classes_per_client: int = Field(2, ge=1, description="classes a client holds, for shards")
    concentration: float = Field(0.3, gt=0, le=1000, description="concentration of the class mix, for Dirichlet")
    selected: int = Field(2, ge=1, description="FAVAS: clients contacted a server step (s)")
    waiting_s: float = Field(0.1, ge=0, le=86_400, description="FAVAS: time between the end of a server step and the next contacts")
    interaction_s: float = Field(
        0.1, gt=0, le=3600, description="FAVAS: longest wait for the answers; one that comes later counts in the next server step")
    mean_steps: tuple[float, ...] = Field(
        (), description="FAVAS: E[E ^ K] by client, as the constant divisors; empty = estimated from the client's own contacts")
    buffer: int = Field(2, ge=1, description="FedBuff: deliveries of a server step (Z)")
    server_lr: float = Field(1.0, gt=0, le=10, description="FedBuff: step of the server along the mean difference")
    staleness: Literal["none", "sqrt"] = Field("none", description="FedBuff: weight of a difference tau steps old: 1, or (1 + tau)^(-1/2)")
    upload: Literal["dense_fp32", "dense_bf16", "qsgd", "int8", "int4", "lattice"] = Field(
        "dense_fp32", description="encoding of deliveries: models (dense, lattice) or differences to the model begun from")
    download: Literal["dense_fp32", "dense_bf16"] = Field("dense_fp32", description="encoding of the models sent to clients")
    lattice_bits: int = Field(14, ge=2, le=24, description="bits a value, for the lattice")
    lattice_side: float = Field(1e-4, gt=0, description="side of the lattice's cells")
    qsgd_levels: int = Field(16, ge=1, le=4096, description="levels of QSGD")
    seconds: float = Field(10.0, gt=0, le=1e7, description="real time of the run, from its first to its last contact")
    server_steps: int = Field(0, ge=0, description="end after so many server steps, if that is sooner; 0 = no such end")
    eval_every: int = Field(0, ge=0, description="server steps between evaluations; 0 = only the last model")
    joining_s: float = Field(60.0, ge=0, le=86_400, description="the run begins when all clients are there, or this long after the start")
    silence_s: float = Field(
        5.0, gt=0, le=3600,
        description="a client not heard of for so long is left out, a tenth of a second later at most; longer than any gradient step")
    poll_s: float = Field(0.01, gt=0, le=60, description="time between two questions of a client that has nothing to do")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of each process")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "favas" and self.selected > self.clients:
            raise ValueError(f"selected = {self.selected} clients a step, and there are {self.clients}")
        if self.method == "fedbuff" and self.buffer > self.clients:
            raise ValueError(f"a client waits for the server step that takes its delivery in, so a buffer of {self.buffer} "
                             f"never fills with {self.clients} clients")
        if self.mean_steps and (len(self.mean_steps) != self.clients or min(self.mean_steps) <= 0):
            raise ValueError(f"mean_steps has {len(self.mean_steps)} values, smallest {min(self.mean_steps):g}; "
                             f"needed: one above 0 for each of {self.clients} clients")
        if self.poll_s >= self.silence_s:
            raise ValueError(f"poll_s = {self.poll_s:g} is not below silence_s = {self.silence_s:g}: idle clients would be left out")
        return self

    def aggregator(self) -> Aggregator:
        """The simulator's own rule."""
        import torch

        if self.method == "fedbuff":
            return FedBuff(self.server_lr, self.staleness)
        if self.mean_steps:
            return FAVAS("deterministic", self.clients, mean_steps=torch.tensor(self.mean_steps))
        return FAVAS("estimated", self.clients)


def key() -> bytes:
    """The secret of the environment; UserError when there is none."""
    secret = os.environ.get(KEY, "")
    if not secret:
        raise UserError(f"Set the environment variable {KEY} to the secret of this deployment, the same for the server and every client.")
    return secret.encode()


def parse_address(text: str) -> tuple[str, int]:
    """``host:port`` as a pair."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise UserError(f"Address {text!r} is refused. Write host:port, such as 127.0.0.1:5701.")
    return host, int(port)
