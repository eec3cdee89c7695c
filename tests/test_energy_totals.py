"""The meter's running totals, its clocks and its threads, against closed forms."""

from __future__ import annotations

import gc
import math
import random
import statistics
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.energy_helpers import nvml_like, steady
from tracking.energy import (
    Counter,
    EnergyMeter,
    ReplayClock,
    ReplayCounter,
    ReplayMeter,
    Resolution,
    SystemClock,
)

GPU, CPU = "energy/gpu_j", "energy/cpu_j"


# --- totals: looks are rationed, joules are not -------------------------------------------------------------


LOOP = st.lists(st.tuples(st.floats(1e-4, 0.3), st.floats(0, 2e-3), st.booleans()), min_size=1, max_size=60)


@given(LOOP, st.sampled_from([0, 2e-5, 3e-4, 5e-3]))
@settings(deadline=None, max_examples=100)
def test_no_joule_is_lost_and_none_is_invented(steps, read_s):
    """Whatever the looks cost: the total is the power times the steps and the bridged gaps, plus at most the time of looks themselves."""
    meter = ReplayMeter([steady(100)], read_s=read_s)
    clock, worked = meter.clock, 0.0
    for step_s, gap_s, settle in steps:
        meter.start()
        clock.sleep(step_s)
        worked += step_s
        meter.stop(soon=True)
        if settle:
            meter.settle()
        clock.sleep(gap_s)
    total = meter.settle()[GPU]
    r = meter.resolution()[GPU]
    looks = meter.replayed[0].looks * read_s
    assert total >= 100 * worked * (1 - 1e-9)
    assert total <= 100 * (worked + r.bridged_s + looks) * (1 + 1e-9)
    assert r.t_s == pytest.approx(worked + r.bridged_s, abs=looks + 1e-9)


@pytest.mark.parametrize("read_s", [2e-5, 3e-4, 2e-3])
def test_looks_stay_under_one_percent_of_the_time(read_s):
    """Ten thousand steps of 10 ms with gaps of 0.1 ms. The first two looks tell the price; from then on one look each 200 prices."""
    meter = ReplayMeter([steady()], read_s=read_s)
    begin = meter.clock.now()
    given_ = 0
    for _ in range(10_000):
        meter.start()
        meter.clock.sleep(0.01)
        given_ += bool(meter.stop(soon=True))
        meter.clock.sleep(1e-4)
    elapsed = meter.clock.now() - begin
    looks = meter.replayed[0].looks
    assert looks * read_s <= 0.005 * elapsed + 3 * read_s
    assert given_ == pytest.approx(10_000 / math.ceil(200 * read_s / 0.0101), rel=0.1), "and it does look when it may"
    assert meter.settle()[GPU] == pytest.approx(100 * elapsed, rel=0.011), "bridged gaps are in it: one percent of the time here"


def test_a_report_without_a_look_has_no_figure_and_the_next_has_all():
    meter = ReplayMeter([steady()], read_s=1e-3)
    shown = []
    for _ in range(30):
        meter.start()
        meter.clock.sleep(0.01)
        shown.append(meter.stop(soon=True).get(GPU))
    known = [x for x in shown if x is not None]
    assert None in shown
    assert len(known) >= 2
    assert known == sorted(known)
    meter.start()
    meter.clock.sleep(0.01)
    meter.stop(soon=True)
    assert meter.settle()[GPU] >= 31 * 0.01 * 100


def test_a_long_gap_after_a_look_is_left_out_and_a_short_one_is_known():
    meter = ReplayMeter([steady()], read_s=1e-3)
    for _ in range(2):  # the price is known now: a look every 0.2 s
        meter.start()
        meter.clock.sleep(1.0)
        assert meter.stop(soon=True) != {}
        meter.clock.sleep(50.0)
    meter.start()
    meter.clock.sleep(1.0)
    assert meter.stop()[GPU] == pytest.approx(300, rel=0.01), "100 s of waiting are not in it"
    assert meter.resolution()[GPU].bridged_s == 0
    assert meter.resolution()[GPU].stretches == 3


def test_a_reset_loses_the_totals_and_not_the_windows_to_come():
    meter = ReplayMeter([steady()], resets=(15.0,))
    meter.clock.sleep(10)
    meter.start()
    meter.clock.sleep(10)
    assert meter.stop() == {}
    assert "went back" in meter.closing_tags()["energy.lost.gpu_j"]
    with meter.window() as w:
        meter.clock.sleep(10)
    assert w[GPU].joules == pytest.approx(1000)


def test_settle_twice_and_nothing_open():
    meter = ReplayMeter([steady()])
    assert meter.settle() == {}
    meter.start()
    meter.clock.sleep(1)
    meter.stop(soon=True)
    assert meter.settle() == meter.settle() == {GPU: pytest.approx(100)}
    meter.clock.sleep(50)
    meter.start()
    meter.clock.sleep(1)
    assert meter.stop() == {GPU: pytest.approx(200)}


def test_the_resolution_of_a_total():
    """Ten stretches of 1 s with a counter of 0.1 s: 20 edges of 0.1 s in 10 s; typically sqrt(20/12) of them."""
    meter = ReplayMeter([nvml_like()])
    for _ in range(10):
        meter.start()
        meter.clock.sleep(1.0)
        meter.stop()
        meter.clock.sleep(3.3)
    r = meter.resolution()[GPU]
    assert (r.stretches, r.t_s, r.bridged_s) == (10, pytest.approx(10), 0)
    assert r.worst == pytest.approx(0.2)
    assert r.typical == pytest.approx(math.sqrt(20 / 12) * 0.1 / 10)
    assert "too coarse to compare" in str(r)


@pytest.mark.parametrize(
    ("resolution", "verdict"),
    [
        (Resolution(0.1, 0.01, 1, 0.0), "dominated by the counter's resolution"),
        (Resolution(0.1, 100 * 0.05, 100, 0.0), "dominated by the counter's resolution"),
        (Resolution(0.1, 0.5, 1, 0.0), "too coarse to print"),
        (Resolution(0.1, 2.0, 1, 0.0), "too coarse to compare"),
        (Resolution(0.1, 100.0, 1, 0.5), "fit for comparison"),
    ],
)
def test_a_total_made_of_edges_says_so(resolution, verdict):
    assert verdict in str(resolution)
    assert ("lay between steps" in str(resolution)) is (resolution.bridged_s > 0)


def test_the_typical_error_is_what_random_phases_give():
    """2000 windows of 5 s at random phases: their spread is the formula's within five standard errors of a spread (8 %)."""
    rng = random.Random(5)
    errors = []
    for _ in range(2000):
        meter = ReplayMeter([nvml_like()])
        meter.clock.sleep(rng.random())
        length = 5.0 + rng.random()
        meter.start()
        meter.clock.sleep(length)
        errors.append((meter.stop()[GPU] / (100 * length) - 1) * length)
    assert statistics.mean(errors) == pytest.approx(0, abs=5 * 0.041 / math.sqrt(2000))
    assert statistics.stdev(errors) == pytest.approx(Resolution(0.1, 1.0, 1, 0.0).typical, rel=0.08)


# --- clocks and threads -------------------------------------------------------------------------------------


def test_real_threads_look_in_between_and_end():
    """A counter of real time, renewed every 20 ms: its updates are counted, and no thread is left."""
    before = threading.active_count()
    begin = time.perf_counter()
    counter = Counter(GPU, "clock", lambda: 50.0 * (int((time.perf_counter() - begin) / 0.02) * 0.02), period_s=0.02)
    meter = EnergyMeter([counter])
    with meter.window() as w:
        time.sleep(1.05)
    # a busy machine may oversleep: updates are missed then, and the reading is judged by what was seen
    assert 1 <= w[GPU].n_updates <= 54
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_meter_that_is_forgotten_takes_its_thread_along():
    before = threading.active_count()
    meter = EnergyMeter([Counter(CPU, "package", time.perf_counter, 1e6, max_w=500.0)])
    meter.start()
    assert threading.active_count() == before + 1
    del meter
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_system_clock_calls_until_it_is_told_to_end():
    called = threading.Event()
    end = SystemClock().every(0.001, called.set)
    assert called.wait(10)
    end()


def test_a_look_that_was_interrupted_once_is_not_the_price():
    """One slow look among quick ones must not put off the next for two hundred times its length."""
    clock = ReplayClock()
    prices = iter([1e-4, 1e-4, 1.0, 1e-4, *[1e-4] * 10_000])
    power = ReplayCounter(steady(), clock)
    meter = EnergyMeter([Counter(GPU, "board", lambda: (clock.sleep(next(prices)), power.read())[1])], clock=clock)
    known = 0
    for _ in range(200):
        meter.start()
        clock.sleep(0.011)
        known += bool(meter.stop(soon=True))
    assert known >= 80, "due every 20 ms, so every other step"
