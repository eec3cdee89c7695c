"""A whole deployment on this machine: one server process and its client processes, started and ended together."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.address import home
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench import registry
from workbench.deployment.record import Result
from workbench.deployment.settings import ADDRESS, KEY, Settings
from workbench.params import parse

START_S = 120.0
END_S = 30.0


class Deployment:
    """A deployment that goes on. Leaving its ``with`` block ends every process of it."""

    def __init__(self, settings: Settings, folder: RunFolder, slowdown_s: Mapping[int, float]) -> None:
        self.settings, self.folder, self.slowdown_s = settings, folder, dict(slowdown_s)
        self.clients: dict[int, subprocess.Popen[bytes]] = {}
        self._all: list[subprocess.Popen[bytes]] = []
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path)  # the children find what this process finds
        self.key = secrets.token_hex(16)
        """The secret of this deployment; a client that is started by hand needs it in its environment."""
        self._environment = os.environ | {"PYTHONPATH": path, KEY: self.key}
        values = [f"--set={name}={json.dumps(value) if not isinstance(value, str) else value}"
                  for name, value in settings.model_dump(mode="json").items()]
        self.server = self._spawn("server", "--address=127.0.0.1:0", f"--folder={folder.path}", "--tied", *values, log="server.log")
        try:
            self.address = self._wait_for_address()
            for client in range(settings.clients):
                self.start_client(client)
        except BaseException:
            self.close()
            raise

    def start_client(self, client: int) -> None:
        """Start the process of a client; also to bring one back that was killed."""
        self.clients[client] = self._spawn("client", f"--address={self.address}", f"--client={client}",
                                           f"--slowdown={self.slowdown_s.get(client, 0.0)}", log=f"client-{client}.log")

    def result(self) -> Result:
        """All that is recorded so far."""
        return Result.read(self.folder)

    def log(self, name: str) -> str:
        """What a process said so far: ``server`` or ``client-<number>``."""
        path = self.folder.artifacts_path / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End the run before its time."""
        self.folder.write_control("stop")

    def wait(self, timeout_s: float | None = None) -> Result:
        """Wait for the end of the run and of all its processes; TimeoutError when it still goes on after ``timeout_s``."""
        try:
            self.server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the deployment in {self.folder.path} still runs after {timeout_s:g} s") from None
        self.close()
        result = self.result()
        if self.server.returncode:
            raise UserError(f"The server of the deployment ended with: {self.log('server').strip() or f'code {self.server.returncode}'}")
        return result

    def close(self) -> None:
        """End all processes: clients leave by themselves once the server has gone; what does not is killed."""
        if self.server.poll() is None:
            self.server.stdin.close()  # it is tied to this
        end = time.monotonic() + END_S
        for process in self._all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin and not process.stdin.closed:
                process.stdin.close()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _spawn(self, module: str, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        self.folder.artifacts_path.mkdir(parents=True, exist_ok=True)
        with open(self.folder.artifacts_path / log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"workbench.deployment.{module}", *arguments], env=self._environment,
                stdin=subprocess.PIPE if module == "server" else subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True)  # Ctrl-C is for the one who started it, who then ends them
        self._all.append(process)
        return process

    def _wait_for_address(self) -> str:
        end, path = time.monotonic() + START_S, self.folder.path / ADDRESS
        while not path.exists():
            if self.server.poll() is not None:
                raise UserError(f"The server did not start: {self.log('server').strip()}")
            if time.monotonic() > end:
                raise UserError(f"The server did not start within {START_S:g} s; see {self.folder.artifacts_path / 'server.log'}.")
            time.sleep(0.02)
        return path.read_text().strip()


def start(method: str = "favas", task: str = "digits/perceptron", *, slowdown_s: Mapping[int, float] | None = None,
          folder: str | os.PathLike[str] | None = None, **settings: Any) -> Deployment:
    """Start a deployment on this machine and return it while it goes on; the arguments are those of :func:`deploy`."""
    checked = parse(Settings, {"method": method, "task": task, **settings}, "a deployment")
    registry.task_entry(checked.task)  # an unknown name is refused here, in words
    wrong = {c: s for c, s in (slowdown_s or {}).items() if c not in range(checked.clients) or not 0 <= s < float("inf")}
    if wrong:
        raise UserError(f"slowdown_s = {wrong} is refused. Allowed: seconds from 0 on, by client number 0 to {checked.clients - 1}.")
    name = f"{method}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    place = Path(folder) if folder is not None else home() / "deployments" / name
    if place.exists() and any(place.iterdir()):
        raise UserError(f"{place} is not empty. Choose another folder for the deployment.")
    return Deployment(checked, RunFolder(place), slowdown_s or {})


def deploy(method: str = "favas", task: str = "digits/perceptron", *, slowdown_s: Mapping[int, float] | None = None,
           folder: str | os.PathLike[str] | None = None, **settings: Any) -> Result:
    """Run FAVAS or FedBuff with real processes on this machine and return what happened.

    Args:
        method: ``favas`` or ``fedbuff``.
        task: id of a supervised task.
        slowdown_s: artificial seconds before each gradient step, by client number.
        folder: new run folder; default one under ``deployments`` in the workbench's home.
        settings: fields of :class:`workbench.deployment.settings.Settings`, such as ``clients=4, seconds=10``.

    Raises:
        UserError: an unknown setting or a value out of range, before any process is started; or the server failed.
    """
    with start(method, task, slowdown_s=slowdown_s, folder=folder, **settings) as deployment:
        return deployment.wait()
