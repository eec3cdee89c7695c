"""Codecs and the ledger: what is billed is the length of what is sent, and what is received is what was sent."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tracking.codecs import Dense, Levels, index_width
from tracking.errors import UserError
from tracking.ledger import Ledger
from tracking.metrics import METRICS

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
ARRAYS = npst.arrays(np.float32, SHAPES, elements=FLOATS)


@st.composite
def quantised(draw, max_levels: int = 256):
    """A float32 array that takes at most ``max_levels`` values."""
    table = np.array(draw(st.lists(FLOATS, min_size=1, max_size=max_levels)), np.float32)
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return np.asarray(table[rng.integers(0, len(table), shape)])


def bits(x: torch.Tensor | np.ndarray) -> bytes:
    return np.ascontiguousarray(x).view(np.uint32).tobytes()


# --- codecs -------------------------------------------------------------------------------------------------


@given(ARRAYS)
@settings(deadline=None)
def test_dense_is_exact_to_the_bit(x):
    payload = Dense().encode(torch.from_numpy(x))
    assert len(payload) == 1 + 4 * x.ndim + 4 * x.size
    back = Dense().decode(payload)
    assert back.shape == x.shape
    assert bits(back.numpy()) == bits(x)


@given(quantised())
@settings(deadline=None)
def test_levels_are_exact_and_as_long_as_they_say(x):
    """Zero has one sign; all else, NaN included, comes back to the bit."""
    payload = Levels().encode(torch.from_numpy(x))
    back = Levels().decode(payload)
    assert back.shape == x.shape
    assert bits(back.numpy()) == bits(x + np.float32(0))
    k = len(np.unique(np.atleast_1d(x + np.float32(0)).view(np.uint32)))
    width = math.ceil(math.log2(k)) if k else 0
    assert len(payload) == (1 + 4 * x.ndim) + (2 + 4 * k) + math.ceil(x.size * width / 8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 128, 129, 255, 256])
def test_every_number_of_levels(count):
    x = torch.arange(count).repeat(3)[torch.randperm(3 * count, generator=torch.Generator().manual_seed(0))] / 7
    payload = Levels().encode(x)
    assert torch.equal(Levels().decode(payload), x)
    width = math.ceil(math.log2(count))
    assert index_width(count) == width
    assert len(payload) == 5 + 2 + 4 * count + math.ceil(3 * count * width / 8)


@given(quantised(max_levels=8))
@settings(deadline=None)
def test_no_payload_beats_the_entropy_of_its_indices(x):
    """A lossless code of n independent symbols needs n H bits at least: a shorter one would have lost something."""
    counts = np.array(list(Counter(np.ravel(x + np.float32(0)).view(np.uint32).tolist()).values()))
    entropy = float(-(counts * np.log2(counts / x.size)).sum()) if x.size else 0.0
    table = 1 + 4 * x.ndim + 2 + 4 * len(counts)
    # entropy is a float sum of at most 8 terms of size at most 625 * 3: its error is below 1e-9
    assert 8 * (len(Levels().encode(torch.from_numpy(x))) - table) >= entropy - 1e-9


def test_binary_weights_cost_a_bit_each():
    x = torch.where(torch.rand(64, 100, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    assert len(Levels().encode(x)) == 9 + 2 + 8 + 800
    assert len(Dense().encode(x)) == 9 + 25_600


def test_a_tensor_that_is_not_quantised_is_refused():
    for count, limit in ((257, 256), (3, 2), (2, 1)):
        with pytest.raises(ValueError, match=f"{count} different values; the codec 'levels' holds {limit}"):
            Levels(limit).encode(torch.arange(float(count)))
        Levels(limit).encode(torch.arange(float(limit)))
    for wrong in (0, 257, -1):
        with pytest.raises(ValueError, match="allowed: 1 to 256"):
            Levels(wrong)


def test_many_nans_of_one_kind_are_one_level():
    x = torch.full((1000,), torch.nan)
    assert len(Levels().encode(x)) == 5 + 2 + 4
    assert Levels().decode(Levels().encode(x)).isnan().all()


def test_the_two_zeros_are_one_level():
    x = torch.tensor([0.0, -0.0, 1.0, -1.0])
    assert Levels().encode(x) == Levels().encode(x.abs() * x.sign())
    assert torch.equal(Levels().decode(Levels().encode(x)), x)


@pytest.mark.parametrize("codec", [Dense(), Levels()], ids=lambda c: c.name)
@pytest.mark.parametrize(
    "x",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.ones(1).expand(4, 3),
        torch.arange(4),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.float64),
        torch.ones(2, requires_grad=True),
    ],
    ids=["transposed", "strided", "expanded", "int64", "bool", "float64", "leaf"],
)
def test_any_layout_and_type_of_tensor(codec, x):
    back = codec.decode(codec.encode(x))
    assert back.dtype == torch.float32
    assert not back.requires_grad
    assert torch.equal(back, x.detach().float())


@pytest.mark.parametrize("codec", [Dense(), Levels()], ids=lambda c: c.name)
def test_a_torn_payload_is_no_tensor(codec):
    payload = codec.encode(torch.arange(100.0))
    for cut in range(len(payload)):
        with pytest.raises(ValueError, match=f"Torn or foreign payload for codec '{codec.name}'"):
            codec.decode(payload[:cut])
    with pytest.raises(ValueError, match="bytes too many"):
        codec.decode(payload + b"\0")
    other = Levels() if isinstance(codec, Dense) else Dense()
    with pytest.raises(ValueError, match="its kind is"):
        codec.decode(other.encode(torch.arange(100.0)))


def test_a_table_that_does_not_fit_its_indices_is_foreign():
    payload = bytearray(Levels().encode(torch.tensor([0.0, 1.0, 2.0])))
    payload[-1] = 0b11  # the fourth of three levels
    with pytest.raises(ValueError, match="an index 3 into 3 levels"):
        Levels().decode(bytes(payload))


# --- the ledger ---------------------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.tuples(
        quantised(max_levels=5),
        st.sampled_from(["up", "down"]),
        st.sampled_from(["server", "c1", "c2"]),
        st.sampled_from([Dense(), Levels()]),
    ),
    max_size=12,
)


@given(MESSAGES)
@settings(deadline=None, max_examples=60)
def test_totals_are_the_sum_over_messages(messages):
    ledger, lengths = Ledger(), {"up": 0, "down": 0}
    by_row: Counter = Counter()
    for x, direction, party, codec in messages:
        got = ledger.send(torch.from_numpy(x), codec, direction, party)
        assert bits(got.numpy() + np.float32(0)) == bits(x + np.float32(0))
        lengths[direction] += len(codec.encode(torch.from_numpy(x)))
        by_row[direction, party, codec.name] += 1
    if not messages:
        assert ledger.metrics() == {}
        return
    assert ledger.metrics() == {
        "comm/up_bytes": lengths["up"],
        "comm/down_bytes": lengths["down"],
        "comm/messages": len(messages),
    }
    assert {(r["direction"], r["party"], r["codec"]): r["messages"] for r in ledger.table()} == by_row
    assert sum(r["bytes"] for r in ledger.table()) == sum(lengths.values())
    again = Ledger()
    again.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert again.table() == ledger.table()
    again.send(torch.zeros(1), Dense(), "up")
    assert again.metrics()["comm/messages"] == len(messages) + 1
    assert ledger.metrics()["comm/messages"] == len(messages), "a loaded ledger is its own"


def test_the_receiver_gets_what_was_decoded_and_not_the_sender_s_object():
    class Halves:
        """Sends whole numbers of halves: what arrives is not what was given."""

        name = "halves"

        def encode(self, value):
            return np.round(value.numpy() * 2).astype(np.int8).tobytes()

        def decode(self, payload):
            return torch.from_numpy(np.frombuffer(payload, np.int8).copy()) / 2

    ledger, x = Ledger(), torch.tensor([0.3, 1.26])
    got = ledger.send(x, Halves(), "down")
    assert got.tolist() == [0.5, 1.5]
    assert ledger.metrics() == {"comm/up_bytes": 0, "comm/down_bytes": 2, "comm/messages": 1}
    for codec in (Dense(), Levels()):
        got = ledger.send(x, codec, "up")
        assert got.data_ptr() != x.data_ptr()
        got.zero_()
        assert x[0] > 0


def test_nothing_sent_is_no_figure_and_an_empty_message_is_one():
    ledger = Ledger()
    assert ledger.metrics() == {}
    assert ledger.table() == []
    ledger.send(torch.empty(0), Dense(), "up")
    assert ledger.metrics() == {"comm/up_bytes": 5, "comm/down_bytes": 0, "comm/messages": 1}
    assert set(ledger.metrics()) <= set(METRICS)


def test_an_unknown_direction_is_refused_and_not_billed():
    ledger = Ledger()
    with pytest.raises(UserError, match=r"Unknown direction 'upp'\. Did you mean 'up'"):
        ledger.send(torch.zeros(1), Dense(), "upp")
    with pytest.raises(ValueError, match="different values"):
        ledger.send(torch.arange(300.0), Levels(), "up")
    assert ledger.metrics() == {}
