"""Replay: traces integrate to closed forms, a recorded counter plays back as it was, and files say what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.energy import Counter, ReplayClock, ReplayCounter, ReplayMeter, Trace, read_trace, record_trace
from tracking.errors import UserError

TIMES = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12)


@given(TIMES, st.data())
@settings(deadline=None, max_examples=80)
def test_power_integrates_as_numpy_does(steps, data):
    times = np.concatenate([[0.0], np.cumsum(steps)])
    watts = np.array(data.draw(st.lists(st.floats(0, 1000), min_size=len(times), max_size=len(times))))
    replayed = ReplayCounter(Trace(list(zip(times.tolist(), watts.tolist(), strict=True))), ReplayClock())
    for t in [*times.tolist(), *np.linspace(0, times[-1], 7)]:
        inside = times < t
        xs, ys = np.append(times[inside], t), np.append(watts[inside], np.interp(t, times, watts))
        assert replayed.at(min(t, times[-1])) == pytest.approx(np.trapezoid(ys, xs), rel=1e-9, abs=1e-6)


@given(st.floats(0.0, 300.0), st.floats(0.05, 2.0), st.floats(50.0, 500.0))
@settings(deadline=None, max_examples=60)
def test_a_counter_shows_its_last_update_modulo_its_range(t, period, wrap):
    clock = ReplayClock()
    counter = ReplayCounter(Trace([(0.0, 10.0), (400.0, 10.0)], period_s=period, wrap_j=wrap), clock, start_j=7.0).counter
    clock.sleep(t)
    age = (10 * t + 7 - counter.read()) % wrap  # joules since the last update
    assert min(age, wrap - age) <= 10 * period * (1 + 1e-6) + 1e-6
    assert 0 <= counter.read() < wrap


def test_a_reset_puts_the_counter_back_to_zero():
    clock = ReplayClock()
    counter = ReplayCounter(Trace([(0.0, 10.0), (100.0, 10.0)]), clock, resets=(20.0, 50.0), start_j=1000.0).counter
    shown = []
    for _ in range(4):
        clock.sleep(19.0)
        shown.append(counter.read())
    assert shown == [pytest.approx(x) for x in (1190.0, 180.0, 70.0, 260.0)]


def test_a_missing_power_sample_makes_both_stretches_beside_it_unknown():
    replayed = ReplayCounter(Trace([(0.0, 10.0), (1.0, 10.0), (2.0, None), (3.0, 10.0), (4.0, 10.0)]), ReplayClock())
    assert replayed.at(1.0) == 10.0
    for t in (1.5, 2.0, 2.5):
        with pytest.raises(OSError, match="no sample"):
            replayed.at(t)


def test_the_clock_calls_what_is_due_in_order_and_stops_when_told():
    clock, seen = ReplayClock(10.0), []
    end = clock.every(1.0, lambda: seen.append(("a", clock.now())))
    clock.every(0.75, lambda: seen.append(("b", clock.now())))
    clock.sleep(2.0)
    assert seen == [("b", 10.75), ("a", 11.0), ("b", 11.5), ("a", 12.0)]
    end()
    clock.sleep(1.0)
    assert seen[4:] == [("b", 12.25), ("b", 13.0)]
    assert clock.now() == 13.0


def test_a_counter_is_recorded_and_plays_back_as_it_was(tmp_path):
    """Recorded with a wrap, a failed look and looks that take time; the file gives the same trace, and its meter the same joules."""
    clock = ReplayClock(5.0)
    source = ReplayCounter(Trace([(0.0, 80.0), (60.0, 80.0)], wrap_j=1000.0, period_s=0.001), clock, read_s=0.002).counter
    looks = iter(range(1000))

    def read() -> float:
        if next(looks) == 7:
            raise OSError("busy")
        return source.read()

    counter = Counter("energy/cpu_j", "RAPL package-0", read, 1000.0, 0.001, scope="packages")
    path = tmp_path / "deep" / "trace.csv"
    trace = record_trace(path, counter, 20.0, 0.1, clock=clock)
    assert len(trace.points) == 201
    assert trace.points[7][1] is None
    assert [t for t, _ in trace.points] == [pytest.approx(0.1 * i) for i in range(201)], "looks that take time do not drift"
    again = read_trace(path)
    assert list(again.points) == list(trace.points)
    for name in ("unit", "source", "metric", "kind", "scope", "wrap_j", "period_s"):
        assert getattr(again, name) == getattr(trace, name)
    assert path.read_text().startswith("# source: RAPL package-0\n")
    meter = ReplayMeter([path])
    with meter.window() as w:
        meter.clock.sleep(19.95)
    assert w["energy/cpu_j"].joules == pytest.approx(80 * 19.9, rel=1e-3), "through one wrap; held since the sample at 19.9 s"
    assert w["energy/cpu_j"].scope == "packages"


def test_two_traces_are_two_zones():
    trace = {"points": [(0.0, 50.0), (100.0, 50.0)], "metric": "energy/cpu_j"}
    meter = ReplayMeter([Trace(**trace, source="package-0"), Trace(**trace, source="package-1")])
    meter.start()
    meter.clock.sleep(10)
    assert meter.stop() == {"energy/cpu_j": pytest.approx(1000)}
    assert meter.sources == {"energy/cpu_j": "package-0 + package-1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("t_s,value\n0,1\n", "does not say its unit"),
        ("# unit: kWh\nt_s,value\n0,1\n", "Unknown unit of a trace 'kWh'"),
        ("# unit: W\n# colour: red\n", "line 2.*Unknown name 'colour'"),
        ("# unit: W\nt_s,value\n0,1\n1,x\n", "line 4"),
        ("# unit: W\nt_s,value\n0,1,2\n", "line 3"),
        ("# unit: W\n# period_s: often\n", "line 2"),
        ("# unit: W\nt_s,value\n", "one sample at least"),
        ("# unit: W\nt_s,value\n1,1\n1,2\n", "times that grow"),
        ("# unit: J\nt_s,value\n0,nan\n", "not a finite number"),
        ("# unit: W\nt_s,value\n0,-1\n", "below zero"),
    ],
)
def test_a_file_that_is_no_trace_says_where(tmp_path, text, told):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read_trace(path)


def test_a_file_that_is_not_there_and_an_interval_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(UserError, match="interval_s"):
        record_trace(tmp_path / "x.csv", Counter("energy/gpu_j", "x", float), 1.0, 2.0)
