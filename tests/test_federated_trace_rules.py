"""Traces as data: what is refused, with the rule; saving and loading."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from tracking.errors import UserError
from workbench.federation.availability import Availability
from workbench.federation.clock import Speeds
from workbench.federation.trace import Trace, arrivals, buffered, contacts, rounds, windows


@pytest.mark.parametrize(("text", "message"), [
    ("client,time\n0,1", "columns client, time; needed are exactly client, duration"),
    ("client,duration\n0,0", "positive"), ("client,duration\n0,x", "positive"),
    ("client,duration\n0.5,1", "whole numbers"), ("client,duration\n-1,1", "whole numbers"),
    ("client,duration\n0,1\n2,1", "client 1 of 0..2 has no row"),
    ("client,duration\n", "at least one row"),
])
def test_a_wrong_file_of_step_times_is_refused(tmp_path, text, message):
    path = tmp_path / "times.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Speeds.from_file(path)
    with pytest.raises(UserError, match="no file"):
        Speeds.from_file(tmp_path / "other.csv")


HALF = Availability(leaves=[20.0] * 4 + [99.0] * 4)
CONTRADICTIONS = [
    (lambda s: contacts(s, selected=9, K=1, horizon=99), "given 9 with n = 8"),
    (lambda s: contacts(s, selected=2, K=0, horizon=99), "K, the local steps"),
    (lambda s: contacts(s, selected=2, K=1), "Say when the trace ends"),
    (lambda s: contacts(s, selected=2, K=1, horizon=-1), "finite horizon > 0"),
    (lambda s: contacts(s, selected=2, K=1, waiting=0, interaction=0, horizon=9), "must take time"),
    (lambda s: contacts(s, selected=2, K=1, waiting=-4, interaction=9, horizon=9), "not negative"),
    (lambda s: contacts(s, selected=2, K=1, horizon=6.9), "No server step"),
    (lambda s: contacts(s, selected=2, K=1, horizon=99, select="presnt"), "Did you mean 'present'"),
    (lambda s: contacts(s, selected=2, K=1, server_steps=9, availability=Availability()), "needs a horizon"),
    (lambda s: contacts(s, selected=5, K=1, horizon=99, select="present", availability=HALF),
     "Server step 3 selects 5 .* only 4 of 8"),
    (lambda s: rounds(s, selected=2, K=1, horizon=99, availability=Availability(leaves=[20.0] * 8)), "gone for good"),
    (lambda s: buffered(s, Z=9, K=1, horizon=99), "given Z = 9 with n = 8"),
    (lambda s: buffered(s, Z=5, K=1, horizon=99, availability=HALF), "never fills again"),
    (lambda s: arrivals(s, C=0, horizon=99), "C, the jobs in flight"),
    (lambda s: arrivals(s, C=2, route="self", horizon=99), "Did you mean 'same'"),
    (lambda s: arrivals(s, C=2, route="same", p=np.full(8, 1 / 8), horizon=99), "no effect"),
    (lambda s: arrivals(s, C=2, p=np.full(8, 1.0), horizon=99), "sum 1"),
    (lambda s: arrivals(s, C=2, horizon=99, availability=Availability(leaves=[20.0] * 8)), "gone for good"),
    (lambda s: windows(s, dt=0, K=1, horizon=99), "must take time"),
    (lambda s: windows(s, dt=1, K=1, horizon=99, availability=Availability(leaves=[1.0])), "1 times for 8 clients"),
    (lambda s: Availability(down_mean=3), "never down"),
    (lambda s: Availability(up_mean=0), "up_mean > 0"),
    (lambda s: Speeds([1.0, -1.0]), "positive, finite"),
    (lambda s: Speeds([0.5], "geometric"), "at least 1"),
    (lambda s: Speeds([1.0], "gamma"), "Unknown law"),
    (lambda s: Speeds([1.0], "recorded"), "from_file"),
    (lambda s: Speeds.linear(5, 100, K=1), "0 <= X < 100"),
    (lambda s: Speeds.two_classes(5, slow_fraction=2), "slow fraction"),
]


@pytest.mark.parametrize(("make", "message"), CONTRADICTIONS)
def test_contradictions_are_refused_with_the_rule(make, message):
    with pytest.raises(UserError, match=message):
        make(Speeds(np.ones(8)))


# --- the trace as data ------------------------------------------------------------------------------------------


def small(kind: str) -> Trace:
    speeds = Speeds(np.array([1.0, 2.0, 3.0, 4.0]))
    return {"contacts": lambda: contacts(speeds, selected=2, K=3, server_steps=30),
            "rounds": lambda: rounds(speeds, selected=2, K=3, server_steps=10),
            "buffered": lambda: buffered(speeds, Z=2, K=3, server_steps=10),
            "arrivals": lambda: arrivals(speeds, C=6, K=3, server_steps=30),
            "windows": lambda: windows(speeds, dt=4, K=3, server_steps=30)}[kind]()


def put(name: str, at: int, value: float):
    def fault(trace: Trace) -> dict:
        array = getattr(trace, name).copy()
        array[at] = value
        return {name: array}
    return fault


FAULTS = [
    ("contacts", put("time", 3, 21.0), "server steps take time"), ("arrivals", put("time", 3, 0.0), "order of time"),
    ("contacts", put("time", 3, np.nan), "finite"), ("contacts", put("client", 5, 4), "numbered 0..3"),
    ("contacts", put("client", 5, -1), "numbered 0..3"), ("contacts", put("steps", 5, -1), "0 steps or more"),
    ("contacts", put("steps", 5, 4), "at most K = 3"), ("rounds", put("steps", 5, 2), "every delivery is of K = 3"),
    ("contacts", put("start", 5, 3), r"start < step.*Broken at contact 5"),
    ("contacts", put("start", 5, -1), "start < step"),
    ("contacts", put("contact", 5, 9), "contacts before this one"), ("contacts", put("began", -1, 0.0), "not before"),
    ("contacts", put("began", -1, 9e9), "before it is delivered"),
    ("contacts", put("offsets", -1, 3), "offsets must rise"),
    ("windows", lambda t: {"client": np.zeros_like(t.client), "contact": np.arange(len(t.client), dtype=np.int32),
                           "start": t.start * 0, "began": t.began * 0}, "one contact a server step"),
    ("contacts", lambda t: {"steps": t.steps.astype(np.int64)}, "steps is int64"),
    ("contacts", lambda t: {"n": 0}, "needs a client"),
    ("arrivals", lambda t: {"offsets": np.r_[t.offsets[:1], t.offsets[2:3], t.offsets[2:]]}, "takes in 1 deliveries"),
]


@pytest.mark.parametrize(("kind", "fault", "message"), FAULTS)
def test_a_faulty_trace_is_refused_with_the_rule_it_breaks(kind, fault, message, tmp_path):
    trace = small(kind)
    broken = dataclasses.replace(trace, **fault(trace))
    with pytest.raises(UserError, match=message):
        broken.check()
    broken.save(tmp_path / "trace")
    with pytest.raises(UserError, match=message):
        Trace.load(tmp_path / "trace")


def test_versions_in_the_wrong_order_break_first_in_first_out():
    trace = small("arrivals")
    own = np.flatnonzero(trace.client == trace.client[-1])
    start, began = trace.start.copy(), trace.began.copy()
    a, b = next((a, b) for a, b in pairwise(own) if start[a] < start[b] < trace.step[a])
    start[[a, b]], began[[a, b]] = start[[b, a]], began[[b, a]]
    with pytest.raises(UserError, match="first in, first out"):
        dataclasses.replace(trace, start=start, began=began).check()


@pytest.mark.parametrize(("kind", "message"), [("contacts", "from the model of its last contact"),
                                               ("rounds", "begins from the newest model")])
def test_a_model_older_than_the_scheme_gives_is_refused(kind, message):
    trace = small(kind)
    start = trace.start.copy()
    start[int(np.flatnonzero(start > 0)[3])] -= 1
    with pytest.raises(UserError, match=message):
        dataclasses.replace(trace, start=start).check()


@pytest.mark.parametrize("kind", ["contacts", "rounds", "buffered", "arrivals", "windows"])
def test_save_load_and_table(kind, tmp_path):
    trace = small(kind)
    trace.save(tmp_path / "trace.npz")
    again = Trace.load(tmp_path / "trace.npz")
    for field in dataclasses.fields(Trace):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(trace, field.name))
    table = trace.table()
    assert table.groupby("client").steps.count().tolist() == trace.deliveries().tolist()
    assert (table.staleness == table.step - 1 - table.start).all()
    assert (table.staleness >= 0).all()
    assert trace.facts["K"] == 3
    assert trace.facts["mean"] == [1.0, 2.0, 3.0, 4.0]
    gaps = np.diff(trace.time)
    assert trace.step_time == pytest.approx(gaps.mean())


def test_what_is_no_trace_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("no trace")
    np.savez(tmp_path / "other.npz", time=np.arange(3))
    for name, message in (("text", "not a trace file"), ("other.npz", "not a trace file"), ("absent", "no trace file")):
        with pytest.raises(UserError, match=message):
            Trace.load(tmp_path / name)
