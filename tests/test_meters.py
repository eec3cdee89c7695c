"""Meters: energy from replayed and made-up counters, peak memory from real allocations; what is absent stays absent."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking import energy, memory
from tracking.energy import Counter, EnergyMeter, probe
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
    assert windows(EnergyMeter([replay(readings, wrap_j=1000)]), len(steps)) == {"energy/cpu_j": expected}


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


def test_stop_needs_a_start():
    meter = EnergyMeter([replay([1, 2])])
    with pytest.raises(RuntimeError, match="without start"):
        meter.stop()
    windows(meter, 1)
    with pytest.raises(RuntimeError, match="without start"):
        meter.stop()


def test_a_resumed_figure_covers_both_parts_or_is_absent():
    both = EnergyMeter([replay([0, 2])])
    both.resume({"energy/cpu_j": 5}, begun=True)
    assert windows(both, 1) == {"energy/cpu_j": 7}
    lost = EnergyMeter([])
    lost.resume({"energy/cpu_j": 5}, begun=True)
    assert windows(lost, 1) == {}
    late = EnergyMeter([replay([0, 2])])  # the first part ran where nothing could be measured
    late.resume({}, begun=True)
    assert windows(late, 1) == {}
    unbegun = EnergyMeter([replay([0, 2])])
    unbegun.resume({}, begun=False)
    assert windows(unbegun, 1) == {"energy/cpu_j": 2}


def test_the_engine_reports_measured_energy_and_drops_what_it_lost(toy, monkeypatch):
    """A counter of 2 J a look: one window a step, so step n has 2n J; after it fails the figure is gone and the run is not."""
    from tracking import journal
    from workbench import engine
    from workbench.runs import run

    readings = [2.0 * i for i in range(10)]
    monkeypatch.setattr(engine, "probe", lambda device: ([replay(readings)], []))
    ended = run("toy", "toy", {"steps": 8}, tracking="off", progress=False, threads=1)
    assert ended.status == "finished"
    rows = [e.values.get("energy/cpu_j") for e in journal.read(ended.folder.journal_path)]
    assert rows == [2, 4, 6, 8, 10, None, None, None]
    assert ended.folder.read_run()["tags"]["energy.source"] == "replayed"


def zone(root: Path, name: str, label: str, microjoules: int, most: int = 262_143_328_850) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in {"name": label, "energy_uj": microjoules, "max_energy_range_uj": most}.items():
        (folder / file).write_text(f"{content}\n")
    return folder


@pytest.fixture
def rapl():
    """A folder like /sys/class/powercap that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_rapl_reads_packages_and_nothing_else(rapl):
    zone(rapl, "intel-rapl:0", "package-0", 5_000_000, 10_000_000)
    zone(rapl, "intel-rapl:1", "package-1-die-0", 1_000_000, 10_000_000)
    zone(rapl, "intel-rapl:2", "psys", 77)
    zone(rapl, "intel-rapl:0:0", "core", 88)  # a part of package 0, beside it in this folder
    zone(rapl, "intel-rapl:0/intel-rapl:0:1", "dram", 99)
    zone(rapl, "intel-rapl-mmio:0", "package-0", 11)  # package 0 again, by another way
    (rapl / "intel-rapl").mkdir()
    counters = energy._rapl(rapl)
    assert [(c.metric, c.source, c.read(), c.wrap_j) for c in counters] == [
        ("energy/cpu_j", "RAPL package-0", 5.0, 10.0),
        ("energy/cpu_j", "RAPL package-1-die-0", 1.0, 10.0),
    ]
    meter = EnergyMeter(counters)
    meter.start()
    (rapl / "intel-rapl:0/energy_uj").write_text("2000000\n")  # wrapped at 10 J: 5 J to the end and 2 J more
    (rapl / "intel-rapl:1/energy_uj").write_text("1500000\n")
    meter.stop()
    assert meter.totals == {"energy/cpu_j": 7.5}


def test_rapl_that_root_alone_may_read_is_explained(rapl, monkeypatch):
    file = zone(rapl, "intel-rapl:0", "package-0", 1) / "energy_uj"
    file.chmod(0o400)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    else:
        file.chmod(0o000)
    try:
        with pytest.raises(PermissionError, match="energy_uj is readable by root only; ask for read permission"):
            energy._rapl(rapl)
        monkeypatch.setattr(energy, "_rapl", lambda real=energy._rapl: real(rapl))
        counters, missing = probe("cpu")
    finally:
        if as_root:
            os.seteuid(0)
    assert counters == []
    assert len(missing) == 1
    assert "ask for read permission" in missing[0]


def test_a_machine_without_counters_gives_none(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_rapl", lambda real=energy._rapl: real(tmp_path / "nowhere"))
    assert probe("cpu") == ([], [])


def test_a_broken_driver_costs_the_figure_and_not_the_run(monkeypatch):
    def broken(device):
        raise RuntimeError("driver/library version mismatch")

    monkeypatch.setattr(energy, "_nvml", broken)
    counters, missing = probe("cuda")
    assert all(c.metric != "energy/gpu_j" for c in counters)
    assert "RuntimeError: driver/library version mismatch" in missing


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
