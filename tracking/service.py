"""The recording service: recorders in a process of their own, so that a run shares no interpreter with its store.

MLflow spends about 0.1 ms of Python a point. In a thread of the run's process that time is taken from the run, which
waits for the interpreter's lock; in another process it is not. One service serves all runs of a process. It is started
with the first of them and ends with the process, however that ends. Should it die before, each of its runs goes on with
a :class:`tracking.recorder.Recorder` in a thread: the journal is the queue, so either can take over from the other.

Both sides talk in JSON lines: ``open`` and ``close`` of a recorder by number one way; the address of its MLflow run, a
person's control word, a log record and the outcome of a close the other way.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tracking.errors import UserError
from tracking.folder import RunFolder
from tracking.recorder import Recorder
from tracking.store import client_class

NICENESS = 5  # the run's own threads come first when there are more of both than cores
GRACE_S = 2.0  # beyond a close's own limit, for the answer's way back
CREDENTIALS = ("MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "HTTP", "http", "NO_PROXY", "no_proxy")


class RemoteRecorder:
    """A :class:`~tracking.recorder.Recorder` of the same interface whose work is done by the service."""

    def __init__(self, folder: RunFolder, uri: str, on_control: Callable[[str], None] | None = None) -> None:
        self.folder, self.uri = folder, uri
        self.url: str | None = None
        self.error: str | None = None
        self._on_control = on_control
        self._service: Service | None = None
        self._local: Recorder | None = None
        self._left: int | None = None
        self._answered = threading.Event()

    def start(self) -> RemoteRecorder:
        """Begin; calling it again changes nothing."""
        if self._service is None and self._local is None:
            try:
                self._service = service()
                self._service.open(self)
            except OSError:  # no process to be had, or it died at once
                self.forsaken()
        return self

    def close(self, timeout_s: float = 10.0) -> int:
        """As :meth:`tracking.recorder.Recorder.close`: ship the rest and return the number of points left. Never raises."""
        if self._service is not None and self._local is None:
            with contextlib.suppress(OSError):  # the reader hears of it, too, and forsakes us
                self._service.close(self, timeout_s)
            self._answered.wait(timeout_s + GRACE_S)
        if self._left is not None:
            return self._left
        if self._local is None:  # not started, or the service is stuck
            self._local = Recorder(self.folder, self.uri)
        left = self._local.close(timeout_s)
        self.error = self._local.error
        self.url = self._local.url or self.url
        return left

    def forsaken(self) -> None:
        """The service is gone: go on in a thread of this process."""
        if self._left is None:
            self._local = Recorder(self.folder, self.uri, self._on_control).start()
        self._answered.set()

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the service tells about this recorder."""
        if "control" in message:
            if self._on_control is not None:
                self._on_control(message["control"])
            return
        self.url, self.error = message["url"], message["error"]
        if "left" in message:
            self._left = message["left"]
            self._answered.set()


class Service:
    """The parent's end: a child process and the recorders it works for. Raises ``OSError`` when the child is gone."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path)  # the child finds what this process finds
        self._child = subprocess.Popen([sys.executable, "-m", "tracking.service"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, start_new_session=True,  # Ctrl-C is for the run
                                       env=os.environ | {"PYTHONPATH": path})
        self.pid = self._child.pid
        self.alive = True
        self._recorders: dict[int, RemoteRecorder] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="recording service", daemon=True).start()
        atexit.register(self.end)

    def open(self, recorder: RemoteRecorder) -> None:
        with self._lock:
            if not self.alive:
                raise BrokenPipeError("the recording service is gone")
            number = next(self._numbers)
            self._recorders[number] = recorder
        # logins may have been set since the service began
        environment = {k: v for k, v in os.environ.items() if k.startswith(CREDENTIALS)}
        self._say({"open": number, "folder": str(recorder.folder.path.absolute()), "uri": recorder.uri, "env": environment})

    def close(self, recorder: RemoteRecorder, timeout_s: float) -> None:
        with self._lock:
            numbers = [number for number, known in self._recorders.items() if known is recorder]
        for number in numbers:
            self._say({"close": number, "timeout_s": timeout_s})

    def end(self) -> None:
        """Let the child go; what it has not shipped is in the journals."""
        with contextlib.suppress(OSError):
            self._child.stdin.close()

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()

    def _listen(self) -> None:
        for line in self._child.stdout:
            message = json.loads(line)
            if "log" in message:
                logging.getLogger(message["log"]).log(message["level"], "%s", message["text"])
                continue
            with self._lock:
                recorder = self._recorders.get(message["id"])
                if "left" in message:
                    self._recorders.pop(message["id"], None)
            if recorder is not None:
                recorder.hear(message)
        with self._lock:
            self.alive = False
            orphans, self._recorders = list(self._recorders.values()), {}
        self._child.wait()
        for recorder in orphans:
            recorder.forsaken()


_current: Service | None = None
_making = threading.Lock()


def service() -> Service:
    """The service of this process, started if there is none. Raises ``OSError`` when no process can be made."""
    global _current
    with _making:
        if _current is None or not _current.alive or _current.owner != os.getpid():  # a forked child has its own
            _current = Service()
        return _current


def warm() -> None:
    """Start the service now, in the background, because it will be needed soon."""
    with contextlib.suppress(OSError):  # told when it is needed
        service()


# -- the child -------------------------------------------------------------------------------------------------


class _Told(Recorder):
    """A recorder that tells the parent where its run is to be seen as soon as it knows."""

    tell: Callable[..., None]

    def _round(self, closing: bool) -> bool:
        known = self.url
        try:
            return super()._round(closing)
        finally:
            if self.url != known:
                self.tell(url=self.url, error=None)


class _Forward(logging.Handler):
    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(log=record.name, level=record.levelno, text=record.getMessage())


def main() -> None:
    """Serve until standard input ends, which it does when the parent ends."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not part of the talk
    writing = threading.Lock()

    def tell(**message: Any) -> None:
        with writing, contextlib.suppress(OSError):  # the parent is gone: so are we, in a moment
            out.write(json.dumps(message) + "\n")
            out.flush()

    logger = logging.getLogger("tracking")
    logger.addHandler(_Forward(tell))
    logger.propagate = False
    recorders: dict[int, _Told] = {}

    def close(number: int, timeout_s: float) -> None:
        recorder = recorders.pop(number)
        left = recorder.close(timeout_s)
        tell(id=number, url=recorder.url, error=recorder.error, left=left)

    with contextlib.suppress(UserError):  # told by the first recorder
        client_class()
    for line in sys.stdin:
        message = json.loads(line)
        if "open" in message:
            number = message["open"]
            os.environ.update(message["env"])
            recorder = _Told(RunFolder(message["folder"]), message["uri"], lambda word, number=number: tell(id=number, control=word))
            recorder.tell = lambda number=number, **state: tell(id=number, **state)
            recorders[number] = recorder
            recorder.start()
        else:
            threading.Thread(target=close, args=(message["close"], message["timeout_s"])).start()
    os._exit(0)  # a request under way to a silent server must not keep an orphan alive


if __name__ == "__main__":
    main()
