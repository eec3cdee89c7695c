"""The trace of a federation in virtual time: who delivered what to which server step, and the rules it keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ONE_A_STEP = ("contacts", "rounds", "buffered", "windows")  # schemes with one delivery a client and server step at most
FULL_WORK = ("rounds", "buffered", "arrivals", "windows")  # schemes in which every delivery is of K steps


@dataclass(frozen=True, eq=False)
class Trace:
    """What happens when, before any weight is known: ``T`` server steps with ``C`` contacts in all.

    Server steps, and the model versions they make, are numbered 1..T; version 0 is the model at time 0.
    """

    n: int
    """Clients."""
    time: np.ndarray
    """(T,) float64: virtual time at which server step t is done."""
    offsets: np.ndarray
    """(T+1,) int64: the contacts of server step t are ``offsets[t-1]:offsets[t]``."""
    client: np.ndarray
    """(C,) int32."""
    steps: np.ndarray
    """(C,) int32: gradient steps the client did since it last received a model (``E ^ K``)."""
    start: np.ndarray
    """(C,) int32: version the client's work began from."""
    contact: np.ndarray
    """(C,) int32: contacts this client had before; with (seed, client) the key of its randomness."""
    began: np.ndarray
    """(C,) float64: virtual time at which it received that version."""
    kind: str
    """Name of the scheme."""
    facts: dict[str, Any]
    """Parameters it was made with, all of them JSON values."""

    @property
    def step(self) -> np.ndarray:
        """(C,) int64: server step of each contact, from 1 on."""
        return np.repeat(np.arange(1, len(self.offsets)), np.diff(self.offsets))

    @property
    def staleness(self) -> np.ndarray:
        """(C,) int64: server steps made between the version that work began from and the step that takes it in."""
        return self.step - 1 - self.start

    @property
    def step_time(self) -> float:
        """Mean virtual time between two server steps (C_x in the tables of rates); with one step, the time up to it."""
        return float((self.time[-1] - self.time[0]) / (len(self.time) - 1) if len(self.time) > 1 else self.time[0])

    def deliveries(self) -> np.ndarray:
        """(n,) int64: contacts of each client."""
        return np.bincount(self.client, minlength=self.n)

    def alive_versions(self) -> np.ndarray:
        """(T,) int64: versions to hold when server step t comes: those from which it or a later one starts."""
        T = len(self.time)
        last = np.zeros(T + 1, np.int64)
        np.maximum.at(last, self.start, self.step)
        used = np.flatnonzero(last)
        change = np.zeros(T + 2, np.int64)
        np.add.at(change, used + 1, 1)
        np.add.at(change, last[used] + 1, -1)
        return change.cumsum()[1:T + 1]

    def table(self) -> pd.DataFrame:
        """One row a contact: step, time, client, steps, start, staleness, contact, began."""
        import pandas as pd

        columns = ("step", "time", "client", "steps", "start", "staleness", "contact", "began")
        return pd.DataFrame({c: self.time[self.step - 1] if c == "time" else getattr(self, c) for c in columns})

    def save(self, path: str | Path) -> None:
        """Write an npz file (compressed, no pickle)."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        with open(path, "wb") as file:  # np.savez would append .npz to another suffix
            np.savez_compressed(file, **{**arrays, "facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what :meth:`save` wrote, and check it."""
        names = [f.name for f in fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as file:
                data = {name: file[name] for name in names}
            data.update(n=int(data["n"]), kind=str(data["kind"]), facts=json.loads(str(data["facts"])))
        except FileNotFoundError:
            raise UserError(f"There is no trace file {path}.") from None
        except Exception as error:
            raise UserError(f"{path} is not a trace file: it needs the arrays {', '.join(names)} ({error}).") from None
        return cls(**data).check()

    def check(self) -> Trace:
        """Return the trace if it keeps all rules, or raise ``UserError`` with the first one broken, and where."""
        self._check_shapes()
        step = self.step
        if self.kind in ("contacts", "rounds", "windows"):
            self._hold(np.diff(self.time) > 0, "server steps take time", "server step {}", offset=2)
        self._hold(np.diff(self.time) >= 0, "server steps are in order of time", "server step {}", offset=2)
        self._hold((self.client >= 0) & (self.client < self.n), f"clients are numbered 0..{self.n - 1}")
        self._hold(self.steps >= 0, "a client does 0 steps or more")
        early = (self.start >= 0) & (self.start < step)
        self._hold(early, "work begins from a version before the step that takes it in (0 <= start < step)")
        self._hold(self.contact == running_count(self.client), "contact counts the client's contacts before this one")
        made = np.append(0.0, self.time)[self.start]
        self._hold(self.began >= made, "a version is received when it has been made, not before")
        self._hold(self.began <= self.time[step - 1], "work begins before it is delivered")
        order = np.argsort(self.client, kind="stable")
        same = np.diff(self.client[order]) == 0
        for name in ("start", "began"):
            ordered = np.ones(len(order), bool)
            ordered[order[1:]] = ~same | (np.diff(getattr(self, name)[order]) >= 0)
            self._hold(ordered, f"a client works first in, first out ({name} never falls back)")
        self._check_scheme(step, order, same)
        return self

    def _check_scheme(self, step: np.ndarray, order: np.ndarray, same: np.ndarray) -> None:
        """Rules of the scheme by name; another name (a measured trace, say) has the general rules only."""
        K = self.facts.get("K")
        if self.kind in ONE_A_STEP:
            once = np.ones(len(order), bool)
            once[order[1:]] = ~(same & (np.diff(step[order]) == 0))
            self._hold(once, "a client has one contact a server step")
        if self.kind in FULL_WORK and K is not None:
            self._hold(self.steps == K, f"every delivery is of K = {K} steps")
        if self.kind == "contacts" and K is not None:
            self._hold(self.steps <= K, f"a client does at most K = {K} steps")
        if self.kind == "contacts":
            received = np.ones(len(order), bool)
            received[order[1:]] = self.start[order[1:]] == np.where(same, step[order[:-1]], 0)
            self._hold(received, "a client works from the model of its last contact")
        if self.kind == "rounds":
            self._hold(self.start == step - 1, "a round begins from the newest model")
        if self.kind in ("buffered", "arrivals"):
            each = int(self.facts.get("Z", 1))
            self._hold(np.diff(self.offsets) == each, f"a server step takes in {each} deliveries", "server step {}", 1)

    def _check_shapes(self) -> None:
        T, C = len(self.time), len(self.client)
        contacts = dict.fromkeys(("client", "steps", "start", "contact"), ("int32", C))
        wanted = {"time": ("float64", T), "offsets": ("int64", T + 1), **contacts, "began": ("float64", C)}
        for name, (dtype, size) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (size,):
                raise UserError(f"Trace refused: {name} is {array.dtype}{list(array.shape)}, not {dtype}[{size}].")
            if dtype == "float64":
                self._hold(np.isfinite(array) & (array >= 0), f"{name} is finite and not negative", "index {}")
        if self.n < 1 or T < 1:
            raise UserError(f"Trace refused: it needs a client and a server step; it has {self.n} and {T}.")
        if self.offsets[0] != 0 or self.offsets[-1] != C or (np.diff(self.offsets) < 0).any():
            raise UserError(f"Trace refused: offsets must rise from 0 to the number of contacts, {C}.")

    def _hold(self, kept: np.ndarray, rule: str, where: str = "contact {}", offset: int = 0) -> None:
        if not kept.all():
            at = where.format(int(np.argmin(kept)) + offset)
            raise UserError(f"Trace refused: {rule}. Broken at {at}, and {int((~kept).sum()) - 1} more. Make it anew.")


def running_count(client: np.ndarray) -> np.ndarray:
    """How often each entry's value occurs before it, (C,) int32."""
    order = np.argsort(client, kind="stable")
    position = np.arange(len(order))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(client[order]) != 0
    count = np.empty(len(order), np.int32)
    count[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    return count


def assemble(kind: str, n: int, time: np.ndarray, step: np.ndarray, client: np.ndarray, steps: np.ndarray,
             start: np.ndarray, began: np.ndarray, facts: dict[str, Any]) -> Trace:
    """Build a trace from contacts in order of ``step`` (server step of each, from 1 on), and check it."""
    time = np.asarray(time, np.float64)
    client = np.asarray(client, np.int32)
    offsets = np.searchsorted(np.asarray(step, np.int64), np.arange(1, len(time) + 2)).astype(np.int64)
    steps = np.broadcast_to(np.asarray(steps, np.int32), client.shape).copy()
    start, began = np.asarray(start, np.int32), np.asarray(began, np.float64)
    return Trace(n, time, offsets, client, steps, start, running_count(client), began, kind, facts).check()
