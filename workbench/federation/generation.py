"""What all generators of traces share: the clients with their streams and presence, the end, and what to remember."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tracking.errors import UserError
from workbench.federation.availability import Availability, Presence
from workbench.federation.clock import TIE, Speeds, stream
from workbench.federation.timeline import Trace, assemble


class Run:
    """One generation of a trace.

    ``transfer``, (n,): time that a client's messages take for each of its deliveries, up and down together; ``None``:
    none. A client neither works meanwhile nor begins before.
    """

    def __init__(self, speeds: Speeds, K: int, horizon: float | None, server_steps: int | None, seed: int,
                 availability: Availability | None, transfer: np.ndarray | None = None, **facts: Any) -> None:
        if K < 1:
            raise UserError(f"K, the local steps, is at least 1; given {K}.")
        if horizon is None and server_steps is None:
            raise UserError("Say when the trace ends: give horizon (virtual time), server_steps, or both.")
        if (horizon is not None and not 0 < horizon < np.inf) or (server_steps is not None and server_steps < 1):
            raise UserError("The trace ends at a finite horizon > 0 or after server_steps >= 1; "
                            f"given {horizon} and {server_steps}.")
        if availability is not None and horizon is None:
            raise UserError("Availability needs a horizon, up to which the clients' presence is drawn.")
        if min(facts.get("waiting", 0), facts.get("interaction", 0)) < 0:
            raise UserError("The server's waiting and interaction times are not negative.")
        if transfer is not None:
            transfer = np.asarray(transfer, float)
            if transfer.shape != (speeds.n,) or not np.isfinite(transfer).all() or transfer.min() < 0:
                raise UserError(f"transfer holds {speeds.n} finite times of messages, one a client, none negative.")
            facts |= {"transfer": transfer.tolist()}
        self.speeds, self.n, self.K, self.seed, self.transfer = speeds, speeds.n, K, seed, transfer
        self.horizon = math.inf if horizon is None else float(horizon) * (1 + TIE)
        self.limit = math.inf if server_steps is None else server_steps
        self.presence = Presence(self.n, availability and availability.spans(self.n, seed, self.horizon))
        facts |= {"horizon": horizon, "server_steps": server_steps}
        facts |= {"availability": availability and availability.facts()}
        self.facts = {"K": K, "seed": seed, **{k: v for k, v in facts.items() if v is not None}, **speeds.facts()}
        self._streams: dict[int, np.random.Generator] = {}

    def rng(self, client: int) -> np.random.Generator:
        if client not in self._streams:
            self._streams[client] = stream(self.seed, "steps", client)
        return self._streams[client]

    def work(self, client: int, jobs: int) -> np.ndarray:
        """(jobs,) times of the client's next jobs of K steps each, with those of their messages."""
        times = self.speeds.draw(client, self.rng(client), (jobs, self.K)).sum(1)
        return times if self.transfer is None else times + self.transfer[client]

    def periods(self, length: float) -> int:
        """Periods of one length that fit in the horizon."""
        if not length > 0:
            raise UserError(f"A server step must take time; given {length:g}.")
        return int(min(self.horizon / length, self.limit))

    def trace(self, kind: str, time: Any, step: Any, client: Any, steps: Any, start: Any, began: Any) -> Trace:
        if not len(time):
            raise UserError(f"No server step of {kind!r} is done by the horizon of {self.facts['horizon']:g}. "
                            "Choose a later one.")
        return assemble(kind, self.n, time, step, client, steps, start, began, self.facts)
