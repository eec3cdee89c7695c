"""The meeting point: who is there, who was contacted, what was delivered, which model each client works from.

Clients call :meth:`Hub.join`, :meth:`Hub.poll` and :meth:`Hub.deliver`, each from a thread of its own; all return at
once, so nobody waits for anybody here. The server's loop (:mod:`workbench.deployment.pace`) uses the rest. Every model
and every delivery crosses as an encoded payload and is billed by its length.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tracking.codecs import Codec
from tracking.errors import UserError
from tracking.ledger import Ledger
from workbench.deployment.record import Record
from workbench.deployment.settings import PROTOCOL, Settings

LOOK_S = 0.1
"""The server looks for silent clients this often."""


@dataclass
class Member:
    """A client that is there."""

    session: int
    seen: float
    contact: int
    """How many models this client number has been sent before the one it works from: the number of its coming contact."""
    version: int
    start: Tensor
    """The model it works from, as it decoded it."""
    called: bool = False
    waiting: bool = False
    """Has delivered and got no new model yet."""
    ready: bool = False
    """The model that answers its delivery is there."""


class Delivery(NamedTuple):
    """What a client sent at a contact."""

    client: int
    session: int
    contact: int
    steps: int
    version: int
    start: Tensor
    payload: bytes


class Hub:
    """State shared by the server's loop and the threads that serve clients.

    Args:
        vector: the initial model ``(P,)``.
        down: codec of models sent to clients.
        up: name of the codec of deliveries, for the ledger.
    """

    def __init__(self, settings: Settings, vector: Tensor, down: Codec, up: str, record: Record) -> None:
        self.settings, self.record, self.ledger = settings, record, Ledger()
        self.members: dict[int, Member] = {}
        self.inbox: list[Delivery] = []
        self.version = -1
        self._down, self._up, self._dense = down, up, 4 * vector.numel()
        self._contacts: dict[int, int] = {}  # models sent, by client number
        self._sessions = 0
        self._ended = ""
        self._changed = threading.Condition()
        self.publish(vector, [])

    # --- what clients call --------------------------------------------------------------------------------

    def join(self, protocol: int, client: int, task: str | None) -> dict[str, Any]:
        """Take ``client`` in (again): its session, the settings and the current model. UserError says why not."""
        with self._changed:
            self._admit(protocol, client, task)
            if client in self.members:
                self._leave(client, "replaced", "another process joined under its number")
            # what an earlier session delivered is not this one's: a server step takes one delivery a client
            if any(d.client == client for d in self.inbox):
                self.inbox = [d for d in self.inbox if d.client != client]
                self.record.event("discarded", client, "a delivery of the session before")
            self._sessions += 1
            again = client in self._contacts
            self.members[client] = member = Member(self._sessions, time.monotonic(), 0, 0, self._start)
            self.record.event("rejoined" if again else "joined", client, f"session {member.session}")
            version, contact, payload = self._hand_out(client, member)
            self._changed.notify_all()
            return {"settings": self.settings.model_dump(mode="json"), "session": member.session, "version": version,
                    "contact": contact, "payload": payload}

    def poll(self, client: int, session: int) -> tuple:
        """What ``client`` is to do: ``work``, ``deliver``, ``wait``, take a ``model``, ``rejoin``, or go: ``end``, ``replaced``."""
        with self._changed:
            if self._ended:
                if self._known(client, session):
                    del self.members[client]  # told: the server need not wait for it
                    self._changed.notify_all()
                return ("end", self._ended)
            if not self._known(client, session):
                return ("replaced",) if client in self.members else ("rejoin",)
            member = self.members[client]
            member.seen = time.monotonic()
            if member.ready:
                return ("model", *self._hand_out(client, member))
            if member.waiting:
                return ("wait",)
            return ("deliver",) if member.called else ("work",)

    def deliver(self, client: int, session: int, contact: int, steps: int, payload: bytes) -> bool:
        """Take a delivery; False when it is of no use any more. An empty payload: the client's model holds nan or inf."""
        with self._changed:
            if self._ended:  # what comes after the end is no part of the run
                return False
            member = self.members.get(client)
            good = (self._known(client, session) and contact == member.contact and not member.waiting
                    and 0 <= steps <= self.settings.local_steps)
            self._bill("up", client, len(payload), self._up, "sent" if good else "discarded")
            if good:
                member.seen, member.called, member.waiting = time.monotonic(), False, True
                self.inbox.append(Delivery(client, session, contact, steps, member.version, member.start, payload))
                self._changed.notify_all()
            return good

    # --- what the server's loop calls ---------------------------------------------------------------------

    def alive(self) -> list[int]:
        """Clients that are there, ascending."""
        with self._changed:
            return sorted(self.members)

    def call(self, clients: Collection[int]) -> None:
        """Contact clients: each delivers what it has as soon as it asks."""
        with self._changed:
            for client in clients:
                if client in self.members and not self.members[client].waiting:
                    self.members[client].called = True

    def called(self, clients: Collection[int]) -> bool:
        """Whether one of ``clients`` is there and has not answered yet."""
        return any(client in self.members and self.members[client].called for client in clients)

    def wait_until(self, true: Callable[[], bool], timeout_s: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait for ``true()``, which may look at this hub, for ``timeout_s`` at most or until ``stop()``; leave silent clients out."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not true():
                left = end - time.monotonic()
                if left <= 0 or stop():
                    return False
                self._changed.wait(min(left, LOOK_S))
                self._leave_silent()
            return True

    def take(self, count: int | None = None) -> list[Delivery]:
        """The deliveries that arrived first: all, or ``count``."""
        with self._changed:
            taken, self.inbox = self.inbox[:count], self.inbox[len(self.inbox) if count is None else count:]
            return taken

    def publish(self, vector: Tensor, deliveries: list[Delivery]) -> None:
        """Make ``vector`` the current model and answer ``deliveries`` with it, as soon as their clients ask."""
        payload = self._down.encode(vector)
        start = self._down.decode(payload)
        with self._changed:
            self.version += 1
            self._payload, self._start = payload, start
            for d in deliveries:
                if self._known(d.client, d.session):
                    self.members[d.client].ready = True

    def end(self, reason: str) -> None:
        """Tell every client that asks from now on that the run is over."""
        with self._changed:
            self._ended = reason

    # --- inside, with the lock held -----------------------------------------------------------------------

    def _admit(self, protocol: int, client: int, task: str | None) -> None:
        n = self.settings.clients
        if protocol != PROTOCOL:
            raise UserError(f"This client speaks version {protocol} of the protocol, the server version {PROTOCOL}. "
                            "Run the same version of the project on both.")
        if isinstance(client, bool) or not isinstance(client, int) or not 0 <= client < n:
            raise UserError(f"Client number {client!r} is refused. Allowed: 0 to {n - 1}.")
        if task not in (None, self.settings.task):
            raise UserError(f"The server trains {self.settings.task!r}, this client was told {task!r}. "
                            "Leave the task out, or name the server's.")
        if self._ended:
            raise UserError(f"The run is over: {self._ended}.")

    def _known(self, client: int, session: int) -> bool:
        return client in self.members and self.members[client].session == session

    def _hand_out(self, client: int, member: Member) -> tuple[int, int, bytes]:
        member.version, member.start = self.version, self._start
        member.contact = self._contacts.get(client, 0)
        self._contacts[client] = member.contact + 1
        member.waiting = member.ready = False
        self._bill("down", client, len(self._payload), self._down.name, "sent")
        return member.version, member.contact, self._payload

    def _bill(self, direction: str, client: int, size: int, codec: str, kind: str) -> None:
        self.ledger.bill(size, codec, direction, f"client {client}", kind=kind, dense_bytes=self._dense)
        self.record.message(direction, client, size, codec, kind, self.version)

    def _leave_silent(self) -> None:
        now = time.monotonic()
        for client, member in list(self.members.items()):
            if now - member.seen > self.settings.silence_s:
                self._leave(client, "left out", f"not heard of for {now - member.seen:.2f} s")

    def _leave(self, client: int, event: str, note: str) -> None:
        del self.members[client]
        self.record.event(event, client, note)
