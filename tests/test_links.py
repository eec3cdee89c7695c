"""One link and many: closed forms, exact fractions, distributions and files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracking.links as links_package
from tracking.errors import UserError
from tracking.links import (
    PLAIN,
    TCP,
    TCP_TIMESTAMPS,
    TLS,
    Framing,
    Link,
    Links,
    expected_rounds,
    path,
    preset,
    presets,
)
from tracking.links.presets import TAGS

ROUNDING = 1e-12  # relative; a handful of float64 operations
LINK = Link(0.05, 1e6, 4e6)


# --- one link -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**10), st.sampled_from(["up", "down"]))
@settings(deadline=None)
def test_alpha_beta(n, direction):
    beta = {"up": 1e6, "down": 4e6}[direction]
    assert LINK.seconds(n, direction) == pytest.approx(0.05 + n / beta, rel=ROUNDING)
    assert LINK.transfer(n, direction).total_bytes == n


def wire_by_hand(n, framing):
    """Wrap records one by one, cut packets one by one."""
    n += framing.envelope_bytes
    carried = sum(framing.record_header_bytes + min(framing.record_bytes, n - at) for at in range(0, n, framing.record_bytes))
    sizes = [framing.header_bytes + min(framing.segment_bytes, carried - at) for at in range(0, carried, framing.segment_bytes)]
    return sum(sizes), len(sizes)


@given(st.integers(0, 60_000), st.builds(Framing, segment_bytes=st.integers(20, 1500), header_bytes=st.integers(0, 60),
                                         record_bytes=st.integers(50, 20_000), record_header_bytes=st.integers(0, 29),
                                         envelope_bytes=st.integers(0, 40)))
@settings(deadline=None)
def test_framing_is_the_sum_over_packets(n, framing):
    assert (framing.wire_bytes(n), framing.packets(n)) == wire_by_hand(n, framing)


def test_framing_overheads_are_the_textbooks():
    n = 1460 * 1448 * 16_384  # whole packets and records in every case
    assert TCP.wire_bytes(n) / n == pytest.approx(1 + 40 / 1460, rel=ROUNDING)
    assert TCP_TIMESTAMPS.wire_bytes(n) / n == pytest.approx(1500 / 1448, rel=ROUNDING)
    assert TLS.carried_bytes(n) / n == pytest.approx(1 + 29 / 16_384, rel=ROUNDING)
    assert PLAIN.wire_bytes(n) == n
    assert dataclasses.replace(LINK, framing=TCP).wire_bytes(1461) == 1461 + 80


@pytest.mark.parametrize(("packets", "loss"), list(itertools.product([1, 2, 7], [0.05, 0.5, 0.9])))
def test_expected_rounds_is_the_mean_of_the_maximum(packets, loss):
    """Oracle: inclusion and exclusion, a finite sum in place of the infinite one, in exact fractions."""
    p = Fraction(loss)
    exact = sum((-1) ** (j + 1) * math.comb(packets, j) / (1 - p**j) for j in range(1, packets + 1))
    assert expected_rounds(packets, loss) == pytest.approx(float(exact), rel=1e-11)
    assert expected_rounds(packets, 0) == 1
    assert expected_rounds(0, loss) == 0


@pytest.mark.parametrize(("n", "loss"), [(100, 0.3), (14_000, 0.2), (100_001, 0.6)])
def test_sampled_losses_have_the_expected_moments(n, loss):
    link = Link(0.1, 1e5, loss=loss, rto_s=2.0, framing=Framing(segment_bytes=1000, header_bytes=40))
    rng, mean = np.random.default_rng(5), link.transfer(n, "up")
    packets = -(-n // 1000)
    assert mean.transmissions == pytest.approx(packets / (1 - loss), rel=ROUNDING)
    draws = [link.transfer(n, "up", rng) for _ in range(4000)]
    for field in ("transmissions", "total_bytes", "timeout_s", "seconds"):
        found = np.array([getattr(d, field) for d in draws])
        # five standard errors: a false alarm in a million, and the generator is fixed anyhow
        assert abs(found.mean() - getattr(mean, field)) < 5 * found.std() / math.sqrt(len(found)), field
    for d in draws:
        again = d.transmissions - packets
        last = n - 1000 * (packets - 1) + 40
        assert d.retransmitted_bytes in {1040 * (again - k) + last * k for k in range(again + 1)}  # whole packets only
        assert d.timeout_s / 2 <= again <= (d.timeout_s / 2) * packets  # each round loses one packet at least and all at most


def test_sampling_is_keyed_by_the_generator():
    link = preset("lte", loss=0.1)
    one, same, other = (link.transfer(10**6, "up", np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == same != other
    assert isinstance(one.retransmitted_bytes, int)


def test_no_loss_draws_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    LINK.transfer(10**6, "up", rng)
    assert rng.bit_generator.state == before


@given(st.floats(1e-4, 10), st.floats(10, 1e9), st.sampled_from([PLAIN, TLS]), st.sampled_from([0.0, 0.2]))
@settings(deadline=None)
def test_crossing_is_where_the_time_is_twice_the_latency(alpha, beta, framing, loss):
    link = Link(alpha, beta, loss=loss, rto_s=0.01, framing=framing)
    at = link.crossing_bytes("up")
    assert link.seconds(at, "up") >= 2 * alpha
    assert at == 1 or link.seconds(at - 1, "up") < 2 * alpha
    if framing is PLAIN and not loss:
        assert at == pytest.approx(alpha * beta, rel=1e-9, abs=1)  # n_1/2, rounded up to a byte


def test_crossing_at_the_ends():
    assert Link(0, 1e6).crossing_bytes("up") == 0
    assert Link(1, math.inf).crossing_bytes("up") == math.inf


def test_path_adds_latencies_and_keeps_the_narrower_rate():
    way = path(Link(0.1, 10, 20, loss=0.5, rto_s=1), Link(0.2, 30, 5, loss=0.5, rto_s=3))
    assert (way.bandwidth_up, way.loss, way.rto_s) == (5, 0.75, 3)
    assert way.latency_s == pytest.approx(0.3)


@pytest.mark.parametrize(("kwargs", "word"), [
    ({"latency_s": -1}, "latency_s"), ({"latency_s": math.inf}, "latency_s"), ({"latency_s": math.nan}, "latency_s"),
    ({"bandwidth_up": 0}, "bandwidth_up"), ({"bandwidth_down": "fast"}, "bandwidth_down"), ({"loss": 1.0, "rto_s": 1}, "loss"),
    ({"loss": 0.1}, "rto_s"), ({"loss": 0.1, "rto_s": -1}, "rto_s")])
def test_impossible_links_are_refused(kwargs, word):
    with pytest.raises(UserError, match=word):
        Link(**({"latency_s": 0.1, "bandwidth_up": 1e6} | kwargs))


def test_impossible_messages_are_refused():
    for n in (-1, 1.5, math.nan, "many"):
        with pytest.raises(UserError, match="n_bytes"):
            LINK.seconds(n, "up")
    with pytest.raises(UserError, match="Did you mean 'up'"):
        LINK.seconds(1, "upp")
    with pytest.raises(UserError, match="segment_bytes"):
        Framing(segment_bytes=0)


# --- presets, populations ---------------------------------------------------------------------------------------


def test_every_number_of_a_preset_has_a_source_and_a_tag():
    rows = presets()
    names = {r["preset"] for r in rows}
    assert {"datacentre_10g", "datacentre_100g", "home_broadband", "lte", "5g", "wifi", "satellite_geo", "lora_sf7"} <= names
    for row in rows:
        assert row["tag"] in TAGS
        assert len(row["source"]) > 10
        assert row["description"]
        assert "measured" not in row["source"]
    for name in names:
        link = preset(name)
        shown = {r["number"]: r["value"] for r in rows if r["preset"] == name}
        assert {"latency_s", "bandwidth_up", "bandwidth_down"} <= set(shown)
        for field, value in shown.items():
            assert getattr(link, field, getattr(link.framing, field, None)) == value
    file = json.loads((Path(links_package.__file__).parent / "presets.json").read_text())
    assert sum(len(e) - 1 for e in file.values()) == len(rows)  # no number of the file goes unread


def test_preset_changes_and_mistakes():
    assert preset("lte", loss=0.01, latency_s=3) == dataclasses.replace(preset("lte"), loss=0.01, latency_s=3)
    with pytest.raises(UserError, match="Did you mean 'wifi'"):
        preset("wi-fi")
    with pytest.raises(UserError, match="Did you mean 'latency_s'"):
        preset("lte", latency=3)


DRAWS = {
    "fixed": {"link": "lte"},
    "uniform": {"low": Link(0.1, 1e5, 1e6), "high": Link(0.3, 5e5, 9e6)},
    "lognormal": {"median": "5g", "sigma": 0.7, "sigma_latency": 0.3},
    "mixture": {"weights": {"lte": 3, "wifi": 1}},
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_clients_link_depends_on_seed_and_client_alone(name):
    few, many = (Links.draw(n, name, seed=3, **DRAWS[name]) for n in (5, 40))
    assert list(few) == list(many)[:5]
    assert many == Links.draw(40, name, seed=3, **DRAWS[name])
    if name != "fixed":
        other = Links.draw(40, name, seed=4, **DRAWS[name])
        assert list(many)[1:] != list(other)[:-1]  # nor are clients of one seed those of the next, moved on by one
        assert many != other
        assert len(set(many)) > 1


def test_draws_follow_their_distribution():
    n = 2000
    even = Links.draw(n, "uniform", **DRAWS["uniform"])
    late, up, down = (np.array([getattr(x, f) for x in even]) for f in ("latency_s", "bandwidth_up", "bandwidth_down"))
    # Kolmogorov's bound at a chance of 1e-6: sqrt(log(2e6) / 2n)
    bound = math.sqrt(math.log(2e6) / (2 * n))
    ladder = np.arange(1, n + 1) / n
    assert abs(np.sort((late - 0.1) / 0.2) - ladder).max() < bound
    assert abs(np.sort((up - 1e5) / 4e5) - ladder).max() < bound
    assert (up - 1e5) / 4e5 == pytest.approx((down - 1e6) / 8e6)  # a wide line is wide both ways
    median = preset("5g")
    logs = np.log([x.bandwidth_up / median.bandwidth_up for x in Links.draw(n, "lognormal", **DRAWS["lognormal"])])
    assert abs(logs.mean()) < 5 * 0.7 / math.sqrt(n)
    assert abs(logs.std() - 0.7) < 5 * 0.7 / math.sqrt(2 * n)
    share = np.mean([x == preset("lte") for x in Links.draw(n, "mixture", **DRAWS["mixture"])])
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / n)
    assert Links.draw(60, "mixture", weights={"wifi": 1, "lte": 3}) == Links.draw(60, "mixture", weights={"lte": 0.75, "wifi": 0.25})
    assert set(Links.draw(60, "mixture", weights={"wifi": 1, "lte": 0})) == {preset("wifi")}


@pytest.mark.parametrize(("distribution", "options", "word"), [
    ("log-normal", {}, "Did you mean 'lognormal'"), ("lognormal", {"median": "lte"}, "needs sigma"),
    ("fixed", {"links": "lte"}, "Did you mean 'link'"), ("mixture", {"weights": {}}, "weights"),
    ("mixture", {"weights": {"lte": 0}}, "zero"), ("mixture", {"weights": {"lte": -1}}, "weight of lte"),
    ("uniform", {"low": "lte", "high": "lora_sf7"}, "same loss"), ("lognormal", {"median": "lte", "sigma": -1}, "sigma")])
def test_impossible_draws_are_refused(distribution, options, word):
    with pytest.raises(UserError, match=word):
        Links.draw(3, distribution, **options)


def test_links_from_a_file(tmp_path):
    file = tmp_path / "links.csv"
    file.write_text("bandwidth_up, latency_s, bandwidth_down, loss, rto_s\n1000, 0.5, 2000, 0.1, 1\n\n3000, 0.25, 3000, ,\n")
    assert list(Links.from_csv(file)) == [Link(0.5, 1000, 2000, loss=0.1, rto_s=1), Link(0.25, 3000)]
    found = Links.from_csv(file).seconds([0, 3000], "up")
    assert found == pytest.approx([0.5, 1.25])


@pytest.mark.parametrize(("text", "word"), [
    ("latency_s,bandwidth_up\n1,2\n", "missing: bandwidth_down"), ("", "missing: latency_s"),
    ("latency_s,bandwidth_up,bandwith_down\n", "Did you mean 'bandwidth_down'"),
    ("latency_s,latency_s,bandwidth_up,bandwidth_down\n1,1,1,1\n", "twice"),
    ("latency_s,bandwidth_up,bandwidth_down\n1,2,3\n1,2\n", "line 3: 2 cells for 3"),
    ("latency_s,bandwidth_up,bandwidth_down\n1,2,x\n", "line 2, column bandwidth_down: 'x'"),
    ("latency_s,bandwidth_up,bandwidth_down\n1,0,3\n", "line 2: Link: bandwidth_up"),
    ("latency_s,bandwidth_up,bandwidth_down\n1,,3\n", "line 2, column bandwidth_up"),
    ("latency_s,bandwidth_up,bandwidth_down\n", "at least one")])
def test_a_wrong_file_names_the_place(tmp_path, text, word):
    file = tmp_path / "links.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=word):
        Links.from_csv(file)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv"):
        Links.from_csv(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="Cannot read"):
        Links.from_csv(tmp_path / "b.csv")
