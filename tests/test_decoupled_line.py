"""Replay buffers and the order of turns: the rules against twins, the statistics against closed forms and figures of the rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.decoupled import EventLine, RandomLine, ReplayBuffer, RoundRobin, Tandem
from workbench.decoupled.line import link

# --- the buffer -------------------------------------------------------------------------------------------


class Twin:
    """The rules told by places and a write pointer, as one reads them in the papers and their code."""

    def __init__(self, M: int, quirk: bool) -> None:
        self.slots, self.uses, self.pointer, self.quirk = [None] * M, [0] * M, 0, quirk

    def write(self, item) -> None:
        self.slots[self.pointer], self.uses[self.pointer] = item, 0
        self.pointer = (self.pointer + 1) % len(self.slots)

    def read(self):
        filled = [i for i, slot in enumerate(self.slots) if slot is not None]
        if not filled:
            return None
        least = [i for i in filled if self.uses[i] == min(self.uses[k] for k in filled)]
        # places from the pointer on were written a lap before; the official comparison leaves the pointer's own place out
        behind = [i for i in least if (i > self.pointer if self.quirk else i >= self.pointer)]
        ahead = [i for i in least if i not in behind]
        place = max(ahead) if ahead else max(behind)
        self.uses[place] += 1
        return self.slots[place]


@given(st.integers(1, 6), st.booleans(), st.lists(st.booleans(), max_size=60))
@settings(max_examples=150, deadline=None)
def test_the_buffer_reads_and_writes_by_the_rules(M, quirk, moves):
    buffer, twin, number = ReplayBuffer(M, "official_off_by_one" if quirk else "newest"), Twin(M, quirk), 0
    for write in moves:
        if write:
            number += 1
            buffer.write(number)
            twin.write(number)
        else:
            assert buffer.read() == twin.read()


def test_statistics_by_hand():
    buffer = ReplayBuffer(2)
    assert buffer.read() is None
    assert (buffer.reuse, buffer.age, buffer.unread) == (None, None, None)
    for item in "ab":
        buffer.write(item)
    assert [buffer.read() for _ in range(4)] == ["b", "a", "b", "a"]
    buffer.write("c")  # over a, which was read
    assert buffer.read() == "c"
    buffer.write("d")  # over b
    buffer.write("e")  # over c
    buffer.write("f")  # over d, which nobody read
    assert buffer.unread == 1 / 4
    assert buffer.reuse == 2 / 5
    assert buffer.age == 2 / 5  # b 0, a 1, b 0, a 1, c 0
    assert buffer.ages == {0: 3, 1: 2}


def test_reads_can_be_limited():
    buffer = ReplayBuffer(3, max_reads=2)
    buffer.write("a")
    assert [buffer.read() for _ in range(3)] == ["a", "a", None]
    buffer.write("b")
    assert [buffer.read() for _ in range(3)] == ["b", "b", None]
    for wrong in ({"capacity": 0}, {"capacity": 1, "max_reads": -1}):
        with pytest.raises(UserError, match="capacity from 1 on"):
            ReplayBuffer(**wrong)
    with pytest.raises(UserError, match="Did you mean 'newest'"):
        ReplayBuffer(1, "newst")


def test_bytes_of_a_buffer_are_those_of_what_it_holds():
    import torch

    buffer = ReplayBuffer(2)
    for n in (10, 20, 30):
        buffer.write((b"x" * n, torch.zeros(n, dtype=torch.int16), (torch.zeros(2, 3), n)))
    assert buffer.nbytes == sum(n + 2 * n + 24 for n in (20, 30))


# --- statistics of the paper's simulation -------------------------------------------------------------------


def simulate(M: int, S: float, events: int, recency: str = "newest", J: int = 6, slow: int = 3) -> list[ReplayBuffer]:
    line = RandomLine(J, [ReplayBuffer(M, recency) for _ in range(J - 1)], [S if j == slow else 1.0 for j in range(J)], seed=4)
    for _ in range(events):
        line.turn(lambda j, item: 0)
    return line.buffers


@pytest.mark.parametrize(("M", "S", "reuse", "age", "quirk_age"), [
    # six modules, the fourth slow; on a normal link, into the slow module, behind it. Means of a simulation of these rules of
    # 60,000 turns that shares no code with this one, to two digits (reuse) and one (age)
    (1, 2.0, (0.50, 0.32, 0.67), (0, 0, 0), (0, 0)),
    (5, 1.0, (0.25, 0.24, 0.25), (0.7, 0.7, None), (1.6, 1.6)),
    (30, 1.2, (0.10, 0.03, 0.21), (2.3, 2.2, None), (5.4, 7.6)),
    (50, 2.0, (0.08, 0.00, 0.52), (3.2, 0.9, None), (7.2, 26.2)),
])
def test_reuse_and_age_of_the_random_order(M, S, reuse, age, quirk_age):
    """Tolerances: three standard deviations of a share, 0.008 at most for 3,600 reads and more in either run, and half a digit of the
    figure; for an age, whose reads are correlated over some M² turns, 20 % and half a digit.
    """
    links = simulate(M, S, 40_000)
    for place, expected, old in zip((0, 2, 3), reuse, age, strict=True):
        assert links[place].reuse == pytest.approx(expected, abs=0.035)
        if old is not None:
            assert links[place].age == pytest.approx(old, abs=0.05 + 0.2 * old)
    quirk = simulate(M, S, 40_000, "official_off_by_one")
    for place, expected in zip((0, 2), quirk_age, strict=True):
        assert quirk[place].age == pytest.approx(expected, abs=0.05 + 0.2 * expected)


def test_a_buffer_of_one_reuses_as_the_rates_say():
    """Reader's rate over the sum of both: each read is of a fresh batch if a write came since the last read."""
    for S, expected in ((1.0, (0.5, 0.5)), (3.0, (1 / 4, 3 / 4))):
        links = simulate(1, S, 15_000, J=3, slow=1)
        # 2,100 reads at least: standard error below 0.01
        assert (links[0].reuse, links[1].reuse) == pytest.approx(expected, abs=0.03)


def test_what_a_slow_module_leaves_unread_and_what_its_reader_repeats():
    """Large M: of every S batches the slow module takes one, and behind it every batch is read S times."""
    links = simulate(50, 2.0, 30_000)
    assert links[2].unread == pytest.approx(0.5, abs=0.03)
    assert links[3].reuse == pytest.approx(0.5, abs=0.03)


def test_turns_are_drawn_by_pace_and_begin_with_a_warm_up():
    slowdown = (1.0, 2.0, 1.0, 4.0)
    line = RandomLine(4, [ReplayBuffer(3) for _ in range(3)], slowdown, seed=1)
    order = [line.turn(lambda j, item: j) for _ in range(20_000)]
    assert order[:8] == [0, 0, 1, 1, 2, 2, 3, 3]
    rates = np.array([1, 0.5, 1, 0.25])
    # binomial standard deviation below 0.0035
    assert np.bincount(order) / len(order) == pytest.approx(rates / rates.sum(), abs=0.015)
    assert line.now == pytest.approx(20_000 / rates.sum())
    assert line.turns == np.bincount(order).tolist()
    with pytest.raises(UserError, match="one positive number for each of the 4"):
        RandomLine(4, line.buffers, (1, 1, 0, 1))


# --- modules in step ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_a_tandem_with_fixed_durations_has_a_closed_form(durations, batches):
    clock = Tandem(len(durations))
    for _ in range(batches):
        clock.batch(durations, [0] * (len(durations) - 1))
    assert clock.now == sum(durations) + (batches - 1) * max(durations)
    assert clock.idle == pytest.approx(1 - batches * sum(durations) / (len(durations) * clock.now))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_a_tandem_keeps_the_rules_of_a_line(table, delay):
    clock, spans = Tandem(3), []
    for durations in table:
        spans.append(clock.batch(durations, [delay, delay]))
    for n, (row, durations) in enumerate(zip(spans, table, strict=True)):
        for j, (begin, end) in enumerate(row):
            assert end - begin == durations[j]
            if j:
                assert begin >= row[j - 1][1] + delay, "the batch is there"
            if n:
                assert begin >= spans[n - 1][j][1], "one batch at a time"
            if n > 1 and j < 2:  # one waits at the border, so batch n - 2 has been taken up when n is begun
                assert begin >= spans[n - 2][j + 1][0]


# --- each at its own pace -----------------------------------------------------------------------------------


def events(durations, M=10, links=None, size=0, turns=100, **options):
    spans, got, fresh = [], [[] for _ in durations], itertools.count()
    line = EventLine(durations, [ReplayBuffer(M, **options) for _ in durations[1:]], links, lambda message: size, spans)

    def work(j, item):
        item = next(fresh) if j == 0 else item
        got[j].append(item)
        return item

    for _ in range(turns):
        line.turn(work)
    return line, spans, got


def test_equal_paces_and_no_delay_are_lock_step():
    """Every batch goes through every module once, in order, one step behind the module before."""
    for M in (1, 4):
        _, spans, got = events((0.1, 0.1, 0.1), M, turns=300)
        assert all(items == list(range(len(items))) for items in got)
        begun = [[begin for j, begin, _ in spans if j == module] for module in range(3)]
        assert begun[1][:50] == begun[0][1:51]
        assert begun[2][:50] == begun[0][2:52]


def test_round_robin_with_buffers_of_one_is_lock_step():
    line, order, got = RoundRobin(3, [ReplayBuffer(1), ReplayBuffer(1)]), [], [[], [], []]

    def work(j, item):
        got[j].append(len(got[0]) if j == 0 else item)
        return got[j][-1]

    for _ in range(30):
        order.append(line.turn(work))
    assert order == [0, 1, 2] * 10
    assert got[0] == got[1] == got[2] == list(range(10))
    assert line.now == pytest.approx(10)


def test_a_slow_module_holds_up_nobody_before_it_and_idles_nobody_behind_it():
    line, spans, got = events((1.0, 3.0, 1.0), M=5, turns=700)
    assert [begin for j, begin, _ in spans if j == 0] == [float(i) for i in range(len(got[0]))]
    # the slow one takes the newest of the unread batches each time: batch 0 at once, then what is new when it is free
    assert got[1][:4] == [0, 3, 6, 9]
    # behind it, a batch in three steps is new, after a start in which the last module waits for 4 units
    assert line.buffers[1].reuse == pytest.approx(2 / 3, abs=0.02)
    assert line.buffers[0].reuse == 0
    assert line.idle[0] == 0
    assert line.idle[2] == pytest.approx(4 / line.now)
    assert line.buffers[0].unread == pytest.approx(2 / 3, abs=0.02)


def test_messages_take_latency_and_bandwidth():
    """100 bytes at 50 a unit take 2; a sender that is faster waits for its link."""
    line, spans, got = events((1.0, 1.0), M=10, links=[link(0.5, 50)], size=100, turns=60)
    first, second = ([begin for j, begin, _ in spans if j == module] for module in range(2))
    # step ends at 1; sent 1-3; the next step may begin at 1, ends at 2, its message waits until 3, and so on
    assert first[:5] == [0, 1, 3, 5, 7]
    assert second[0] == 1 + 2 + 0.5
    assert line.idle[1] > 0
    # in between, the reader repeats what it has
    assert got[1][:6] == [0, 0, 1, 1, 2, 2]
    free, _, _ = events((1.0, 1.0), M=10, links=[link()], size=10**9, turns=60)
    assert free.now == 30  # a turn at 0, two at each moment from 1 to 29, one more


def test_a_reader_that_may_not_repeat_waits_for_the_next_batch():
    line, spans, got = events((3.0, 1.0), M=2, max_reads=1, turns=80)
    assert got[1] == list(range(len(got[1])))
    assert [begin for j, begin, _ in spans if j == 1][:3] == [3, 6, 9]
    assert line.idle[1] == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("make", [
    lambda: EventLine((1.0, 0.7, 1.3), [ReplayBuffer(3), ReplayBuffer(3)], [link(0.2, 100), link(0.2, 100)], lambda m: 40),
    lambda: RandomLine(3, [ReplayBuffer(3), ReplayBuffer(3)], (1, 1, 2), seed=3),
    lambda: RoundRobin(3, [ReplayBuffer(1), ReplayBuffer(1)]),
], ids=["events", "random", "round_robin"])
def test_a_line_goes_on_from_its_state(make):
    import copy

    line, other = make(), make()
    for _ in range(25):
        line.turn(lambda j, item: j)
    other.load_state_dict(copy.deepcopy(line.state_dict()))
    orders = [[(j.turn(lambda k, item: (k, item)), j.now) for _ in range(40)] for j in (line, other)]
    assert orders[0] == orders[1]
    assert line.state_dict() == other.state_dict()


def test_wrong_lines_are_refused():
    with pytest.raises(UserError, match="one buffer for each border"):
        RoundRobin(3, [ReplayBuffer(1)])
    with pytest.raises(UserError, match="positive numbers"):
        EventLine((1.0, 0.0), [ReplayBuffer(1)])
