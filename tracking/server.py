"""The local MLflow server: the pages where people compare runs, for this machine only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tracking import pages
from tracking.address import available, public_uri, scrub, tracking_uri
from tracking.address import home as default_home
from tracking.database import make_tables, with_driver
from tracking.errors import UserError
from tracking.files import kept_in
from tracking.shipping import one_line

HOST = "127.0.0.1"
APP = "workbench"
HOSTS = f"localhost,localhost:*,{HOST},{HOST}:*"
"""What a request may call this server. MLflow's default has 10.* among it, which is also how a stranger's name may begin."""
START_S = 120.0
# the server's runner of queued jobs is for language-model traces: nine more processes that nobody here asks for anything
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def start(home: str | os.PathLike[str] | None = None, port: int = 5000, uri: str | None = None,
          say: Callable[[str], None] = lambda text: None) -> tuple[subprocess.Popen[bytes], str]:
    """Start ``mlflow server`` on this machine's own address and wait until it answers; return (process, its URL).

    ``port`` 0 takes a free one. The store is ``uri``, default the SQLite file under ``home``; files of runs that are
    logged through the server go to :func:`tracking.files.kept_in`, where runs that write to the database directly put theirs.
    The server's own log is ``home/server-<port>.log``. ``say`` hears how the start is going. End it with :func:`stop`.

    Raises:
        UserError: the port is taken, MLflow is not installed, ``uri`` is a server already, or the server did not start.
    """
    if not available():
        raise UserError("MLflow is not installed: pip install mlflow.")
    root = Path(home).absolute() if home is not None else default_home()
    address = tracking_uri(uri if uri or (home is None and os.environ.get("MLFLOW_TRACKING_URI"))
                           else f"sqlite:///{root / 'mlflow.db'}")
    if address is None or address.startswith(("http://", "https://")):
        raise UserError(f"A local server needs a database to show, not {public_uri(address) if address else 'off'!r}. "
                        f"Leave the address out to see the runs of {root}.")
    port = _free_port(port)
    url = f"http://{HOST}:{port}"
    root.mkdir(parents=True, exist_ok=True)
    # the address comes to the server by its environment: a command line, with the password in it, is read by everybody on the machine
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
               "--artifacts-destination", kept_in(root), "--app-name", APP]
    say(f"Looking at {public_uri(address)} …")
    _reach(address)
    log = root / f"server-{port}.log"
    with open(log, "wb") as output, _app() as path:
        environment = {"MLFLOW_SERVER_ALLOWED_HOSTS": HOSTS, **os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": with_driver(address),
                       "PYTHONPATH": path}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=root,
                                   env=environment, start_new_session=True)
        try:
            _wait_until_up(process, url, say)
        except BaseException as problem:
            stop(process)
            if isinstance(problem, TimeoutError):
                tail = scrub(log.read_text(errors="replace").strip(), address).splitlines()[-5:]
                raise UserError("\n".join([f"The MLflow server did not start: {problem}. See {log}:", *tail])) from None
            raise
    return process, url


@contextlib.contextmanager
def _app() -> Iterator[str]:
    """A path for modules on which MLflow finds :mod:`tracking.doorkeeper` as a plugin, whether or not this project is installed."""
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        info = Path(folder) / "workbench_server-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workbench-server\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[mlflow.app]\n{APP} = tracking.doorkeeper:app\n")
        yield os.pathsep.join([folder, *(os.path.abspath(p) for p in sys.path)])


def _reach(address: str) -> None:
    """Make the tables if there are none. Raises :class:`UserError` when the database does not answer, refuses, or is none."""
    try:
        make_tables(address)
    except UserError:
        raise
    except Exception as problem:
        raise UserError(f"The database {public_uri(address)} cannot be used: {one_line(problem, address)}") from None


def stop(process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None:
    """End the server with all its workers."""
    for word in (signal.SIGTERM, signal.SIGKILL):  # the second also ends workers that outlived their parent
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)


def serve(home: str | os.PathLike[str] | None = None, port: int = 5000, uri: str | None = None,
          open_wait: bool = True) -> int:
    """Serve the runs of ``home`` until Ctrl-C; print the link to open. Returns an exit status.

    With ``open_wait=False`` return as soon as the server answers and leave it running.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server ends with us, however and whenever we end
    process, url = start(home, port, uri, say=lambda text: print(text, flush=True))
    print(f"Runs: {pages.experiments(url)}", flush=True)
    if not open_wait:
        return 0
    print("Ctrl-C ends the server.", flush=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(process)


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            return probe.getsockname()[1]
        except OSError as problem:
            free = _free_port(0)
            raise UserError(f"Port {port} cannot be used ({problem.strerror}); perhaps a server is running at "
                            f"http://{HOST}:{port} already. A free one is {free}.") from None


def _wait_until_up(process: subprocess.Popen[bytes], url: str, say: Callable[[str], None]) -> None:
    """Poll ``/health``; :class:`TimeoutError` when the process ends or :data:`START_S` have gone."""
    say(f"MLflow is starting at {url} (10 to 40 s) …")
    began = said = time.monotonic()
    while time.monotonic() - began < START_S:
        if process.poll() is not None:
            raise TimeoutError(f"it ended with status {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"still starting … {said - began:.0f} s")
        time.sleep(0.2)
    raise TimeoutError(f"no answer at {url}/health in {START_S:g} s")
