"""The wire: the standard library's manager with its bytes counted, and with nothing but plain values on it.

``multiprocessing.managers`` takes its connections from a table of serialisers, of which it brings two; this module adds a
third. It counts on the server every message as it goes through the socket, authentication and questions included: the
pickled call and the 4 bytes (12 beyond 2 GiB) with which ``multiprocessing.connection`` frames it. Headers of TCP and
IP are not in the count.
"""

from __future__ import annotations

import io
import pickle
import threading
import time
from multiprocessing import AuthenticationError, connection, managers
from typing import Any

from tracking.errors import UserError

SERIALIZER = "workbench"
ANSWER_S = 60.0
"""A client gives a silent server so long; the server's calls all return at once."""
RETRY_S = 0.2


class Lost(UserError):
    """The server is gone, or never was there."""


class Traffic:
    """Bytes through the sockets of one listener."""

    def __init__(self) -> None:
        self.received = self.sent = 0
        self._lock = threading.Lock()

    def count(self, *, received: int = 0, sent: int = 0) -> None:
        with self._lock:
            self.received += received
            self.sent += sent


class Plain(pickle.Unpickler):
    """Takes numbers, text, bytes, lists, dictionaries, and built-in exceptions or our own; nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tracking.errors", "UserError"):
            return UserError
        found = super().find_class(module, name) if module == "builtins" else None
        if isinstance(found, type) and issubclass(found, Exception):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a message of a deployment")


class PlainConnection:
    """A connection for plain values; counted where ``traffic`` is given, patient for ``limit_s`` where that is."""

    def __init__(self, raw: connection.Connection, traffic: Traffic | None = None, limit_s: float | None = None) -> None:
        self._raw, self._traffic, self._limit_s = raw, traffic, limit_s
        self.fileno, self.close, self.poll = raw.fileno, raw.close, raw.poll

    def send_bytes(self, data: bytes) -> None:
        self._raw.send_bytes(data)
        if self._traffic:
            self._traffic.count(sent=framed(len(data)))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        if self._limit_s is not None and not self._raw.poll(self._limit_s):
            raise TimeoutError(f"no answer for {self._limit_s:g} s")
        data = self._raw.recv_bytes(maxlength)
        if self._traffic:
            self._traffic.count(received=framed(len(data)))
        return data

    def send(self, value: Any) -> None:
        self.send_bytes(pickle.dumps(value, protocol=5))

    def recv(self) -> Any:
        return Plain(io.BytesIO(self.recv_bytes())).load()


def framed(length: int) -> int:
    """Bytes in the socket's stream for a message of ``length`` bytes."""
    return length + (4 if length <= 0x7FFFFFFF else 12)


class Listener(connection.Listener):
    """Accepts counted connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.traffic = Traffic()

    def accept(self) -> PlainConnection:
        return PlainConnection(super().accept(), self.traffic)


def _client(*args: Any, **kwargs: Any) -> PlainConnection:
    return PlainConnection(connection.Client(*args, **kwargs), limit_s=ANSWER_S)


managers.listener_client.setdefault(SERIALIZER, (Listener, _client))


class HubProxy(managers.BaseProxy):
    """The server's :class:`workbench.deployment.hub.Hub` as a client sees it. Raises :class:`Lost` when the server is gone."""

    _exposed_ = ("join", "poll", "deliver")

    def join(self, protocol: int, client: int, task: str | None) -> dict[str, Any]:
        return self._call("join", protocol, client, task)

    def poll(self, client: int, session: int) -> tuple:
        return self._call("poll", client, session)

    def deliver(self, client: int, session: int, contact: int, steps: int, payload: bytes) -> bool:
        return self._call("deliver", client, session, contact, steps, payload)

    def _call(self, name: str, *args: Any) -> Any:
        try:
            return self._callmethod(name, args)
        except (OSError, EOFError, AuthenticationError) as error:
            raise Lost(f"The server at {_text(self._token.address)} is gone ({_reason(error)}). This client ends.") from None
        except managers.RemoteError as error:
            raise Lost(f"The server at {_text(self._token.address)} failed: {str(error).strip().splitlines()[-2]}") from None

    def _incref(self) -> None:
        """The server keeps the hub as long as it lives: nothing is counted, and nothing to be undone at a client's end."""


class Manager(managers.BaseManager):
    """Server: ``Manager(...).get_server()`` after :func:`serve`; client: through :func:`connect`."""


Manager.register("hub", proxytype=HubProxy, exposed=HubProxy._exposed_)


def serve(hub: Any, address: tuple[str, int], authkey: bytes) -> tuple[tuple[str, int], Traffic]:
    """Serve ``hub`` to clients in threads of this process until it ends; the address it got, and the count of bytes.

    The engine has no way to take a listener back, so a process serves once and then ends.
    """

    class Serving(Manager):
        pass

    Serving.register("hub", callable=lambda: hub, proxytype=HubProxy, exposed=HubProxy._exposed_)
    try:
        server = Serving(address, authkey, SERIALIZER).get_server()
    except OSError as error:
        raise UserError(f"Cannot listen on {_text(address)}: {_reason(error)}. Choose a free port, or 0 for any.") from None
    server.create(None, "hub")  # one reference that stays, so that the last client's leave disposes of nothing
    threading.Thread(target=server.serve_forever, name="deployment server", daemon=True).start()
    return server.address, server.listener.traffic


def connect(address: tuple[str, int], authkey: bytes, patience_s: float = 30.0) -> HubProxy:
    """The hub at ``address``, which may still have to start; UserError for a wrong key or what is no such server."""
    manager = Manager(address, authkey, SERIALIZER)
    end = time.monotonic() + patience_s
    while True:
        try:
            manager.connect()
            return manager.hub()
        except AuthenticationError:
            raise UserError(f"The server at {_text(address)} refuses this key. Set WORKBENCH_DEPLOYMENT_KEY to the server's.") from None
        except (EOFError, AssertionError, pickle.UnpicklingError, managers.RemoteError):
            raise UserError(f"What answers at {_text(address)} is no server of a deployment.") from None
        except OSError as error:
            if time.monotonic() >= end:
                raise Lost(f"No server at {_text(address)} for {patience_s:g} s ({_reason(error)}).") from None
            time.sleep(RETRY_S)


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or "it closed the connection").lower()
