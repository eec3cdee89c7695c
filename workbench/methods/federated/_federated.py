"""What all federated methods share: parameters, the replay of a trace, communication through the ledger, evaluation.

A method declares its trace (who delivers when, after how many local steps: :mod:`_trace`) and its aggregator (what the server makes of what
is delivered). Timing never depends on weights, so the trace is made first and the training replays it, all clients of a server step at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tracking.codecs import Dense
from tracking.codecs.registry import codec
from workbench.method import Context, Method, Progress, derive_seed
from workbench.methods.federated._clock import Speeds
from workbench.methods.federated._local import Backend, LocalSGD, draws
from workbench.methods.federated._partition import Partition, partition
from workbench.methods.federated._trace import Trace
from workbench.methods.supervised import count_batches, recalibrate_batchnorm, test
from workbench.params import Field, Params
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


class Work(NamedTuple):
    """What is known of the ``m`` contacts of a server step besides the models."""

    clients: Tensor
    """(m,) int64."""
    steps: Tensor
    """(m,) local gradient steps each did since it last received a model."""
    staleness: Tensor
    """(m,) server steps between the version it began from and this one, 0 for the newest."""


class Aggregator(Protocol):
    """The server's rule, usable in any federated loop. Its memory, if it has one, is in ``state_dict``."""

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        """The new server model ``(P,)`` from the old one, the models the clients began from and those they deliver, both ``(m, P)``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """Base of aggregators that remember nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FederatedParams(Params):
    """What every federated training has."""

    clients: int = Field(100, ge=1, le=1_000_000, description="number of clients n")
    local_steps: int = Field(20, ge=1, le=10_000, description="most gradient steps a client does with one model (K)")
    lr: float = Field(0.5, gt=0, le=100, description="learning rate of the clients' plain SGD")
    batch_size: int = Field(128, ge=1, le=65_536, description="samples a gradient step, drawn with replacement from the client's own")
    horizon: float = Field(5000.0, gt=0, le=1e9, description="virtual time at which the training ends, in units of the step times")
    report_every: float = Field(50.0, gt=0, description="virtual time between reports")
    eval_every: float = Field(250.0, gt=0, description="virtual time between evaluations")
    partition: Literal["iid", "shards", "dirichlet"] = Field("iid", description="how samples are shared out among clients")
    classes_per_client: int = Field(2, ge=1, description="classes a client holds, for shards")
    concentration: float = Field(0.3, gt=0, le=1000, description="concentration of the class mix, for Dirichlet: small is uneven")
    step_law: Literal["exponential", "geometric", "fixed"] = Field("exponential", description="law of the time of one gradient step")
    slow_fraction: float = Field(1 / 3, ge=0, le=1, description="share of slow clients")
    fast_time: float = Field(2.0, gt=0, description="mean time of a gradient step on a fast client")
    slow_time: float = Field(16.0, gt=0, description="mean time of a gradient step on a slow client")
    slow_first: bool = Field(False, description="the first clients are the slow ones, so that speed and classes may go together; else at random")
    backend: Backend = Field("auto", description="how clients are trained together: matmul, vmap, loop, or the best known for the network")
    upload: Literal["dense_fp32", "dense_bf16", "qsgd", "int8", "int4", "lattice"] = Field(
        "dense_fp32", description="encoding of deliveries: models (dense, lattice) or differences to the model begun from")
    lattice_bits: int = Field(14, ge=2, le=24, description="bits a value, for the lattice")
    lattice_side: float = Field(1e-4, gt=0, description="side of the lattice's cells")
    qsgd_levels: int = Field(16, ge=1, le=4096, description="levels of QSGD")
    on_divergence: Literal["stop", "drop"] = Field("stop", description="a client delivers nan or inf: end the run, or leave its delivery out")


@dataclass
class FederatedState:
    """All that the federation remembers between two server steps."""

    server: Tensor
    versions: dict[int, Tensor]
    """Server models, by server step, that some delivery still to come began from."""
    own: dict[int, Tensor]
    """Models of clients that do not simply take over the server's, by client."""
    aggregator: Aggregator
    step: int = 0
    samples: int = 0
    gradients: int = 0
    diverged: int = 0
    before: float = 0.0
    """Virtual time before the last report."""


class FederatedTraining(Method):
    """Replays a trace: local training, uploads, aggregation, downloads."""

    family = "federated"
    Params = FederatedParams
    params: FederatedParams

    # --- what a method declares ---------------------------------------------------------------------------

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        """When who delivers what; from one seed."""
        raise NotImplementedError

    def aggregator(self) -> Aggregator:
        """The server's rule."""
        raise NotImplementedError

    def client_lr(self) -> float:
        """Learning rate of the clients."""
        return self.params.lr

    def kept(self, before: Tensor, end: Tensor) -> Tensor | None:
        """Models ``(m, P)`` the contacted clients go on from, when that is not simply the new server model; ``before``: the one it replaces."""
        return None

    # --- the contract -------------------------------------------------------------------------------------

    def init(self, task: SupervisedTask, ctx: Context) -> FederatedState:
        p = self.params
        # trace and partition follow from the parameters and the seed: they are no memory of the algorithm
        self.client_speeds = self.speeds(ctx)
        self.schedule = self.trace(derive_seed(ctx.seed, "clock"), self.client_speeds)
        self.schedule.check()
        labels = task.train_y.cpu().numpy()
        self.shares: Partition = partition(p.partition, labels, p.clients, seed=derive_seed(ctx.seed, "partition"),
                                           classes_per_client=p.classes_per_client, alpha=p.concentration)
        self.model = task.build_model(ctx)
        loss = torch.nn.functional.cross_entropy if task.num_classes > 2 else task.loss
        self.local = LocalSGD(self.model, loss, p.backend)
        server = self.local.flat.vector(self.model)
        last_use = np.zeros(len(self.schedule.time) + 1, np.int64)
        np.maximum.at(last_use, self.schedule.start, self.schedule.step)
        self._last_use = last_use
        state = FederatedState(server=server, versions={0: server.clone()}, own={}, aggregator=self.aggregator())
        if self.schedule.kind != "rounds":  # there a model is sent to those selected, at the beginning of their work
            self._send(server, np.unique(self.schedule.client[self.schedule.start == 0]), ctx)
        return state

    def speeds(self, ctx: Context) -> Speeds:
        """The clients' mean step times."""
        p = self.params
        return Speeds.two_classes(p.clients, slow_fraction=p.slow_fraction, fast=p.fast_time, slow=p.slow_time, law=p.step_law,
                                  slow_first=p.slow_first, seed=derive_seed(ctx.seed, "speeds"))

    def step(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        time = self.schedule.time
        state.before = now = self._now(state)
        stop = int(np.searchsorted(time, (now // self.params.report_every + 1) * self.params.report_every, side="right"))
        losses, deliveries, spread = 0.0, 0, 0.0
        for t in range(state.step, max(stop, state.step + 1)):
            ctx.poll()
            loss, distance, m = self._server_step(t, state, task, ctx)
            losses, spread, deliveries = losses + loss, spread + distance, deliveries + m
        metrics = {"clock/virtual_s": float(time[state.step - 1]), "train/samples": state.samples, "train/gradients": state.gradients,
                   "train/server_steps": state.step, "train/lr": self.client_lr()}
        if deliveries:
            metrics |= {"train/loss": losses / deliveries, "train/client_spread": self.params.clients * spread / deliveries}
        return metrics | ({"train/diverged": state.diverged} if state.diverged else {})

    def _server_step(self, t: int, state: FederatedState, task: SupervisedTask, ctx: Context) -> tuple[float, float, int]:
        """Server step ``t`` (from 0): sums over its working contacts of loss and squared distance to the server, and their number."""
        trace = self.schedule
        rows = slice(int(trace.offsets[t]), int(trace.offsets[t + 1]))
        clients = trace.client[rows]
        begun = [state.own[c] if c in state.own else state.versions[v] for c, v in zip(clients.tolist(), trace.start[rows].tolist(), strict=True)]
        start = torch.stack(begun) if begun else state.server.new_empty(0, len(state.server))
        if trace.kind == "rounds":
            self._send(state.server, clients, ctx)
        end = start.clone()
        loss = self.train(end, clients, trace.steps[rows], trace.contact[rows], task, ctx)
        worked = torch.from_numpy(trace.steps[rows] > 0)
        distance = float((end - state.server).square().sum()) if len(clients) else 0.0
        kept = torch.ones(len(clients), dtype=torch.bool)
        if self.params.on_divergence == "drop":
            kept = torch.isfinite(end).all(1).cpu()
            state.diverged += int((~kept).sum())
        before = state.server
        arrived = self._upload(start, end, clients, trace.contact[rows], kept, state, ctx)
        work = Work(torch.from_numpy(clients.astype(np.int64)), torch.from_numpy(trace.steps[rows].astype(np.int64)),
                    torch.from_numpy(t - trace.start[rows].astype(np.int64)))
        if kept.any():
            state.server = state.aggregator.aggregate(state.server, start[kept], arrived[kept], Work(*(w[kept] for w in work)))
        state.step = t + 1
        self._download(t + 1, before, end, clients, state, ctx)
        done = int(trace.steps[rows].sum())
        state.gradients += done
        state.samples += done * self.params.batch_size
        return float(loss[worked].sum()), distance, len(clients)

    def modelled(self, state: FederatedState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan]:
        """Plain fp32 SGD on the clients; the server's averaging and the network are not in it."""
        from tracking.energy_model.plan import fp32

        return self.model, (self.params.batch_size, *task.sample_shape), fp32().with_updates("sgd")

    def train(self, stack: Tensor, clients: np.ndarray, steps: np.ndarray, contacts: np.ndarray, task: SupervisedTask,
              ctx: Context) -> Tensor:
        """Local training of the rows of ``stack`` in place; each row's mean loss."""
        seed = derive_seed(ctx.seed, "batches")
        samples = []
        for client, count, contact in zip(clients.tolist(), steps.tolist(), contacts.tolist(), strict=True):
            own = self.shares.of(client)
            samples.append(own[draws(seed, client, contact, count, self.params.batch_size, len(own))])
        return self.local.train(stack, samples, lambda index: task.batch(index), self.client_lr())

    def _upload(self, start: Tensor, end: Tensor, clients: np.ndarray, contacts: np.ndarray, kept: Tensor, state: FederatedState,
                ctx: Context) -> Tensor:
        """What the server gets of ``end``, every delivery encoded and billed.

        Models are sent as they are or on the lattice round the server's; the other codecs send the difference to the model begun from, which
        the server keeps. The noise of a message belongs to (seed, client, contact).
        """
        name = self.params.upload
        arrived = []
        for i, (client, contact) in enumerate(zip(clients.tolist(), contacts.tolist(), strict=True)):
            party, rng = f"client {client}", (derive_seed(ctx.seed, "codec", client), contact)
            if not kept[i]:
                arrived.append(end[i])
            elif name.startswith("dense"):
                arrived.append(ctx.ledger.send(end[i], codec(name), "up", party))
            elif name == "lattice":
                lattice = codec(name, bits=self.params.lattice_bits, side=self.params.lattice_side, rng=rng)
                arrived.append(ctx.ledger.send(end[i], lattice, "up", party, reference=state.server))
            else:
                options = {"levels": self.params.qsgd_levels} if name == "qsgd" else {"rounding": "stochastic"}
                arrived.append(start[i] + ctx.ledger.send(end[i] - start[i], codec(name, **options, rng=rng), "up", party).to(start))
        return torch.stack(arrived).to(end) if arrived else end

    def _send(self, model: Tensor, clients: np.ndarray, ctx: Context) -> None:
        """Bill the new model's way to clients, each by itself."""
        if len(clients):
            ctx.ledger.broadcast(model, Dense(), "down", [f"client {c}" for c in clients.tolist()])

    def _download(self, version: int, before: Tensor, end: Tensor, clients: np.ndarray, state: FederatedState, ctx: Context) -> None:
        """Hand the new model to the clients and forget versions that nobody works from any more."""
        trace = self.schedule
        if trace.kind == "arrivals":  # a job goes to any client; one that is not delivered before the end has no party that we know of
            self._send(state.server, trace.client[trace.start == version], ctx)
        elif trace.kind != "rounds":
            self._send(state.server, clients, ctx)
        own = self.kept(before, end) if len(clients) else None
        if own is not None:
            state.own |= {client: row.clone() for client, row in zip(clients.tolist(), own, strict=True)}
        if self._last_use[version] > version:
            state.versions[version] = state.server.clone()
        for key in [k for k in state.versions if self._last_use[k] <= version]:
            del state.versions[key]

    def evaluate(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        model = self.local.flat.load(state.server, self.model)
        if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            recalibrate_batchnorm(model, task, 128, min(16, count_batches(len(task.train_y), 128)), ctx)
        return test(model, task, ctx)

    def _now(self, state: FederatedState) -> float:
        return float(self.schedule.time[state.step - 1]) if state.step else 0.0

    def evaluation_due(self, state: FederatedState) -> bool:
        return self._now(state) // self.params.eval_every > state.before // self.params.eval_every

    def progress(self, state: FederatedState) -> Progress:
        return Progress(state.step, len(self.schedule.time))
