"""The meter's windows against closed forms: traces of known energy, played on a clock that passes only when told to."""

from __future__ import annotations

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
    Trace,
    shortest_window,
)
from tracking.energy.counter import Lost, Track
from tracking.errors import UserError

GPU, CPU = "energy/gpu_j", "energy/cpu_j"


# --- windows ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 700), min_size=2, max_size=8), st.floats(0, 0.1), st.floats(5.0, 60.0))
@settings(deadline=None, max_examples=60)
def test_a_window_is_as_exact_as_it_says(watts, phase, length):
    """Any power, steady or not: each edge is off by at most one update at the highest power of the trace."""
    points = [(i * 10.0, w) for i, w in enumerate(watts)] + [(200.0, watts[-1])]
    meter = ReplayMeter([Trace(points, period_s=0.1)])
    meter.clock.sleep(phase)
    begin = meter.clock.now()
    with meter.window() as w:
        meter.clock.sleep(length)
    exact = meter.replayed[0].at(meter.clock.now()) - meter.replayed[0].at(begin)
    reading = w[GPU]
    if reading.joules is None:
        assert "did not move" in reading.note or "too short" in reading.note
        return
    assert abs(reading.joules - exact) <= 0.1 * max(watts) + 1e-6 * exact + 1e-9
    assert reading.t_s == pytest.approx(length)


@given(st.floats(0, 0.1), st.floats(5.0, 60.0), st.floats(1, 1000))
@settings(deadline=None, max_examples=60)
def test_the_interval_holds_the_truth_at_steady_power(phase, length, watts):
    meter = ReplayMeter([nvml_like(watts)])
    meter.clock.sleep(phase)
    with meter.window() as w:
        meter.clock.sleep(length)
    low, high = w[GPU].interval
    assert low <= watts * length * (1 + 1e-9)
    assert high >= watts * length * (1 - 1e-9)
    assert w[GPU].rel_err == pytest.approx(0.2 / length)
    assert abs(w[GPU].n_updates - length / 0.1) <= 1, "every update was seen, give or take an edge"


def test_a_reading_says_what_it_is_of():
    meter = ReplayMeter([nvml_like(source="NVML", scope="board")])
    with meter.window("w") as w:
        assert GPU in w
        meter.clock.sleep(25)
    r = w[GPU]
    assert (r.kind, r.source, r.scope, r.attributed) == ("counter", "NVML", "board", False)
    assert r.joules == pytest.approx(2500)
    assert r.mean_w == pytest.approx(100)
    assert r.note.startswith("Whether other processes"), "long enough to compare; who else was there is not known"
    assert list(w) == [GPU]
    assert CPU not in w


@pytest.mark.parametrize(("period", "seconds"), [(0.1, 5.0), (0.001, 0.05)])
def test_the_rule_of_five_seconds_and_its_like(period, seconds):
    """0.2/T at most 4 %: 5 s with NVML's counter, 50 ms with RAPL's; a hundredth less is refused, not extrapolated."""
    assert shortest_window(period) == pytest.approx(seconds)
    assert shortest_window(period, 0.01) == pytest.approx(4 * seconds)
    meter = ReplayMeter([steady(period_s=period)])
    with meter.window() as short:
        meter.clock.sleep(0.99 * seconds)
    assert short[GPU].joules is None
    assert short[GPU].interval is None
    assert f"at least {seconds:g} s" in short[GPU].note
    with meter.window() as enough:
        meter.clock.sleep(1.01 * seconds)
    assert enough[GPU].joules == pytest.approx(101 * seconds, rel=0.04)
    assert f"To compare two methods, a window of {4 * seconds:g} s" in enough[GPU].note


def test_a_counter_that_is_slower_than_stated_is_found_out():
    """Stated 0.1 s, in truth 1 s: 10 updates in 10 s, so the error is 20 % and the figure is refused; 60 s are enough."""
    clock = ReplayClock()
    slow = ReplayCounter(steady(period_s=1.0), clock).counter
    meter = EnergyMeter([Counter(GPU, "slow", slow.read, period_s=0.1)], clock=clock)
    with meter.window() as w:
        clock.sleep(10)
    assert w[GPU].joules is None
    assert w[GPU].n_updates == 10
    assert "too short" in w[GPU].note
    with meter.window() as w:
        clock.sleep(60)
    assert w[GPU].joules == pytest.approx(6000)
    assert 2 / 61 <= w[GPU].rel_err <= 2 / 60


def test_a_counter_that_stands_still_measures_nothing():
    clock = ReplayClock()
    meter = EnergyMeter([Counter(GPU, "stuck", lambda: 7.0, period_s=0.1)], clock=clock)
    with meter.window() as w:
        clock.sleep(100)
    assert w[GPU].joules is None
    assert "did not move" in w[GPU].note
    meter.start()
    clock.sleep(100)
    assert meter.stop() == {}, "never zero"


def test_two_zones_add_up_and_a_reset_of_one_loses_both():
    clock = ReplayClock()
    zones = [ReplayCounter(steady(w, metric=CPU, source=s, period_s=0.001), clock, resets=r) for w, s, r in
             ((80, "package-0", ()), (60, "package-1", (50.0,)))]
    meter = EnergyMeter([z.counter for z in zones], clock=clock)
    with meter.window() as w:
        clock.sleep(20)
    assert w[CPU].joules == pytest.approx(2800)
    assert w[CPU].source == "package-0 + package-1"
    with meter.window() as w:
        clock.sleep(60)
    assert w[CPU].joules is None
    assert "package-1 went back" in w[CPU].note
    with meter.window() as w:  # windows are independent
        clock.sleep(20)
    assert w[CPU].joules == pytest.approx(2800)


def test_a_reset_is_seen_though_the_counter_has_climbed_past_its_start():
    """100 W, reset after 6 s of 100: at the end the counter shows more than at the beginning, and only the looks in between tell."""
    meter = ReplayMeter([nvml_like()], resets=(11.0,))
    meter.clock.sleep(5)
    with meter.window() as w:
        meter.clock.sleep(100)
    assert w[GPU].joules is None
    assert "went back" in w[GPU].note


def test_a_long_window_over_many_wraps():
    """A range of 1000 J comes round every 10 s at 100 W; looked at each second (half of what 500 W would take), nothing is missed."""
    clock = ReplayClock()
    shown = ReplayCounter(steady(metric=CPU, wrap_j=1000.0, period_s=0.001), clock, start_j=900)
    c = shown.counter
    meter = EnergyMeter([Counter(CPU, "package-0", c.read, 1000.0, 0.001, max_w=500.0)], clock=clock)
    with meter.window() as w:
        clock.sleep(95)
    assert w[CPU].joules == pytest.approx(9500)
    assert shown.looks == pytest.approx(97, abs=1)
    meter.start()
    clock.sleep(95)
    assert meter.stop() == {CPU: pytest.approx(9500)}


def test_a_counter_left_alone_for_a_whole_wrap_is_lost():
    clock = ReplayClock()
    shown = ReplayCounter(steady(metric=CPU, wrap_j=1000.0), clock)
    track = Track(Counter(CPU, "package-0", shown.counter.read, 1000.0, max_w=500.0), clock)
    track.anchor()
    clock.sleep(1.9)
    assert track.read() == pytest.approx(190)
    clock.sleep(2.0)
    with pytest.raises(Lost, match="more than once"):
        track.read()


def test_missing_samples_lose_the_figure_at_an_edge_and_do_not_matter_in_between():
    points = [(0.0, False), (10.0, False), (11.0, True), (12.0, False), (100.0, False)]
    samples = [(t, None if missing else 100 * t) for t, missing in points]
    meter = ReplayMeter([Trace(samples, "J")])
    with meter.window() as across:
        meter.clock.sleep(50)
    assert across[GPU].joules == pytest.approx(1200), "the last sample before 50 s is that of 12 s"
    meter = ReplayMeter([Trace(samples, "J")])
    with meter.window() as into:
        meter.clock.sleep(11.5)
    assert into[GPU].joules is None
    assert "no sample at 11.5" in into[GPU].note


def test_a_late_stop_is_absent():
    meter = ReplayMeter([Trace([(0.0, 100.0), (20.0, 100.0)])])
    with meter.window() as w:
        meter.clock.sleep(30)
    assert w[GPU].joules is None
    assert "runs from 0 s to 20 s" in w[GPU].note


def test_an_open_window_has_no_readings_and_a_failure_inside_closes_it():
    meter = ReplayMeter([nvml_like()])
    with meter.window("w") as w:
        with pytest.raises(UserError, match="still open"):
            w[GPU]
        meter.clock.sleep(10)

    def fail():
        with meter.window("x") as x:
            seen.append(x)
            meter.clock.sleep(10)
            raise ValueError("the work broke")

    seen = []
    with pytest.raises(ValueError, match="the work broke"):
        fail()
    assert seen[0][GPU].joules == pytest.approx(1000)


def test_what_has_no_counter_says_why():
    with EnergyMeter([], missing={GPU: "no driver"}).window() as w:
        pass
    assert w[GPU].joules is None
    assert w[GPU].note == "energy/gpu_j was not measured: no driver"
    assert w[GPU].kind is None
    assert len(w) == 0


def test_the_device_is_waited_for_at_both_edges():
    """Work that is queued takes its time when the device is waited for: before the first edge it is outside, before the second inside."""
    clock, queued = ReplayClock(), [7.0]
    counter = ReplayCounter(nvml_like(), clock).counter
    meter = EnergyMeter([counter], clock=clock, synchronize=lambda: clock.sleep(queued.pop() if queued else 0.0))
    with meter.window() as w:
        queued.append(20.0)
    assert w[GPU].joules == pytest.approx(2000)
    queued.append(7.0)
    meter.start()
    queued.append(20.0)
    assert meter.stop() == {GPU: pytest.approx(2000)}


# --- idle, sharing, attribution, repetition -----------------------------------------------------------------


def test_above_idle_needs_idle_before_and_after():
    """Rest at 50 W, work at 300 W for 20 s, rest at 70 W: 6000 J, of which 20 s at their mean of 60 W are idle."""
    trace = Trace([(0.0, 50.0), (30.0, 50.0), (30.001, 300.0), (50.0, 300.0), (50.001, 70.0), (200.0, 70.0)])
    meter = ReplayMeter([trace])
    meter.measure_idle(30)
    with meter.window() as w:
        meter.clock.sleep(20)
    assert w[GPU].above_idle_j is None
    assert w[GPU].idle_w == (pytest.approx(50), None)
    assert "not measured after" in w[GPU].note
    idle = meter.measure_idle(30)
    r = w[GPU]
    # the millisecond in which the trace changes power moves a quarter of a joule
    assert r.joules == pytest.approx(6000, rel=1e-3)
    assert r.idle_w == (pytest.approx(50), pytest.approx(70, rel=1e-3))
    assert r.above_idle_j == pytest.approx(6000 - 1200, rel=1e-3)
    assert idle[GPU].idle_w == (None, None)
    with meter.window() as later:
        meter.clock.sleep(10)
    assert later[GPU].idle_w == (pytest.approx(70, rel=1e-3), None)
    assert r.idle_w[1] == w[GPU].idle_w[1], "a later measurement does not touch what is complete"


def test_idle_that_is_too_short_gives_no_idle_power():
    meter = ReplayMeter([nvml_like()])
    assert "too short" in meter.measure_idle(1)[GPU].note
    with meter.window() as w:
        meter.clock.sleep(10)
    assert w[GPU].idle_w == (None, None)


@pytest.mark.parametrize(
    ("answers", "shared", "above"),
    [((False, False), False, True), ((False, True), True, False), ((True, False), True, False), ((False, None), None, True)],
)
def test_others_on_the_device_leave_no_figure_above_idle(answers, shared, above):
    clock = ReplayClock()
    counter = ReplayCounter(steady(), clock).counter
    told = iter((False, False, *answers, False, False))
    meter = EnergyMeter([Counter(GPU, "board", counter.read, others=lambda: next(told))], clock=clock)
    meter.measure_idle()
    with meter.window() as w:
        clock.sleep(10)
    meter.measure_idle()
    assert w[GPU].shared is shared
    assert w[GPU].joules == pytest.approx(1000)
    assert (w[GPU].above_idle_j is not None) is above
    assert ("Other processes were on the device" in w[GPU].note) is (shared is True)


def test_shares_of_a_window_add_up_to_it_and_are_marked():
    meter = ReplayMeter([nvml_like()])
    with meter.window() as w:
        meter.clock.sleep(10)
    parts = w.attribute({"forward": 2.5, "backward": 5.0})
    assert parts["forward"][GPU].joules == pytest.approx(250)
    assert parts["backward"][GPU].joules == pytest.approx(500)
    for part in parts.values():
        assert part[GPU].attributed
        assert part[GPU].note.startswith("attributed")
        assert part[GPU].rel_err is part[GPU].above_idle_j is part[GPU].interval is None
    with pytest.raises(UserError, match="do not fit"):
        w.attribute({"a": 8.0, "b": 3.0})
    with meter.window() as short:
        meter.clock.sleep(1)
    assert short.attribute({"a": 0.5})["a"][GPU].joules is None


@pytest.mark.parametrize(("seconds", "step_s"), [(None, 0.003), (20.0, 0.003), (20.0, 7.0), (1e-9, 6.0)])
def test_a_step_is_repeated_until_the_window_is_long_enough(seconds, step_s):
    meter = ReplayMeter([nvml_like()])
    calls = []
    work = meter.repeat_for(lambda: (calls.append(1), meter.clock.sleep(step_s)), seconds, warmup=2)
    assert work.steps == len(calls) - 2 >= 1
    assert work.window.t_s == pytest.approx(work.steps * step_s)
    assert work.window.t_s >= (seconds or 5.0)
    assert work.window.t_s <= 1.11 * (seconds or 5.0) + step_s, "the last chunk is at most a tenth"
    exact = 100 * step_s
    low, high = work.interval(GPU)
    assert low <= exact * (1 + 1e-9)
    assert exact <= high * (1 + 1e-9)
    assert work.joules(GPU) == pytest.approx(work.reading(GPU).joules / work.steps)


def test_repetition_without_a_counter_is_absent():
    work = EnergyMeter([], clock=(clock := ReplayClock())).repeat_for(lambda: clock.sleep(0.1), 1.0)
    assert work.joules(GPU) is None
    assert work.interval(GPU) is None


def test_kinds_of_number_are_not_mixed():
    with pytest.raises(UserError, match="Unknown kind"):
        Counter(GPU, "x", float, kind="guess")
    with pytest.raises(UserError, match="computed, not metered"):
        Counter(GPU, "x", float, kind="modelled")
    with pytest.raises(UserError, match="energy/proxy_j"):
        Counter(GPU, "TDP", float, kind="proxy")
    with pytest.raises(UserError, match="energy/proxy_j"):
        Counter("energy/proxy_j", "NVML", float)
    assert Counter("energy/proxy_j", "TDP", float, kind="proxy").kind == "proxy"
    with pytest.raises(UserError, match="cannot add up figures of the kinds counter and integrated"):
        EnergyMeter([Counter(GPU, "a", float), Counter(GPU, "b", float, kind="integrated")])
