"""Price of metering energy: the meter around steps of 10 ms, over RAPL files and over a counter as dear as a slow driver's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tracking.energy import EnergyMeter, ReplayCounter, SystemClock, Trace, rapl

TARGET = 1.01  # of the time without a meter


def main() -> list[dict]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        counters = _packages(Path(folder))
        dear = ReplayCounter(Trace([(0.0, 300.0), (1e6, 300.0)], source="replayed", period_s=0.1), SystemClock(), read_s=3e-4).counter
        return [
            look("look at two RAPL files", lambda: [c.read() for c in counters]),
            look("look at a counter that sleeps 0.3 ms", dear.read, n=200),
            overhead("two RAPL packages, metered at every 10 ms step", lambda: EnergyMeter(counters)),
            overhead("a counter of 0.3 ms a look, 10 ms steps", lambda: EnergyMeter([dear])),
        ]


def _packages(root: Path) -> list:
    """The counters of two packages, found in a made-up tree of files. (The kernel's own take longer: it asks the package.)"""
    for i in range(2):
        zone = root / f"intel-rapl:{i}"
        zone.mkdir()
        for name, content in {"name": f"package-{i}", "energy_uj": 123_456_789, "max_energy_range_uj": 262_143_328_850}.items():
            (zone / name).write_text(f"{content}\n")
    return [s.counter for s in rapl.sources(root) if s.status == "ok"]


def look(name: str, read: Callable[[], object], n: int = 2000) -> dict:
    """Median wall time of a look."""
    times = []
    for _ in range(n):
        begin = time.perf_counter()
        read()
        times.append(time.perf_counter() - begin)
    return {"name": name, "ours": statistics.median(times) * 1e6, "unit": "us", "n": n}


def work() -> None:
    """Ten milliseconds of this thread's own processor time."""
    until = time.thread_time() + 0.010
    while time.thread_time() < until:
        pass


def overhead(name: str, make: Callable[[], EnergyMeter], pairs: int = 31, steps: int = 40) -> dict:
    """The meter's start and stop round each step, as the engine has them, against the bare loop over the same work.

    A step is processor time, for the reasons told in ``bench_core.overhead``; what the meter takes is on top, asleep or not. The two loops
    alternate, each going first in every other pair; the ratio is the median over pairs.
    """

    def bare_once() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            work()
        return time.perf_counter() - begin

    meter = make()

    def ours_once() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            meter.start()
            work()
            meter.stop(soon=True)
        meter.settle()
        return time.perf_counter() - begin

    bare, ours = [], []
    for pair in range(pairs):
        first, second = ((bare, bare_once), (ours, ours_once))[:: 1 if pair % 2 else -1]
        first[0].append(first[1]())
        second[0].append(second[1]())
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    return {"name": name, "ours": statistics.median(ours) / steps * 1e3, "peer": statistics.median(bare) / steps * 1e3, "unit": "ms a step",
            "ratio": ratio, "n": pairs, "target": f"<= {TARGET}", "met": ratio <= TARGET}
