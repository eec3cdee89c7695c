"""Time as a meter sees it: a clock that tells, sleeps, and calls something at intervals. A replay has one of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What a meter asks of time."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""

    def every(self, interval_s: float, call: Callable[[], object]) -> Callable[[], None]:
        """Have ``call`` called each ``interval_s`` seconds from now on; returns what ends that."""


class SystemClock:
    """Real time. :meth:`every` takes a thread that sleeps between calls and ends with the process."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def every(self, interval_s: float, call: Callable[[], object]) -> Callable[[], None]:
        end = threading.Event()

        def work() -> None:
            while not end.wait(interval_s):
                call()

        threading.Thread(target=work, name="energy counter poller", daemon=True).start()
        return end.set
