"""What all federated methods share: the replay of a trace, the policy for deliveries that diverge, evaluation.

A method declares its trace (who delivers when, after how many local steps: :mod:`_trace`) and its aggregator (what the
server makes of what is delivered). Timing never depends on weights, so the trace is made first and the training replays
it, all clients of a server step at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.federation.clock import Speeds
from workbench.federation.partition import Partition, partition
from workbench.federation.trace import Trace
from workbench.method import Context, Method, Progress, derive_seed
from workbench.methods.federated._aggregator import Aggregator, Work
from workbench.methods.federated._exchange import Groups, download, upload
from workbench.methods.federated._local import LocalSGD, Samples, draws
from workbench.methods.federated._params import FederatedParams, refusal
from workbench.methods.supervised import count_batches, recalibrate_batchnorm, test
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


@dataclass
class FederatedState:
    """All that the federation remembers between two server steps."""

    server: Tensor
    versions: dict[int, Tensor]
    """Server models as clients received them, by server step, that some delivery still to come began from."""
    own: dict[int, Tensor]
    """Models of clients that do not simply take over the server's, by client."""
    aggregator: Aggregator
    step: int = 0
    samples: int = 0
    gradients: int = 0
    diverged: int = 0
    before: float = 0.0
    """Virtual time before the last report."""


class Tally(NamedTuple):
    """Sums over the contacts of a server step."""

    loss: float
    """Of mean losses, over the ``worked`` contacts that did a step."""
    worked: int
    distance: float
    """Of squared distances to the server's model, over all ``contacts``."""
    contacts: int


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

    def local_training(self, loss: Any) -> LocalSGD:
        """What the clients do; ``self.model`` is the task's network."""
        return LocalSGD(self.model, loss, self.params.backend)

    def begin_work(self, seed: int, client: int, contact: int) -> None:
        """Before the first local step of a client's work (back end ``loop`` only)."""

    def reply(self, before: Tensor, end: Tensor, clients: np.ndarray, ctx: Context) -> Tensor | None:
        """Models ``(m, P)`` that contacted clients go on from, where those are not simply the server's new model.

        ``before`` is the server's model before this step. A method that answers sends the messages itself.
        """
        return None

    # --- the contract -------------------------------------------------------------------------------------

    @classmethod
    def refuses(cls, task: SupervisedTask, params: FederatedParams) -> str | None:
        return super().refuses(task, params) or refusal(task, params)

    def init(self, task: SupervisedTask, ctx: Context) -> FederatedState:
        p = self.params
        # trace and partition follow from the parameters and the seed: they are no memory of the algorithm
        labels = task.train_y.cpu().numpy()
        self.shares: Partition = partition(
            p.partition,
            labels,
            p.clients,
            seed=derive_seed(ctx.seed, "partition"),
            classes_per_client=p.classes_per_client,
            alpha=p.concentration,
        )
        self.client_speeds = self.speeds(ctx)
        trace = self.schedule = self.trace(derive_seed(ctx.seed, "clock"), self.client_speeds)
        self.model, self.batches = task.build_model(ctx), Samples(task)
        if p.batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.model.modules()):
            raise UserError("batch_size = 1 is refused. Allowed: 2 <= x, for the network has batch norms.")
        plain = type(task).loss is SupervisedTask.loss and task.num_classes > 2
        self.local = self.local_training(F.cross_entropy if plain else task.loss)
        last_use = np.zeros(len(trace.time) + 1, np.int64)
        np.maximum.at(last_use, trace.start, trace.step)
        self._last_use, self._ends_with = last_use, Groups(last_use, len(last_use))
        self._begun_from = Groups(trace.start, len(last_use))
        server = self.local.flat.vector(self.model)
        first = (
            server
            if trace.kind == "rounds"
            else download(p, server, np.unique(trace.client[self._begun_from.of(0)]), ctx)
        )
        return FederatedState(server=server, versions={0: first.clone()}, own={}, aggregator=self.aggregator())

    def speeds(self, ctx: Context) -> Speeds:
        """The clients' step times."""
        p = self.params
        if p.step_law == "recorded":
            return Speeds.from_file(p.step_times)
        return Speeds.two_classes(
            p.clients,
            slow_fraction=p.slow_fraction,
            fast=p.fast_time,
            slow=p.slow_time,
            law=p.step_law,
            slow_first=p.slow_first,
            seed=derive_seed(ctx.seed, "speeds"),
        )

    def step(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        time = self.schedule.time
        state.before = now = self._now(state)
        stop = int(
            np.searchsorted(time, (now // self.params.report_every + 1) * self.params.report_every, side="right")
        )
        tallies = []
        for t in range(state.step, max(stop, state.step + 1)):
            tallies.append(self._server_step(t, state, ctx))
            if not math.isfinite(tallies[-1].loss):
                break
        loss, worked, distance, contacts = map(sum, zip(*tallies, strict=True))
        metrics = {
            "clock/virtual_s": float(time[state.step - 1]),
            "train/samples": state.samples,
            "train/gradients": state.gradients,
            "train/server_steps": state.step,
            "train/lr": self.client_lr(),
        }
        if worked:
            metrics["train/loss"] = loss / worked
        if contacts:
            metrics["train/client_spread"] = self.params.clients * distance / contacts
        return metrics | ({"train/diverged": state.diverged} if state.diverged else {})

    def _server_step(self, t: int, state: FederatedState, ctx: Context) -> Tally:
        """Server step ``t`` (from 0). A loss that is not finite says that a delivery diverged and the run is to end."""
        trace = self.schedule
        rows = slice(int(trace.offsets[t]), int(trace.offsets[t + 1]))
        clients, steps, contacts = trace.client[rows], trace.steps[rows], trace.contact[rows]
        state.step, before = t + 1, state.server
        state.gradients += int(steps.sum())
        state.samples += int(steps.sum()) * self.params.batch_size
        if not len(clients):
            self._answer(t + 1, before, before.new_empty(0, len(before)), clients, state, ctx)
            return Tally(0.0, 0, 0.0, 0)
        start = self._begun(rows, state, ctx)
        end = start.clone()
        loss = self.train(end, clients, steps, contacts, ctx)
        kept = self._judge(start, end, state)
        if self.params.on_divergence == "stop" and not kept.all():
            return Tally(math.nan, 1, 0.0, 0)
        good = np.flatnonzero(kept)
        if len(good):
            some = slice(None) if kept.all() else torch.from_numpy(good).to(end.device)
            arrived = upload(self.params, start[some], end[some], clients[good], contacts[good], before, ctx)
            work = Work(
                *(torch.from_numpy(column[good].astype(np.int64)) for column in (clients, steps, t - trace.start[rows]))
            )
            state.server = state.aggregator.aggregate(before, start[some], arrived, work)
        counted = torch.from_numpy(kept & (steps > 0)).to(loss.device)
        distance = (end - before).square().sum(1)[torch.from_numpy(kept).to(end.device)]
        end[torch.from_numpy(~kept).to(end.device)] = before  # whoever diverged goes on from a model that is one
        self._answer(t + 1, before, end, clients, state, ctx)
        return Tally(float(loss[counted].sum()), int(counted.sum()), float(distance.sum()), len(good))

    def _begun(self, rows: slice, state: FederatedState, ctx: Context) -> Tensor:
        """Models ``(m, P)`` that the contacts' work began from."""
        clients = self.schedule.client[rows]
        if self.schedule.kind == "rounds":  # a model is sent to those selected, at the beginning of their work
            return download(self.params, state.server, clients, ctx).repeat(len(clients), 1)
        versions = self.schedule.start[rows].tolist()
        return torch.stack(
            [
                state.own[c] if c in state.own else state.versions[v]
                for c, v in zip(clients.tolist(), versions, strict=True)
            ]
        )

    def train(
        self, stack: Tensor, clients: np.ndarray, steps: np.ndarray, contacts: np.ndarray, ctx: Context
    ) -> Tensor:
        """Local training of the rows of ``stack`` in place; each row's mean loss."""
        seed, samples = derive_seed(ctx.seed, "batches"), []
        for client, count, contact in zip(clients.tolist(), steps.tolist(), contacts.tolist(), strict=True):
            own = self.shares.of(client)
            samples.append(own[draws(seed, client, contact, count, self.params.batch_size, len(own))])

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            ctx.poll()
            return self.batches(index)

        return self.local.train(
            stack,
            samples,
            batch,
            self.client_lr(),
            lambda i: self.begin_work(ctx.seed, int(clients[i]), int(contacts[i])),
        )

    def _judge(self, start: Tensor, end: Tensor, state: FederatedState) -> np.ndarray:
        """Which deliveries are finite, (m,) bool, after those that are too long were shortened in place."""
        kept = torch.isfinite(end).all(1)
        state.diverged += int((~kept).sum())
        if self.params.on_divergence == "clip":
            length = (end - start).norm(dim=1)
            far = kept & (length > self.params.clip_norm)
            state.diverged += int(far.sum())
            shrink = (self.params.clip_norm / length[far]).unsqueeze(1)
            end[far] = start[far] + shrink * (end[far] - start[far])
        return kept.cpu().numpy()

    def _answer(
        self, version: int, before: Tensor, end: Tensor, clients: np.ndarray, state: FederatedState, ctx: Context
    ) -> None:
        """Send the new model on, keep it while work begins from it, and forget versions that no work begins from."""
        trace = self.schedule
        going = self.reply(before, end, clients, ctx) if len(clients) else None
        if going is not None:
            state.own.update((c, row.clone()) for c, row in zip(clients.tolist(), going, strict=True))
        else:
            received = state.server
            if (
                trace.kind == "arrivals"
            ):  # a job goes to any client; of one not delivered before the end we know no party
                received = download(self.params, state.server, trace.client[self._begun_from.of(version)], ctx)
            elif trace.kind != "rounds":
                received = download(self.params, state.server, clients, ctx)
            if self._last_use[version] > version and trace.kind != "rounds":
                state.versions[version] = received
        for used_up in self._ends_with.of(version).tolist():
            state.versions.pop(used_up, None)

    def modelled(self, state: FederatedState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """Plain fp32 SGD on the clients; the server's averaging and the network are not in it."""
        from tracking.energy_model.plan import fp32

        return self.model, (self.params.batch_size, *task.sample_shape), fp32().with_updates("sgd")

    def evaluate(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        return self.quality(self.local.flat.load(state.server, self.model), task, ctx)

    def quality(self, model: nn.Module, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Test figures of a network whose batch norms, if any, get statistics of training samples first."""
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            recalibrate_batchnorm(model, task, 128, min(16, count_batches(len(task.train_y), 128)), ctx)
        return test(model, task, ctx)

    def _now(self, state: FederatedState) -> float:
        return float(self.schedule.time[state.step - 1]) if state.step else 0.0

    def evaluation_due(self, state: FederatedState) -> bool:
        return self._now(state) // self.params.eval_every > state.before // self.params.eval_every

    def progress(self, state: FederatedState) -> Progress:
        return Progress(state.step, len(self.schedule.time))
