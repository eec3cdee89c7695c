"""Meters in the engine: accumulated energy from made-up counters, peak memory from real allocations; what is absent stays absent."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking import journal, memory
from tracking.energy import Counter, EnergyMeter
from tracking.energy import meter as meter_module
from tracking.memory import PeakMemory
from tracking.metrics import METRICS

ROOT = Path(__file__).parent.parent


def replay(
    readings: list[float], metric: str = "energy/cpu_j", source: str = "replayed", wrap_j: float | None = None
) -> Counter:
    """A counter that shows the given readings, one a look; an exception among them is raised."""
    rest = iter(readings)

    def read() -> float:
        value = next(rest)
        if isinstance(value, Exception):
            raise value
        return value

    return Counter(metric, source, read, wrap_j)


def windows(meter: EnergyMeter, count: int) -> dict[str, float]:
    for _ in range(count):
        meter.start()
        meter.stop()
    return meter.totals


# --- energy -------------------------------------------------------------------------------------------------


def test_windows_add_up_and_what_lies_between_does_not_count():
    assert windows(EnergyMeter([replay([10, 12, 100, 105])]), 2) == {"energy/cpu_j": 7}


def test_no_counter_is_no_figure():
    meter = EnergyMeter([])
    assert windows(meter, 3) == {}
    assert meter.sources == {}
    assert EnergyMeter([replay([1])]).totals == {}, "no window, no figure"


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 999)), min_size=1, max_size=20), st.integers(0, 999))
@settings(deadline=None)
def test_a_counter_that_wraps_is_unwrapped(steps, start):
    """A counter of range 1000 J is read modulo its range; at most one wrap in a window can be told."""
    true, readings, expected = start, [], 0
    for pause, spent in steps:
        true += pause
        readings.append(true % 1000)
        true += spent
        readings.append(true % 1000)
        expected += spent
    # a counter that has not moved gives no figure, never zero
    assert windows(EnergyMeter([replay(readings, wrap_j=1000)]), len(steps)) == ({"energy/cpu_j": expected} if expected else {})


def test_packages_are_added_and_both_named():
    meter = EnergyMeter(
        [
            replay([0, 3], source="RAPL package-0"),
            replay([5, 9], source="RAPL package-1"),
            replay([0, 2], "energy/gpu_j", "NVML"),
        ]
    )
    assert windows(meter, 1) == {"energy/cpu_j": 7, "energy/gpu_j": 2}
    assert meter.sources == {"energy/cpu_j": "RAPL package-0 + RAPL package-1", "energy/gpu_j": "NVML"}


@pytest.mark.parametrize(
    "readings",
    [[0, 5, OSError("gone"), 7, 8, 9], [0, 5, 6, OSError("gone"), 8, 9], [0, 5, 6, 2, 3, 4]],
    ids=["fails at start", "fails at stop", "reset by the driver"],
)
def test_a_figure_with_an_unknown_window_is_dropped_and_never_too_small(readings):
    """The run goes on; a package that still answers does not stand for both."""
    meter = EnergyMeter([replay(readings), replay([0, 1, 2, 3, 4, 5]), replay([0, 1, 1, 2, 2, 3], "energy/gpu_j")])
    assert windows(meter, 1) == {"energy/cpu_j": 6, "energy/gpu_j": 1}
    assert windows(meter, 1) == {"energy/gpu_j": 2}
    assert windows(meter, 1) == {"energy/gpu_j": 3}
    assert set(meter.sources) == {"energy/gpu_j"}
    assert meter.lost.keys() == {"energy/cpu_j"}
    assert "replayed" in meter.lost["energy/cpu_j"]


def test_stop_needs_a_start():
    meter = EnergyMeter([replay([1, 2])])
    with pytest.raises(RuntimeError, match="without start"):
        meter.stop()
    windows(meter, 1)
    with pytest.raises(RuntimeError, match="without start"):
        meter.stop()


def test_a_resumed_figure_covers_both_parts_or_is_absent():
    first = EnergyMeter([replay([10, 15])])
    windows(first, 1)
    state = first.state_dict()
    both = EnergyMeter([replay([0, 2])])
    both.resume(state, begun=True)
    assert windows(both, 1) == {"energy/cpu_j": 7}
    assert both.resolution()["energy/cpu_j"].stretches == 2
    assert both.resolution()["energy/cpu_j"].t_s > state["t_s"]
    lost = EnergyMeter([])
    lost.resume(state, begun=True)
    assert windows(lost, 1) == {}
    assert "after it was interrupted" in lost.lost["energy/cpu_j"]
    late = EnergyMeter([replay([0, 2])])  # the first part ran where nothing could be measured
    late.resume(EnergyMeter([]).state_dict(), begun=True)
    assert windows(late, 1) == {}
    unbegun = EnergyMeter([replay([0, 2])])
    unbegun.resume(EnergyMeter([]).state_dict(), begun=False)
    assert windows(unbegun, 1) == {"energy/cpu_j": 2}
    still = EnergyMeter([replay([5, 5])])  # measured, though the counter had not moved yet when the run was interrupted
    windows(still, 1)
    moved = EnergyMeter([replay([0, 2])])
    moved.resume(still.state_dict(), begun=True)
    assert windows(moved, 1) == {"energy/cpu_j": 2}


def test_the_engine_reports_measured_energy_and_drops_what_it_lost(toy, monkeypatch):
    """A counter of 2 J a look: one window a step, so step n has 2n J; after it fails the figure is gone and the run is not."""
    from workbench import engine
    from workbench.runs import run

    readings = [2.0 * i for i in range(10)]
    monkeypatch.setattr(meter_module, "OVERHEAD", math.inf)  # look at every step, however short
    monkeypatch.setattr(engine, "probe", lambda device: ([replay(readings)], []))
    ended = run("toy", "toy", {"steps": 8}, tracking="off", progress=False, threads=1)
    assert ended.status == "finished"
    rows = [e.values.get("energy/cpu_j") for e in journal.read(ended.folder.journal_path)]
    assert rows == [2, 4, 6, 8, 10, None, None, None]
    tags = ended.folder.read_run()["tags"]
    assert (tags["energy.source"], tags["energy.kind"], tags["energy.scope"]) == ("replayed", "counter", "not stated")
    assert not any(name.startswith("energy.resolution") for name in tags), "what was lost has no resolution"
    assert tags["energy.lost.cpu_j"].startswith("replayed could not be read (StopIteration")


def dear(watts: float, price_s: float, **facts) -> Counter:
    """A counter of steady power in real time that takes ``price_s`` to look at."""

    def read() -> float:
        time.sleep(price_s)
        return watts * time.perf_counter()

    return Counter("energy/gpu_j", "dear", read, **facts)


def test_dear_looks_are_rationed_and_the_last_report_has_every_joule(toy, monkeypatch):
    """Steps without an evaluation are reported without joules, unless the counter was looked at; the joules are in the next look."""
    from workbench import engine
    from workbench.runs import run

    counter = dear(100.0, 0.005, period_s=0.1, scope="board")
    monkeypatch.setattr(engine, "probe", lambda device: ([counter], []))
    ended = run("toy", "toy", {"steps": 60, "sleep_s": 0.002, "eval_every": 20}, tracking="off", progress=False, threads=1)
    rows = [e.values for e in journal.read(ended.folder.journal_path)]
    joules = [r.get("energy/gpu_j") for r in rows]
    known = [j for j in joules if j is not None]
    assert None in joules
    assert all(joules[i] is not None for i in (19, 39, 59)), "an evaluation does not count, so before it the counter is looked at"
    assert known == sorted(known)
    assert joules[-1] >= 100 * rows[-1]["clock/wall_s"], "no step is left out"
    tags = ended.folder.read_run()["tags"]
    assert tags["energy.scope"] == "board"
    # three stretches of 0.1 s or so with a counter of 0.1 s: nothing to go by, and the run says so
    assert "too coarse" in tags["energy.resolution.gpu_j"] or "dominated" in tags["energy.resolution.gpu_j"]


def test_an_interrupted_run_goes_on_adding_joules(toy, monkeypatch):
    """Stopped after step 4 of 8: 2 J a step before and 2 J a step after, whatever the counter shows at the start of either part."""
    from workbench import engine
    from workbench.runs import run

    monkeypatch.setattr(meter_module, "OVERHEAD", math.inf)
    parts = iter([[2.0 * i for i in range(40)], [1000 + 2.0 * i for i in range(40)]])
    monkeypatch.setattr(engine, "probe", lambda device: ([replay(next(parts))], []))

    def stop(report):
        if report.step == 4:
            assert report.metrics["energy/cpu_j"] == 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("toy", "toy", {"steps": 8}, tracking="off", progress=False, threads=1, observer=stop, checkpoint_s=0)
    ended = run("toy", "toy", {"steps": 8}, tracking="off", progress=False, threads=1, checkpoint_s=0)
    assert ended.status == "finished"
    assert ended.metrics["energy/cpu_j"] == 16


def test_a_machine_without_counters_records_none(toy, monkeypatch):
    from workbench import engine
    from workbench.runs import run

    monkeypatch.setattr(engine, "probe", lambda device: ([], []))
    ended = run("toy", "toy", {"steps": 2}, tracking="off", progress=False, threads=1)
    assert not any(name.startswith("energy/") for name in ended.metrics)
    tags = {k: v for k, v in ended.folder.read_run()["tags"].items() if k.startswith("energy.")}
    assert tags == {"energy.source": "none on this machine"}


def test_measured_energy_has_names_of_its_own():
    measured = {n for n, m in METRICS.items() if n.startswith("energy/") and m.description.startswith("measured")}
    assert measured == {"energy/gpu_j", "energy/cpu_j"}
    assert all(METRICS[n].volatile and METRICS[n].cumulative and METRICS[n].unit == "J" for n in measured)


# --- memory -------------------------------------------------------------------------------------------------

GROWTH = """
import sys, torch
from tracking.memory import PeakMemory
big = torch.ones(50_000_000)  # 200 MB before the meter begins: not this run's
del big
meter = PeakMemory(torch.device("cpu"))
before = meter.read()
big = torch.ones(int(sys.argv[1]) // 4)
del big  # given back at once: a peak is remembered
print(before, meter.read())
"""


def peaks(size: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(size)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_peak_memory_sees_a_big_tensor():
    size = 100_000_000
    before, after = peaks(size)
    if "None" in (before, after):
        pytest.skip("this system cannot reset the peak of a process")
    # half the tensor is far more than the interpreter takes meanwhile; the 200 MB from before must not hide the growth
    assert int(after) - int(before) > size / 2
    small = peaks(4)
    assert int(small[1]) - int(small[0]) < size / 2


def test_a_peak_that_cannot_be_reset_is_absent(monkeypatch, tmp_path, toy):
    """The process's life-long peak would be another run's."""
    (tmp_path / "status").write_text("VmHWM:\t  1000 kB\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "no such system")
    assert PeakMemory(torch.device("cpu")).read() is None
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert PeakMemory(torch.device("cpu")).read() == 1000 * 1024
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert PeakMemory(torch.device("cpu")).read() is None

    from workbench.runs import run

    metrics = run("toy", "toy", {"steps": 2}, tracking="off", progress=False, threads=1).metrics
    assert "memory/peak_bytes" not in metrics
    assert "memory/state_bytes" in metrics
