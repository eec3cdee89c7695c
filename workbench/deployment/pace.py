"""The server's loop: when it contacts whom, and what it makes of the deliveries.

FAVAS (Leconte, Nguyen & Moulines, arXiv:2305.16099): every ``waiting_s`` it contacts ``selected`` of the clients that it
knows to be there, uniformly, and takes in whatever has arrived ``interaction_s`` later, or earlier when all have
answered. No client can hold it up. FedBuff (Nguyen et al., arXiv:2106.06639): every ``buffer``-th delivery makes a
server step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workbench.deployment.federation import Federation
from workbench.deployment.hub import Delivery, Hub
from workbench.deployment.record import Record
from workbench.deployment.settings import Settings
from workbench.deployment.wire import Traffic
from workbench.method import derive_seed
from workbench.methods.federated._federated import Aggregator, Work

FAREWELL_S = 2.0
"""At the end, clients that are there have so long to ask and hear of it; those that come later find nobody."""


class Server:
    """A deployment's server, without its socket: :attr:`hub` is what clients talk to.

    Args:
        aggregator: any rule of the simulator's; FAVAS's with ``estimated`` re-weighting or given constants, as a real
            server does not know its clients' laws.
        initial_vector: the model to begin from, ``(P,)`` float32.
        stop: asked between looks; true ends the run.
        traffic: returns the count of the sockets, once there are some.
    """

    def __init__(self, aggregator: Aggregator, initial_vector: Tensor, settings: Settings, federation: Federation, record: Record, *,
                 stop: Callable[[], bool] = lambda: False, traffic: Callable[[], Traffic | None] = lambda: None) -> None:
        from tracking.codecs.registry import codec

        self.aggregator, self.vector, self.settings = aggregator, initial_vector, settings
        self.federation, self.record, self._stop, self._traffic = federation, record, stop, traffic
        self.hub = Hub(settings, initial_vector, codec(settings.download), settings.upload, record)
        self._selection = np.random.Generator(np.random.PCG64(derive_seed(settings.seed, "selection")))
        self._gradients, self._evaluation_s, self._begun = 0, 0.0, time.monotonic()
        self._starved = False

    def run(self) -> tuple[str, str]:
        """Lead the run to its end; (status, reason)."""
        s, hub = self.settings, self.hub
        if not hub.wait_until(lambda: len(hub.members) == s.clients, s.joining_s, self._stop) and not hub.alive():
            status, reason = "failed", f"no client joined within {s.joining_s:g} s"
        else:
            self._begun = time.monotonic()
            self.record.event("begun", None, f"{len(hub.alive())} of {s.clients} clients are there")
            while not self._over():
                (self._favas if s.method == "favas" else self._fedbuff)()
            stopped = self._stop()
            status = "stopped" if stopped else "finished"
            reason = "stopped by request" if stopped else ""
        hub.end(reason or f"the run is over after {hub.version} server steps")
        hub.wait_until(lambda: not hub.members, FAREWELL_S)
        return status, reason

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def _over(self) -> bool:
        s = self.settings
        return self._elapsed_s() >= s.seconds or (s.server_steps > 0 and self.hub.version >= s.server_steps) or self._stop()

    def _pause(self, seconds: float) -> None:
        self.hub.wait_until(lambda: False, min(seconds, max(0.0, self.settings.seconds - self._elapsed_s())), self._stop)

    # --- pace ---------------------------------------------------------------------------------------------

    def _favas(self) -> None:
        s, hub = self.settings, self.hub
        self._pause(s.waiting_s)
        alive = hub.alive()
        contacted = sorted(self._selection.choice(alive, min(s.selected, len(alive)), replace=False).tolist()) if alive else []
        hub.call(contacted)
        hub.wait_until(lambda: bool(contacted) and not hub.called(contacted), s.interaction_s, self._stop)
        self._server_step(hub.take(), contacted)

    def _fedbuff(self) -> None:
        s, hub = self.settings, self.hub
        if hub.wait_until(lambda: len(hub.inbox) >= s.buffer, s.seconds - self._elapsed_s(),
                          lambda: self._stop() or self._tell_starved()):
            self._server_step(hub.take(s.buffer), [])

    def _tell_starved(self) -> bool:
        """Say once that the buffer cannot fill with the clients that are there; one may come back, so the run goes on."""
        hub = self.hub
        able = len(hub.inbox) + sum(not member.waiting for member in hub.members.values())
        if able < self.settings.buffer and not self._starved:
            self.record.event("starved", None, f"a buffer of {self.settings.buffer} does not fill with {len(hub.members)} clients")
        self._starved = able < self.settings.buffer
        return False

    # --- a server step ------------------------------------------------------------------------------------

    def _server_step(self, deliveries: list[Delivery], contacted: list[int]) -> None:
        if not deliveries:
            return
        rows = [(d, end) for d in deliveries if (end := self._arrived(d)) is not None]
        if rows:
            work = Work(*(torch.tensor(column) for column in (
                [d.client for d, _ in rows], [d.steps for d, _ in rows], [self.hub.version - d.version for d, _ in rows])))
            self.vector = self.aggregator.aggregate(self.vector, torch.stack([d.start for d, _ in rows]),
                                                    torch.stack([end for _, end in rows]), work)
        self.hub.publish(self.vector, deliveries)
        self._gradients += sum(d.steps for d in deliveries)
        self._report([d for d, _ in rows], contacted)

    def _arrived(self, d: Delivery) -> Tensor | None:
        """The model a client delivered; ``None``, and an event, when it is of no use."""
        if not d.payload:
            self.record.event("diverged", d.client, "its model holds nan or inf: it begins anew from the current model")
            return None
        try:
            end = self.federation.decode(d.payload, d.start, self.vector)
        except ValueError as error:
            self.record.event("refused", d.client, str(error))
            return None
        if not torch.isfinite(end).all():
            self.record.event("diverged", d.client, "its delivery holds nan or inf")
            return None
        return end

    def _report(self, rows: list[Delivery], contacted: list[int]) -> None:
        t, s, traffic = self.hub.version, self.settings, self._traffic()
        metrics = {"train/server_steps": t, "train/gradients": self._gradients, "train/samples": self._gradients * s.batch_size,
                   "clock/wall_s": self._elapsed_s() - self._evaluation_s, **self.hub.ledger.metrics()}
        row = {"step": t, "contacted": contacted, "clients": [d.client for d in rows], "steps": [d.steps for d in rows],
               "staleness": [t - 1 - d.version for d in rows], "contacts": [d.contact for d in rows],
               "up_bytes": sum(len(d.payload) for d in rows), "total_up_bytes": metrics["comm/up_bytes"],
               "total_down_bytes": metrics["comm/down_bytes"]}
        if traffic:
            row |= {"wire_up_bytes": traffic.received, "wire_down_bytes": traffic.sent}
        if s.eval_every and t % s.eval_every == 0:
            began = time.monotonic()
            metrics |= self.federation.evaluate(self.vector)
            self._evaluation_s += time.monotonic() - began
        self.record.step(row, metrics)
