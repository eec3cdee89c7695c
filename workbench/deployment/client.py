"""A client as a command: ``python -m workbench.deployment.client --address server.example:5701 --client 3``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from torch import Tensor

from tracking.codecs.registry import codec
from tracking.errors import UserError
from workbench.deployment.federation import Federation
from workbench.deployment.settings import KEY, PROTOCOL, Settings, key, parse_address
from workbench.deployment.wire import HubProxy, Lost, connect
from workbench.params import parse


class Client:
    """Local SGD on a client's own samples, interruptible before every gradient step.

    It asks the server before each step whether it was contacted; if so it delivers what it has after ``E ^ K`` steps,
    takes the new model and begins anew. After K steps it is idle under FAVAS, and delivers by itself under FedBuff.

    Args:
        slowdown_s: artificial time before each gradient step, in which it goes on asking: a contact then interrupts the
            step, which is lost, as in the simulator.
    """

    def __init__(self, hub: HubProxy, client: int, *, task: str | None = None, slowdown_s: float = 0.0) -> None:
        self.hub, self.client, self.told, self.slowdown_s = hub, client, task, slowdown_s
        self.federation: Federation | None = None
        self.session = self.steps = 0
        self.due = 0.0

    def run(self) -> str:
        """Work until the server ends the run, and return its reason; comes back by itself after having been left out."""
        while True:
            self._join()
            while (word := self._turn()) is None:
                pass
            if word != "rejoin":
                return word

    def _join(self) -> None:
        given = self.hub.join(PROTOCOL, self.client, self.told)
        if self.federation is None:
            self.federation = Federation(parse(Settings, given["settings"], "the server's deployment"))
            self.own = self.federation.samples(self.client)
            self.settings = self.federation.settings
        self.session = given["session"]
        self._begin(given["version"], given["contact"], given["payload"])

    def _begin(self, version: int, contact: int, payload: bytes) -> None:
        self.start: Tensor = codec(self.settings.download).decode(payload)
        self.w, self.contact, self.steps = self.start.clone(), contact, 0
        self.samples = self.federation.batches(self.client, contact, self.own)
        self.due = time.monotonic() + self.slowdown_s

    def _turn(self) -> str | None:
        """Ask, and do what is to be done; a word when that is to end or to join again."""
        word, *given = self.hub.poll(self.client, self.session)
        if word == "end":
            return given[0]
        if word == "rejoin":
            return word
        if word == "replaced":
            raise UserError(f"Another process joined as client {self.client}. This one ends.")
        full = self.steps == self.settings.local_steps
        if word == "model":
            self._begin(*given)
        elif word == "deliver" or (word == "work" and full and self.settings.method == "fedbuff"):
            payload = self.federation.encode(self.start, self.w, self.client, self.contact)
            self.hub.deliver(self.client, self.session, self.contact, self.steps, payload)
        elif word == "wait" or full:
            time.sleep(self.settings.poll_s)
        elif (left := self.due - time.monotonic()) > 0:
            time.sleep(min(left, self.settings.poll_s))
        else:
            self.federation.train_step(self.w, self.samples[self.steps])
            self.steps += 1
            self.due = time.monotonic() + self.slowdown_s
        return None


def client_main(address: str, authkey: bytes, client: int, task: str | None = None, *, slowdown_s: float = 0.0,
                patience_s: float = 30.0) -> str:
    """Take part as ``client`` in the deployment at ``address`` (``host:port``) until it ends; why it ended.

    Everything else is the server's to say. ``task`` is only checked, when given. Raises
    :class:`~workbench.deployment.wire.Lost` when there is no server for ``patience_s``, or when it is gone, and
    :class:`~tracking.errors.UserError` for a wrong key, number, task or version of the protocol.
    """
    return Client(connect(parse_address(address), authkey, patience_s), client, task=task, slowdown_s=slowdown_s).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 the run is over, 1 the server is gone, 2 a mistake in what was typed."""
    parser = argparse.ArgumentParser(prog="python -m workbench.deployment.client",
                                     description=f"Take part in a deployment as one client; the key comes from ${KEY}.")
    parser.add_argument("--address", required=True, help="host:port of the server")
    parser.add_argument("--client", type=int, required=True, help="number of this client, from 0 on")
    parser.add_argument("--task", help="refuse to train another task than this")
    parser.add_argument("--slowdown", type=float, default=0.0, metavar="S", help="artificial seconds before each gradient step")
    parser.add_argument("--patience", type=float, default=30.0, metavar="S", help="seconds to wait for the server to be there")
    args = parser.parse_args(argv)
    try:
        reason = client_main(args.address, key(), args.client, args.task, slowdown_s=args.slowdown, patience_s=args.patience)
    except UserError as error:
        print(f"client {args.client}: {error}", file=sys.stderr)
        return 1 if isinstance(error, Lost) else 2
    except KeyboardInterrupt:
        print(f"client {args.client}: interrupted", file=sys.stderr)
        return 1
    print(f"client {args.client}: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
