"""What all federated methods share: the replay of a trace, the policy for deliveries that diverge, evaluation.

A method declares its trace (who delivers when, after how many local steps: :mod:`workbench.federation.trace`) and its
aggregator (what the server makes of what is delivered). Timing never depends on weights, so the trace is made first and
the training replays it, all clients of a server step at once; where server steps take in one delivery each, all jobs
whose first model is there.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.federation.clock import Speeds
from workbench.federation.partition import Partition, partition
from workbench.federation.trace import Trace
from workbench.method import Context, Method, Progress, View, derive_seed
from workbench.methods.federated._aggregator import Aggregator, Work
from workbench.methods.federated._clients import client_views
from workbench.methods.federated._exchange import Groups, Layout, download, upload
from workbench.methods.federated._local import Job, Samples, draws
from workbench.methods.federated._local_askew import LocalAskewSGD
from workbench.methods.federated._network import availability, transfer_times
from workbench.methods.federated._params import FederatedParams, refusal
from workbench.methods.federated._quantised import calibrated, local_training, parts, precision
from workbench.methods.federated._state import FederatedState, Request, Tally
from workbench.methods.supervised import test
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


MAX_WAVE = 256
"""Contacts trained before their turn, at most: models held for it."""


class FederatedTraining(Method):
    """Replays a trace: local training, uploads, aggregation, downloads."""

    family = "federated"
    Params = FederatedParams
    params: FederatedParams
    transfer: np.ndarray | None = None
    """(n,) virtual time of a client's messages; known from ``init`` on, where they take any."""
    batches: Samples | None = None
    """Training samples by index; ``init`` makes the table unless it is there, as with replicas of one training."""

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
        self.shares: Partition = partition(p.partition, labels, p.clients, seed=derive_seed(ctx.seed, "partition"),
                                           classes_per_client=p.classes_per_client, alpha=p.concentration)
        self.client_speeds = self.speeds(ctx)
        self.model, self.batches = task.build_model(ctx), self.batches or Samples(task)
        if p.batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.model.modules()):
            raise UserError("batch_size = 1 is refused. Allowed: 2 <= x, for the network has batch norms.")
        plain = type(task).loss is SupervisedTask.loss and task.num_classes > 2
        self.local = local_training(p, self.model, F.cross_entropy if plain else task.loss)
        self.parts = parts(self.local)
        self.transfer = transfer_times(p, self.local, ctx.seed)
        trace = self.schedule = self.trace(derive_seed(ctx.seed, "clock"), self.client_speeds)
        last_use = np.zeros(len(trace.time) + 1, np.int64)
        np.maximum.at(last_use, trace.start, trace.step)
        self._last_use, self._ends_with = last_use, Groups(last_use, len(last_use))
        self._begun_from = Groups(trace.start, len(last_use))
        server = self.local.flat.vector(self.model)
        first = server
        if trace.kind != "rounds":
            first = download(p, server, np.unique(trace.client[self._begun_from.of(0)]), ctx)
        return FederatedState(server=server, versions={0: first.clone()}, own={}, aggregator=self.aggregator())

    def speeds(self, ctx: Context) -> Speeds:
        """The clients' step times."""
        p = self.params
        if p.step_law == "recorded":
            return Speeds.from_file(p.step_times)
        return Speeds.two_classes(p.clients, slow_fraction=p.slow_fraction, fast=p.fast_time, slow=p.slow_time, law=p.step_law,
                                  slow_first=p.slow_first, seed=derive_seed(ctx.seed, "speeds"))

    def clock(self, seed: int) -> dict[str, Any]:
        """What every generator of traces takes, beside the speeds."""
        p = self.params
        common = {"K": p.local_steps, "horizon": p.horizon, "seed": seed}
        return common | {"availability": availability(p), "transfer": self.transfer}

    def step(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        work, losses = self.advance(state, ctx), None
        while True:
            try:
                request = work.send(losses)
            except StopIteration as ended:
                return ended.value
            losses = self.train(request, ctx)

    def views(self, state: FederatedState, task: SupervisedTask) -> list[View]:
        """Who delivered when, and how much each client has contributed so far."""
        return client_views(self.schedule, state.step)

    def train(self, request: Request, ctx: Context) -> Tensor:
        """Do the local training that a step asks for; each row's mean loss."""

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            ctx.poll()
            return self.batches(index)

        return self.local.train(request.stack, request.samples, batch, request.lr, request.jobs)

    def advance(self, state: FederatedState, ctx: Context) -> Generator[Request, Tensor, dict[str, float]]:
        """A step that leaves local training to others: yields what is to be trained, is sent the losses, returns the metrics."""
        time = self.schedule.time
        state.before = now = self._now(state)
        stop = int(np.searchsorted(time, (now // self.params.report_every + 1) * self.params.report_every, side="right"))
        tallies = []
        for t in range(state.step, max(stop, state.step + 1)):
            tallies.append((yield from self._server_step(t, state, ctx)))
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

    def _server_step(self, t: int, state: FederatedState, ctx: Context) -> Generator[Request, Tensor, Tally]:
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
        if not len(state.ahead):
            wave = self._wave(t, rows)
            ahead = start.clone() if wave == rows else self._begun(wave, state, ctx)
            state.ahead_loss = yield self._request(wave, ahead, state, ctx)
            state.ahead, state.delivered = ahead, 0  # once they are trained: a stop comes in between
        due = slice(state.delivered, state.delivered + len(start))
        end, loss, state.delivered = state.ahead[due], state.ahead_loss[due], due.stop
        if due.stop == len(state.ahead):
            state.ahead, state.ahead_loss, state.delivered = before.new_empty(0, 0), before.new_empty(0), 0
        kept = self._judge(start, end, state)
        if self.params.on_divergence == "stop" and not kept.all():
            return Tally(math.nan, 1, 0.0, 0)
        good = np.flatnonzero(kept)
        if len(good):
            some = slice(None) if kept.all() else torch.from_numpy(good).to(end.device)
            layout = Layout(self.parts, state.scales)
            arrived = upload(self.params, start[some], end[some], clients[good], contacts[good], before, ctx, layout)
            work = Work(*(torch.from_numpy(column[good].astype(np.int64)) for column in (clients, steps, t - trace.start[rows])))
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
        return torch.stack([state.own[c] if c in state.own else state.versions[v]
                            for c, v in zip(clients.tolist(), versions, strict=True)])

    def _wave(self, t: int, rows: slice) -> slice:
        """The contacts to train together when ``rows``, those of server step ``t`` (from 0), are due.

        Where a server step takes in one delivery, also the next ones whose work began from a model that is there. Which
        these are follows from the trace alone, not from where a report or a stop cuts it.
        """
        if self.schedule.kind != "arrivals":
            return rows
        later = np.flatnonzero(self.schedule.start[rows.start : rows.start + MAX_WAVE] > t)
        return slice(rows.start, rows.start + int(later[0]) if len(later) else min(rows.start + MAX_WAVE, len(self.schedule.client)))

    def _request(self, rows: slice, stack: Tensor, state: FederatedState, ctx: Context) -> Request:
        """Local training of the contacts ``rows``, whose work began from the rows of ``stack``."""
        trace, seed, samples, jobs = self.schedule, derive_seed(ctx.seed, "batches"), [], []
        progress = (trace.began[rows] / self.params.horizon).tolist()
        columns = (trace.client[rows].tolist(), trace.contact[rows].tolist(), trace.steps[rows].tolist(), progress)
        for client, contact, steps, share in zip(*columns, strict=True):
            own = self.shares.of(client)
            samples.append(own[draws(seed, client, contact, steps, self.params.batch_size, len(own))])
            jobs.append(Job(ctx.seed, client, contact, share, self._scales(share, state)))
        return Request(stack, samples, self.client_lr(), jobs)

    def _scales(self, progress: float, state: FederatedState) -> tuple[float, ...]:
        """The scales that a client works with; the server's model fixes them for good when the first client needs them."""
        if not isinstance(self.local, LocalAskewSGD) or not self.local.constrains(progress):
            return ()
        state.scales = state.scales or self.local.measured(state.server)
        return state.scales

    def _judge(self, start: Tensor, end: Tensor, state: FederatedState) -> np.ndarray:
        """Which deliveries are finite, (m,) bool, after those that are too long were shortened in place."""
        kept = end.sum(1).isfinite()  # infinity and NaN reach the sum; it is one pass instead of three, and cannot pass over one
        if not kept.all():  # a sum may also overflow on its own
            kept = end.isfinite().all(1)
        state.diverged += int((~kept).sum())
        if self.params.on_divergence == "clip":
            length = (end - start).norm(dim=1)
            far = kept & (length > self.params.clip_norm)
            state.diverged += int(far.sum())
            shrink = (self.params.clip_norm / length[far]).unsqueeze(1)
            end[far] = start[far] + shrink * (end[far] - start[far])
        return kept.cpu().numpy()

    def _answer(self, version: int, before: Tensor, end: Tensor, clients: np.ndarray, state: FederatedState, ctx: Context) -> None:
        """Send the new model on, keep it while work begins from it, and forget versions that no work begins from."""
        trace = self.schedule
        going = self.reply(before, end, clients, ctx) if len(clients) else None
        if going is not None:
            state.own.update((c, row.clone()) for c, row in zip(clients.tolist(), going, strict=True))
        else:
            received = state.server
            if trace.kind == "arrivals":  # a job goes to any client; of one not delivered before the end we know no party
                received = download(self.params, state.server, trace.client[self._begun_from.of(version)], ctx)
            elif trace.kind != "rounds":
                received = download(self.params, state.server, clients, ctx)
            if self._last_use[version] > version and trace.kind != "rounds":
                state.versions[version] = received
        for used_up in self._ends_with.of(version).tolist():
            state.versions.pop(used_up, None)

    def modelled(self, state: FederatedState, task: SupervisedTask) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """SGD on the clients in its formats; the server's averaging and the network are not in it."""
        return self.model, (self.params.batch_size, *task.sample_shape), precision(self.params, self.model).with_updates("sgd")

    def evaluate(self, state: FederatedState, task: SupervisedTask, ctx: Context) -> dict[str, float]:
        """Test figures of the server's model; of a quantised one under the plain names, beside those of the model it comes from."""
        p, model = self.params, self.local.flat.load(state.server, self.model)
        figures = test(calibrated(model, task, ctx), task, ctx)
        if p.local == "sgd":
            return figures
        deployed = calibrated(self.local.deployed(model, state.scales), task, ctx)
        return {f"{name}_latent": value for name, value in figures.items()} | test(deployed, task, ctx)

    def _now(self, state: FederatedState) -> float:
        return float(self.schedule.time[state.step - 1]) if state.step else 0.0

    def evaluation_due(self, state: FederatedState) -> bool:
        return self._now(state) // self.params.eval_every > state.before // self.params.eval_every

    def progress(self, state: FederatedState) -> Progress:
        return Progress(state.step, len(self.schedule.time))
