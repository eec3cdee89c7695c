"""The server as a command: ``python -m workbench.deployment.server --address 0.0.0.0:5701 --folder out --set clients=4``."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tracking.errors import UserError
from tracking.folder import RunFolder, write_atomic
from workbench.deployment.federation import Federation
from workbench.deployment.pace import Server
from workbench.deployment.record import Record
from workbench.deployment.settings import ADDRESS, KEY, Settings, key, parse_address
from workbench.deployment.wire import Traffic, serve
from workbench.params import from_text, parse


def serve_run(settings: Settings, address: tuple[str, int], authkey: bytes, folder: RunFolder,
              gone: Callable[[], bool] = lambda: False) -> tuple[str, str]:
    """Serve one deployment to its end and leave its run folder; (status, reason). A process can do this once.

    It also ends when the word ``stop`` is written into the folder's control file, or when ``gone()`` says so.
    """
    if folder.run_path.exists():
        raise UserError(f"{folder.path} holds a run already. Choose another folder, or remove it.")
    federation = Federation(settings)
    record = Record(folder, settings)
    vector, status, reason = federation.initial, "failed", ""
    traffic: list[Traffic] = []
    try:
        server = Server(settings.aggregator(), federation.initial, settings, federation, record,
                        stop=lambda: gone() or folder.control() == "stop", traffic=lambda: traffic[0] if traffic else None)
        (host, port), count = serve(server.hub, address, authkey)
        traffic.append(count)
        write_atomic(folder.path / ADDRESS, f"{host}:{port}\n")
        status, reason = server.run()
        vector = server.vector
        metrics = server.hub.ledger.metrics() | federation.evaluate(vector)
        record.journal.append(server.hub.version, metrics)
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        folder.error_path.write_text(traceback.format_exc())
        raise
    finally:
        record.finish(vector.numpy(), status, reason)
    return status, reason


def _tie() -> Callable[[], bool]:
    """Whether standard input has been closed: whoever started this process has ended, however."""
    closed = threading.Event()

    def read() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock this thread would hold at the interpreter's end
            pass
        closed.set()

    threading.Thread(target=read, name="parent", daemon=True).start()
    return closed.is_set


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 finished or stopped, 1 failed, 2 a mistake in what was typed."""
    parser = argparse.ArgumentParser(prog="python -m workbench.deployment.server",
                                     description=f"Serve FAVAS or FedBuff to client processes; the key comes from ${KEY}.")
    parser.add_argument("--address", default="127.0.0.1:0", help="host:port to listen on; port 0 takes a free one")
    parser.add_argument("--folder", type=Path, required=True, help="new run folder for all that is recorded")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; repeatable")
    parser.add_argument("--tied", action="store_true", help="end when standard input is closed")
    args = parser.parse_args(argv)
    try:
        pairs = dict(text.partition("=")[::2] for text in args.set)
        settings = parse(Settings, from_text(Settings, pairs), "a deployment")
        gone = _tie() if args.tied else lambda: False
        status, reason = serve_run(settings, parse_address(args.address), key(), RunFolder(args.folder), gone)
    except UserError as error:
        print(f"server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("server: interrupted", file=sys.stderr)
        return 1
    print(f"server: {status}{f' ({reason})' if reason else ''}; see {args.folder}")
    return 1 if status == "failed" else 0


if __name__ == "__main__":
    raise SystemExit(main())
