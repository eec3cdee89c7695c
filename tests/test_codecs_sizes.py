"""Sizes against closed forms and entropy, sparsifiers, QSGD and integer levels, and codecs by name."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.codecs import Dense, Levels
from tracking.codecs.base import Codec
from tracking.codecs.entropy import entropy_bytes, subset_bytes
from tracking.codecs.lattice import Lattice
from tracking.codecs.natural import Natural
from tracking.codecs.qsgd import QSGD
from tracking.codecs.registry import CodecName, codec, codec_names
from tracking.codecs.sign import Sign
from tracking.codecs.sparse import RandomK, TopK
from tracking.codecs.ternary import Ternary
from tracking.codecs.uniform import Uniform
from tracking.errors import UserError

D = 1_000_000
HEAD = 5  # kind and one dimension


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- sizes of a million values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (lambda: Dense("fp16"), 2 * D),
        (lambda: Dense("bf16"), 2 * D),
        (lambda: Uniform(8), 6 + 4 + D),
        (lambda: Uniform(4), 6 + 4 + D // 2),
        (lambda: Uniform(4, group=32, scale="fp16"), 6 + 4.5 * D / 8),
        (lambda: Uniform(4, group=32, rounding="stochastic"), 6 + 5 * D / 8),
        (lambda: Sign(), 4 + 4 + 125_000),
        (lambda: Natural(), 9 * D // 8),
        (lambda: Ternary("stochastic"), 4 + 4 + 200_000),
        (lambda: RandomK(fraction=0.01), 5 + 8 + 40_000),
        (lambda: RandomK(fraction=0.01, values="fp16"), 5 + 8 + 20_000),
        (lambda: Lattice(14, 1e-3), 10 + 14 * D // 8),
        (lambda: Lattice(4, 1e-3, dither=True, rotate=True, check=True), 10 + 8 + 4 + D // 2),
    ],
)
def test_sizes_are_the_closed_forms(make, body):
    payload = make().encode(normal(D))
    assert len(payload) == HEAD + body
    bound = make().entropy_bytes(payload)
    # symbols of one payload: no fixed-width code of them beats their entropy (the float sum's error is far below a
    # byte)
    assert bound is None or bound <= len(payload) + 1e-3


def test_packed_levels_of_binary_and_ternary_weights():
    x = normal(D)
    assert len(Levels().encode(x.sign())) == HEAD + 2 + 8 + 125_000
    trits = (x * 0.7).round().clamp(-1, 1) * 0.25
    exact = Ternary()
    payload = exact.encode(trits)
    assert len(payload) == HEAD + 8 + 200_000
    assert torch.equal(exact.decode(payload), trits)
    assert len(Levels().encode(trits)) == HEAD + 2 + 12 + 250_000
    evenly = torch.arange(D) % 3 - 1.0
    assert exact.entropy_bytes(exact.encode(evenly)) == pytest.approx(D * math.log2(3) / 8)  # 198,120 bytes


def test_top_one_per_cent_is_coded_within_half_a_per_cent_of_the_bound():
    x, k = normal(D), D // 100
    payload = TopK(fraction=0.01).encode(x)
    places = len(payload) - HEAD - 5 - 4 * k
    assert subset_bytes(D, k) == pytest.approx(10_098, abs=1)
    # Rice with m = 6: about k (m + 1) + n / 2^m - k / 2 bits; published figure 10,130 bytes, its standard deviation a
    # few bytes
    assert 10_098 < places < 10_098 * 1.005
    assert places == pytest.approx(10_130, abs=20)
    assert TopK(k).entropy_bytes(payload) == pytest.approx(4 * k + 10_098, abs=1)
    assert len(payload) - len(TopK(k, values="fp16").encode(x)) == 2 * k


# --- top-k and random-k ----------------------------------------------------------------------------------


@given(st.lists(st.integers(-6, 6), max_size=40), st.integers(0, 45))
@settings(deadline=None)
def test_top_k_against_a_stable_sort(values, k):
    x = torch.tensor(values, dtype=torch.float32)
    keep = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    expected = [v if i in keep else 0 for i, v in enumerate(values)]
    assert TopK(k).decode(TopK(k).encode(x)).tolist() == expected


@pytest.mark.parametrize(
    ("n", "fraction", "k"),
    [(100, 0.07, 7), (100, 0.29, 29), (10, 0.01, 1), (0, 0.5, 0), (3, 1.0, 3), (1000, 0.0011, 2)],
)
def test_a_fraction_is_rounded_up(n, fraction, k):
    assert TopK(fraction=fraction).count(n) == RandomK(fraction=fraction).count(n) == k


def test_random_places_are_uniform_and_rebuilt_from_the_seed():
    x = torch.ones(20)
    sender = RandomK(5, scaled=False, rng=1)
    hits = sum(sender.decode(sender.encode(x)) for _ in range(4000))
    # binomial with p = 1/4: standard deviation 27; 5 of them over 20 places
    assert float((hits - 1000).abs().max()) < 137
    payload = sender.encode(x)
    assert torch.equal(RandomK(1, rng=99).decode(payload), sender.decode(payload)), "nothing but the payload is needed"
    scaled = RandomK(5)
    assert set(scaled.decode(scaled.encode(x)).tolist()) == {0.0, 4.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give one of"),
        ({"k": 1, "fraction": 0.5}, "Give one of"),
        ({"k": -1}, "whole number from 0"),
        ({"k": True}, "whole number"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.1}, "at most 1"),
        ({"k": 1, "values": "int8"}, "allowed: fp32"),
    ],
)
def test_sparsifiers_refuse(options, message):
    for make in (TopK, RandomK):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="cannot stand for all"):
        RandomK(0)


# --- QSGD ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "s", "bucket"), [(10_000, 1, None), (10_000, 4, None), (10_000, 100, None), (10_000, 16, 512), (4096, 64, 64)]
)
@pytest.mark.parametrize("kind", ["normal", "constant", "spike", "cauchy"])
def test_qsgd_payloads_keep_their_expected_length(n, s, bucket, kind):
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=n),
        "constant": np.ones(n),
        "spike": np.eye(1, n)[0],
        "cauchy": rng.standard_cauchy(n),
    }[kind]
    q = QSGD(s, bucket)
    sizes = [8 * len(q.encode(torch.from_numpy(x))) for _ in range(8)]
    # framing: header 5, levels and bucket 8, form and count 5, and five streams filled up to a byte each; mean of 8
    # within 5 standard errors
    framing = 8 * (HEAD + 8 + 5) + 5 * 7
    assert np.mean(sizes) <= q.expected_bits(n) + framing + 5 * np.std(sizes) / math.sqrt(8)


def test_qsgd_takes_the_shorter_code_and_levels_are_right():
    x = normal(4096)
    sparse, dense = QSGD(1, None), QSGD(64, None)
    assert len(sparse.encode(x)) < 4096 / 8, "fewer than one bit a value"
    for q in (sparse, dense):
        got = q.decode(q.encode(x))
        level = got.double() * q.levels / float(x.double().norm().float())
        assert torch.allclose(level, level.round(), atol=1e-4)
        assert (got * x >= 0).all()
        assert ((level.abs() - x.double().abs() * q.levels / float(x.norm())).abs() <= 1 + 1e-5).all()
    assert QSGD(4, norm="max").expected_bits(100) is None


def test_qsgd_sends_few_values_of_a_long_vector():
    """Lemma 3.1 (iii): at most s (s + sqrt(n)) non-zeros are expected."""
    x = normal(10_000)
    for s in (1, 4, 10):
        q = QSGD(s, None)
        counts = [int(q.decode(q.encode(x)).count_nonzero()) for _ in range(20)]
        assert np.mean(counts) <= s * (s + 100) + 5 * np.std(counts) / math.sqrt(20)


# --- uniform ---------------------------------------------------------------------------------------------


def test_uniform_against_the_formula_in_float64():
    x = normal(1000)
    got = Uniform(4, group=100).decode(Uniform(4, group=100).encode(x)).reshape(10, 100)
    for row, back in zip(x.reshape(10, 100).double().numpy(), got.numpy(), strict=True):
        step = np.float32(np.abs(row).max() / 7)
        assert np.allclose(back, np.rint(row / step) * step, rtol=3e-7, atol=0)


def test_half_precision_scales_never_clip_and_are_refused_out_of_range():
    q = Uniform(4, group=32, scale="fp16")
    x = normal(32_000)
    got = q.decode(q.encode(x))
    step = x.reshape(-1, 32).abs().amax(1) / 7 * (1 + 2.0**-10)
    assert ((got - x).reshape(-1, 32).abs().amax(1) <= step / 2 * (1 + 1e-6)).all()
    for scale in (1e6, 1e-6):
        with pytest.raises(ValueError, match="outside float16's normal range"):
            q.encode(x * scale)
    assert not q.decode(q.encode(torch.zeros(40))).any()


# --- registry --------------------------------------------------------------------------------------------

OPTIONS = {"top_k": {"k": 3}, "random_k": {"k": 3}, "vq": {"codebook": torch.eye(4)}}


@pytest.mark.parametrize("name", codec_names())
def test_every_name_makes_a_codec_that_carries_its_name(name):
    made = codec(name, **OPTIONS.get(name, {}))
    made = made.of("x") if name == "power_sgd" else made
    assert made.name == name
    x = torch.eye(4) > 0 if name == "mask" else torch.eye(4)
    more = {"reference": x} if made.needs_reference else {}
    got = made.decode(made.encode(x), **more)
    assert got.shape == (4, 4)
    made.entropy_bytes(made.encode(x))
    typing.get_type_hints(Codec.encode)


def test_tags_tell_all_kinds_apart():
    tags = {}
    for name in codec_names():
        made = codec(name, **OPTIONS.get(name, {}))
        made = made.of("x") if name == "power_sgd" else made
        tags.setdefault(made.tag, set()).add(type(made))
        assert 0 <= made.tag < 32
    assert all(len(kinds) == 1 for kinds in tags.values())
    assert set(typing.get_args(CodecName)) == set(codec_names())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qsdg", {}, r"Unknown codec 'qsdg'\. Did you mean 'qsgd'"),
        ("qsgd", {"level": 3}, r"no option 'level'\. Did you mean 'levels'"),
        ("int8", {"bits": 4}, "no option 'bits'"),
        ("qsgd", {"levels": 0}, "cannot be made: levels = 0; allowed"),
        ("vq", {}, "needs the option 'codebook'"),
        ("top_k", {}, "Give one of k"),
        ("sign", {"group": 0}, "group = 0; allowed"),
        ("levels", {"max_levels": "many"}, "cannot be made"),
        ("mask", {"forms": ()}, "allowed: some of"),
    ],
)
def test_mistakes_are_readable(name, options, message):
    with pytest.raises(UserError, match=message):
        codec(name, **options)


def test_the_library_stands_on_torch_and_numpy_alone():
    import subprocess
    import sys

    code = (
        "import sys, tracking.codecs.registry, tracking.ledger;"
        "print([m for m in ('workbench', 'pydantic', 'pandas', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entropy_is_shown_beside_the_length():
    x = normal(1000)
    for name in ("levels", "int8", "qsgd", "sign", "natural", "terngrad"):
        q = codec(name)
        value = (x > 1).float() if name == "levels" else x
        payload = q.encode(value)
        assert 0 < q.entropy_bytes(payload) <= len(payload)
    q = codec("int4", group=None)
    codes = (q.decode(q.encode(x)) * 7 / x.abs().max()).round().to(torch.int64)
    assert q.entropy_bytes(q.encode(x)) == pytest.approx(entropy_bytes(codes))
