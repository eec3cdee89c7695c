"""Pause, resume and stop: one thread-safe switch between a person and a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """Raised inside a run when it is to stop; carries who asked."""


class Control:
    """A switch with three positions: run, pause, stop. Stop is final."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._position = "run"
        self.reason = ""

    @property
    def position(self) -> str:
        return self._position

    def pause(self) -> None:
        self._turn("pause", "paused")

    def resume(self) -> None:
        self._turn("run", "")

    def stop(self, reason: str = "stopped by request") -> None:
        self._turn("stop", reason)

    def obey(self, word: str, who: str) -> None:
        """Act on a word from outside: ``run``/``resume``, ``pause`` or ``stop``; other words are ignored."""
        if word == "stop":
            self.stop(f"stopped {who}")
        elif word == "pause":
            self.pause()
        elif word in ("run", "resume"):
            self.resume()

    def poll(self) -> None:
        """Raise :class:`Stopped` when the run is to stop."""
        if self._position == "stop":
            raise Stopped(self.reason)

    def wait_while_paused(self, timeout: float) -> bool:
        """Block until the switch leaves pause or ``timeout`` seconds have gone; return whether it is still on pause."""
        with self._changed:
            self._changed.wait_for(lambda: self._position != "pause", timeout)
        return self._position == "pause"

    def _turn(self, position: str, reason: str) -> None:
        with self._changed:
            if self._position != "stop":
                self._position, self.reason = position, reason
                self._changed.notify_all()


@contextmanager
def signals(control: Control) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a stop while a run holds the main thread; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if control.position == "stop" and number == signal.SIGINT:
            raise KeyboardInterrupt
        control.stop(f"stopped by {signal.Signals(number).name}")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
