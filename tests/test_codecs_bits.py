"""Bit packing, codes for whole numbers, the arithmetic coder and entropy bounds, against bit strings written out in
Python.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.codecs import bits, integers, rans
from tracking.codecs.base import Reader
from tracking.codecs.entropy import entropy_bytes, subset_bytes


def reader(payload: bytes) -> Reader:
    return Reader(payload, "test")


def naive_pack(codes: list[int], width: int) -> bytes:
    """One big number, value i shifted to bit i * width; what the module's format says for up to 8 bits."""
    return sum(c << (i * width) for i, c in enumerate(codes)).to_bytes(-(-len(codes) * width // 8), "little")


@st.composite
def coded(draw, largest: int = 16):
    width = draw(st.integers(0, largest))
    count = draw(st.integers(0, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return width, rng.integers(0, 2**width, count)


@given(coded(32))
@settings(deadline=None, max_examples=300)
def test_packing_is_the_inverse_of_unpacking_and_as_long_as_its_bits(case):
    width, codes = case
    packed = bits.pack(codes.astype(np.uint32), width)
    assert len(packed) == math.ceil(codes.size * width / 8) == bits.packed_size(codes.size, width)
    back = bits.unpack(packed, width, codes.size)
    assert back.dtype == (np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32)
    assert back.tolist() == codes.tolist()


@given(coded(8))
@settings(deadline=None, max_examples=200)
def test_up_to_eight_bits_the_stream_is_one_long_little_endian_number(case):
    width, codes = case
    assert bits.pack(codes.astype(np.uint8), width).tobytes() == naive_pack(codes.tolist(), width)


@pytest.mark.parametrize("width", range(1, 17))
def test_streams_longer_than_a_chunk(width):
    """Sizes on both sides of the chunk: the cut between chunks must leave no trace."""
    rng = np.random.default_rng(width)
    for count in (2 * bits.CHUNK - 1, 8 * bits.CHUNK, 16 * bits.CHUNK + 13):
        codes = rng.integers(0, 2**width, count, dtype=np.uint16 if width > 8 else np.uint8)
        packed = bits.pack(codes, width)
        assert np.array_equal(bits.unpack(packed, width, count), codes)
        low = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * min(width, 8), bitorder="little")
        expected = (codes[:, None] & 0xFF) >> np.arange(min(width, 8)) & 1
        assert np.array_equal(low.reshape(-1, min(width, 8)), expected)


def test_signs_and_strided_codes():
    x = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    assert bits.unpack(bits.pack_signs(x), 1, 9).tolist() == [1, 1, 1, 0, 0, 1, 0, 1, 0]
    codes = np.arange(32, dtype=np.uint8)[::2] % 16
    assert bits.pack(codes, 4).tobytes() == naive_pack(codes.tolist(), 4)


def test_codes_that_do_not_fit_are_refused():
    for width in range(0, 8):
        with pytest.raises(ValueError, match=f"code {2**width} does not fit into {width} bits"):
            bits.pack(np.array([0, 2**width], np.uint8), width)
    with pytest.raises(ValueError, match="flat array of unsigned integers"):
        bits.pack(np.array([-1]), 4)
    with pytest.raises(ValueError, match="flat array of unsigned integers"):
        bits.pack(np.zeros((2, 2), np.uint8), 4)
    for count in (15, 18):  # 8 bytes hold 16 or 15 codes of four bits, no other number
        with pytest.raises(ValueError, match="packed bytes"):
            bits.unpack(bytes(7 if count == 15 else 8), 4, count)


# --- codes for whole numbers ----------------------------------------------------------------------------------


def elias_gamma(v: int) -> str:
    """Elias, 1975: as many zeros as bits follow the leading one, then the number."""
    text = f"{v:b}"
    return "0" * (len(text) - 1) + text


@given(st.lists(st.integers(1, 2**34), max_size=60))
@settings(deadline=None)
def test_gamma_takes_the_bits_of_elias_words(values):
    array = np.array(values, np.int64)
    words = sum(len(elias_gamma(v)) for v in values)
    assert integers.gamma_bits(array) == words
    payload = integers.gamma_encode(array)
    # the unary and the binary parts are each filled up to a whole byte: at most 7 bits each
    assert words <= 8 * len(payload) <= words + 14
    r = reader(payload + b"next")
    assert integers.gamma_decode(r, len(values)).tolist() == values
    assert bytes(r.rest()) == b"next"


@st.composite
def subsets(draw):
    n = draw(st.integers(0, 3000))
    k = draw(st.one_of(st.integers(0, min(n, 5)), st.integers(0, n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    clustered = draw(st.booleans())
    places = rng.choice(n, k, replace=False) if not clustered else np.arange(k) + rng.integers(0, n - k + 1)
    return n, np.sort(places)


@given(subsets())
@settings(deadline=None, max_examples=200)
def test_places_come_back_and_no_form_would_have_been_shorter(case):
    n, places = case
    payload = integers.encode_places(places, n)
    r = reader(payload + b"next")
    assert integers.decode_places(r, places.size, n).tolist() == places.tolist()
    assert bytes(r.rest()) == b"next"
    if not places.size:
        assert payload == b""
        return
    gaps = np.diff(places, prepend=-1) - 1
    rice = [math.ceil(sum((int(g) >> m) + 1 for g in gaps) / 8) + math.ceil(len(gaps) * m / 8) for m in range(13)]
    width = max(n - 1, 0).bit_length()
    assert len(payload) == 1 + min(*rice, math.ceil(n / 8), math.ceil(len(gaps) * width / 8))


def test_each_form_of_place_coding_wins_somewhere():
    rng = np.random.default_rng(0)
    few = np.sort(rng.choice(10_000, 100, replace=False))
    half = np.flatnonzero(rng.random(10_000) < 0.5)
    assert integers.shortest_form(few, 10_000) == ("rice", 6)
    assert integers.shortest_form(half, 10_000)[0] == "bitmap"
    assert integers.shortest_form(np.array([2**20 - 1]), 2**20)[0] == "raw"


def test_wrong_places_are_refused():
    payload = integers.encode_places(np.array([3, 500, 999]), 1000)
    with pytest.raises(ValueError, match="out of range"):
        integers.decode_places(reader(payload), 3, 999)
    with pytest.raises(ValueError, match="4 places of 3"):
        integers.decode_places(reader(payload), 4, 3)
    with pytest.raises(ValueError, match="place coding 77"):
        integers.decode_places(reader(b"\x4d" + payload), 3, 1000)
    with pytest.raises(ValueError, match="Torn or foreign"):
        integers.gamma_decode(reader(bytes(40)), 3)  # zeros for ever: no unary part ends


# --- arithmetic coding -----------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(0, 700), st.integers(1, 256), st.integers(1, 9), st.floats(0.0, 4.0))
@settings(deadline=None, max_examples=100)
def test_the_arithmetic_coder_is_exact(seed, count, alphabet, lanes, skew):
    rng = np.random.default_rng(seed)
    p = rng.random(alphabet) ** (1 + 3 * skew) + 1e-9
    freq = rans.frequencies(p / p.sum())
    assert freq.sum() == 2**16
    assert freq.min() >= 1
    symbols = rng.integers(0, alphabet, count).astype(np.uint8)  # any symbols, however unlikely under freq
    payload = rans.encode(symbols, freq, lanes)
    r = reader(payload)
    assert np.array_equal(rans.decode(r, count, freq, lanes), symbols)
    r.end()


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("skew", [0, 2, 8, 30])
def test_the_arithmetic_coder_reaches_the_cross_entropy(lanes, skew):
    """Of 50,000 symbols of the model itself. A lane's 4-byte state holds 16 to 32 bits; the whole-number division of
    a step moves the state by a factor between 1 - f / x and 1 + f / x round the ideal one, of both signs and with x
    mostly far above f: together 0.1 % are allowed.
    """
    rng = np.random.default_rng(skew)
    p = rng.random(200) ** (1 + skew)
    freq = rans.frequencies(p / p.sum())
    symbols = rng.choice(200, 50_000, p=freq / 2**16).astype(np.uint8)
    ideal = float(np.log2(2**16 / freq[symbols]).sum()) / 8
    size = len(rans.encode(symbols, freq, lanes))
    assert ideal * 0.999 + 2 * lanes <= size <= ideal * 1.001 + 4 * lanes


def test_a_torn_or_altered_arithmetic_code_is_noticed():
    rng = np.random.default_rng(0)
    freq = rans.frequencies(np.array([0.9, 0.1]))
    symbols = (rng.random(2000) < 0.1).astype(np.uint8)
    payload = rans.encode(symbols, freq, 4)
    for wrong in (payload[:-2], payload + b"\0\0", payload[:20] + bytes([payload[20] ^ 1]) + payload[21:]):
        with pytest.raises(ValueError, match="Torn or foreign"):
            rans.decode(reader(wrong), 2000, freq, 4)


# --- bounds ------------------------------------------------------------------------------------------------------


def test_entropy_and_subset_bounds():
    assert entropy_bytes(np.repeat([0, 1], [500, 500])) == pytest.approx(125)
    assert entropy_bytes(np.zeros(1000)) == 0
    assert entropy_bytes(np.zeros(0)) == 0
    assert entropy_bytes(np.arange(256, dtype=np.uint8)) == pytest.approx(256)
    # both ways of counting symbols
    x = np.random.default_rng(0).integers(0, 7, 1000)
    assert entropy_bytes(x.astype(np.uint8)) == pytest.approx(entropy_bytes(x.astype(np.float32)))
    exact = math.log2(Fraction(math.comb(1000, 37))) / 8
    assert subset_bytes(1000, 37) == pytest.approx(exact, rel=1e-9)
    assert subset_bytes(1_000_000, 10_000) == pytest.approx(10_098, abs=1)
