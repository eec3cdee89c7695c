"""What every codec promises: round trips over shapes and sizes of values, torn payloads, bias and variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tracking.codecs.dense import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.natural import Natural
from tracking.codecs.power_sgd import PowerSGD
from tracking.codecs.qsgd import QSGD
from tracking.codecs.randomness import Keys, keys
from tracking.codecs.sign import Sign
from tracking.codecs.sparse import RandomK, TopK
from tracking.codecs.ternary import Ternary
from tracking.codecs.uniform import Uniform

# every lossy codec that takes any finite tensor and needs nothing else to decode; a function, for fresh random state
LOSSY = {
    "fp16": lambda: Dense("fp16"),
    "bf16": lambda: Dense("bf16"),
    "int8": lambda: Uniform(8),
    "int4 grouped": lambda: Uniform(4, group=8),
    "int2": lambda: Uniform(2),
    "int8 stochastic": lambda: Uniform(8, rounding="stochastic"),
    "int4 stochastic grouped": lambda: Uniform(4, group=8, rounding="stochastic"),
    "qsgd 1": lambda: QSGD(1, bucket=None),
    "qsgd 4 in buckets": lambda: QSGD(4, bucket=16),
    "qsgd max": lambda: QSGD(15, bucket=None, norm="max"),
    "sign": lambda: Sign(),
    "sign grouped": lambda: Sign(7),
    "top 10 %": lambda: TopK(fraction=0.1),
    "top 3, bf16": lambda: TopK(3, values="bf16"),
    "random 10 %": lambda: RandomK(fraction=0.1),
    "random 3, unscaled": lambda: RandomK(3, scaled=False),
    "natural": lambda: Natural(),
    "terngrad": lambda: Ternary("stochastic"),
    "terngrad grouped": lambda: Ternary("stochastic", group=8),
    "power": lambda: PowerSGD(1).of("x"),
}
RANDOM = [
    "int8 stochastic",
    "int4 stochastic grouped",
    "qsgd 1",
    "qsgd 4 in buckets",
    "qsgd max",
    "random 10 %",
    "random 3, unscaled",
    "natural",
    "terngrad",
    "terngrad grouped",
]
DETERMINISTIC = sorted(LOSSY.keys() - set(RANDOM) - {"power"})
HUGE = 1e30

SHAPES = npst.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=4)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
MODERATE = st.floats(-1000, 1000, width=32, allow_subnormal=False)


def squared(x) -> float:
    return float(np.square(np.asarray(x, np.float64)).sum())


@pytest.mark.parametrize("name", LOSSY)
@given(x=npst.arrays(np.float32, SHAPES, elements=st.one_of(FLOATS, MODERATE)))
@settings(deadline=None, max_examples=40)
def test_any_shape_and_any_finite_value_is_carried_or_refused(name, x):
    codec = LOSSY[name]()
    try:
        payload = codec.encode(torch.from_numpy(x))
    except ValueError as error:  # only values that the format cannot hold: float16 is the narrowest
        assert np.abs(x).max() > (65_504 if "16" in name else HUGE), error  # noqa: PT017
        return
    got = codec.decode(payload)
    assert got.shape == x.shape
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    again = codec.decode(payload)
    assert torch.equal(got, again)
    got += 1  # the receiver's own memory, and writable
    assert torch.equal(codec.decode(payload), again)
    if not x.any() and name != "sign":
        assert not again.any(), "zeros stay zeros"


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, 3e-39, 1.2e-38, 1e38])
def test_constants_and_the_edges_of_float32(name, value):
    x = torch.full((5, 7), value)
    codec = LOSSY[name]()
    if value == 1e38 and name in ("fp16", "random 10 %", "qsgd 1", "qsgd 4 in buckets"):
        with pytest.raises(ValueError, match="overflows"):
            codec.encode(x)
        return
    got = codec.decode(codec.encode(x))
    assert got.isfinite().all()
    if name.startswith(("int", "bf16", "qsgd max", "sign", "terngrad")) and value not in (1e-45, 3e-39):
        # a constant is its own scale: the top level, up to the rounding of scale (2^-24) or of bfloat16 (2^-9)
        assert torch.allclose(got, x, rtol=2.0**-8 if name == "bf16" else 3e-7, atol=0)


@pytest.mark.parametrize("name", sorted(LOSSY.keys() - {"fp16", "bf16"}))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(name, bad):
    x = torch.ones(4, 5)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="1 of 20 values are not finite"):
        LOSSY[name]().encode(x)


def test_sixteen_bit_floats_carry_what_is_not_finite_and_refuse_overflow():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    for form in ("fp16", "bf16"):
        got = Dense(form).decode(Dense(form).encode(x))
        assert got.isnan().tolist() == [True, False, False, False]
        assert torch.equal(got[1:], x[1:])
        top = torch.finfo({"fp16": torch.float16, "bf16": torch.bfloat16}[form]).max
        assert float(Dense(form).decode(Dense(form).encode(torch.tensor([top, math.inf])))[0]) == top
        with pytest.raises(ValueError, match=f"overflows {form}"):
            Dense(form).encode(torch.tensor([top * 1.003]))


@pytest.mark.parametrize("name", LOSSY)
def test_layouts_and_types(name):
    x = torch.arange(60.0).reshape(5, 12)
    for y in (
        x.t(),
        x[:, ::3],
        x.double(),
        x.long(),
        x.bfloat16(),
        x.clone().requires_grad_(),
        x > 3,
        x[:1].expand(4, 12),
    ):
        same = y.detach().float().contiguous()
        assert LOSSY[name]().encode(y) == LOSSY[name]().encode(same)
    with pytest.raises(ValueError, match=r"pass a torch\.Tensor"):
        Sign().encode([1.0])
    with pytest.raises(ValueError, match="view_as_real"):
        LOSSY[name]().encode(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("name", LOSSY)
def test_torn_and_foreign_payloads_are_readable_errors(name):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    codec = LOSSY[name]()
    payload = codec.encode(x)
    for cut in range(len(payload)):
        with pytest.raises(ValueError, match="Torn or foreign payload for codec"):
            codec.decode(payload[:cut])
    with pytest.raises(ValueError, match=r"1 bytes too many|Torn"):
        codec.decode(payload + b"\0")
    for other in LOSSY.values():
        if type(other()) is not type(codec) or (isinstance(codec, Dense) and other().name != codec.name):
            with pytest.raises(ValueError, match="its kind is"):
                codec.decode(other().encode(x))


@pytest.mark.parametrize("name", LOSSY)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_altered_bytes_never_end_in_another_error(name, data):
    """Behind the header (a changed shape may ask for any amount of memory) every byte may be anything."""
    codec = LOSSY[name]()
    payload = bytearray(codec.encode(torch.randn(3, 20, generator=torch.Generator().manual_seed(1))))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(9, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        with np.errstate(all="ignore"):
            assert codec.decode(bytes(payload)).shape == (3, 20)
    except ValueError as error:
        assert "Torn or foreign" in str(error)  # noqa: PT017 -- either outcome is right


# --- randomness ---------------------------------------------------------------------------------------------------


def with_rng(name, rng):
    codec = LOSSY[name]()
    codec.keys = keys(rng)
    return codec


@pytest.mark.parametrize("name", RANDOM)
def test_a_message_depends_on_seed_and_counter_alone(name):
    x, y = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    codec = with_rng(name, 5)
    first, second = codec.encode(x), codec.encode(y)
    assert codec.keys.state_dict() == {"seed": 5, "counter": 2}
    assert with_rng(name, (5, 1)).encode(y) == second, "whatever was sent before"
    assert with_rng(name, Keys(5)).encode(x) == first
    assert with_rng(name, 6).encode(x) != first
    assert with_rng(name, (5, 1)).encode(x) != first
    resumed = with_rng(name, 0)
    resumed.keys.load_state_dict({"seed": 5, "counter": 1})
    assert resumed.encode(y) == second


@pytest.mark.parametrize("name", RANDOM)
def test_a_generator_of_the_run_drives_the_codec(name):
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    codec = with_rng(name, generator)
    codec.encode(x)
    state = generator.get_state()
    after = codec.encode(x)
    generator.set_state(state)
    assert with_rng(name, generator).encode(x) == after
    assert codec.encode(x) != after
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    codec.encode(x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]), "global generators are left alone"


@pytest.mark.parametrize("rng", ["seed", True, (1,), 1.5, None])
def test_other_sources_of_randomness_are_refused(rng):
    with pytest.raises(ValueError, match=r"allowed: a torch\.Generator, a seed"):
        QSGD(rng=rng)


# --- bias and variance ----------------------------------------------------------------------------------------------

GENERATOR = np.random.default_rng(0)
VECTORS = {
    "normal": GENERATOR.normal(size=64).astype(np.float32),
    "heavy": (GENERATOR.standard_cauchy(64) * 1e-3).astype(np.float32),
    "one value": np.eye(1, 64, dtype=np.float32)[0] * 7,
    "constant": np.full(64, -0.3, np.float32),
    "worst of terngrad": np.r_[9.0, np.full(63, 1.0)].astype(np.float32),
    "quarter circle": np.linspace(0.01, 1.99, 64, dtype=np.float32),
}
REPEATS = 400


def draws(codec, x) -> np.ndarray:
    value = torch.from_numpy(x)
    return np.stack([codec.decode(codec.encode(value)).numpy().astype(np.float64) for _ in range(REPEATS)])


def bias_ratio(got: np.ndarray, x: np.ndarray) -> float:
    """||mean - x||^2 over its expectation for an unbiased codec, total variance / repeats."""
    spread = got.var(0, ddof=1).sum() / len(got)
    # the mean may be off by float32's rounding of each value, relative 2^-23 at most with its scale's
    slack = squared(x) * 4.0**-23
    return squared(got.mean(0) - x) / max(spread + slack, 1e-300)


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("name", RANDOM)
def test_stated_bias_and_variance_hold(name, vector):
    """For 400 draws of 64 values. Unbiased: the ratio above has mean 1 and, if all its weight lay on one value, the
    law of a squared normal, whose chance to exceed 25 is 6e-7. Variance and contraction: the mean relative error may
    exceed its bound by 5 standard errors.
    """
    x, codec = VECTORS[vector], LOSSY[name]()
    got = draws(codec, x)
    errors = np.square(got - x).sum(1) / squared(x)
    margin = 5 * errors.std(ddof=1) / math.sqrt(REPEATS) + 1e-6
    omega, delta = codec.variance(x.size), codec.contraction(x.size)
    assert omega is not None or delta is not None
    if omega is not None:
        assert errors.mean() <= omega + margin
    if delta is not None:
        assert 0 < delta <= 1
        assert errors.mean() <= 1 - delta + margin
    assert codec.unbiased == (omega is not None)
    if codec.unbiased:
        assert bias_ratio(got, x) < 25


def test_the_measure_of_bias_sees_a_biased_codec():
    x = VECTORS["normal"]
    assert bias_ratio(draws(RandomK(fraction=0.25, scaled=False), x), x) > 100
    assert bias_ratio(draws(RandomK(fraction=0.25), x), x) < 25
    assert bias_ratio(draws(Uniform(2), x), x) > 1e6  # no spread at all


@pytest.mark.parametrize(
    ("codec", "vector", "expected"),
    [
        (RandomK(16), "normal", 64 / 16 - 1),
        (RandomK(16, scaled=False), "heavy", 1 - 16 / 64),
        (Ternary("stochastic"), "worst of terngrad", (math.sqrt(64) - 1) / 2),
    ],
    ids=["random-k", "random-k unscaled", "terngrad"],
)
def test_bounds_that_are_reached(codec, vector, expected):
    """Equalities: the bound is the best one possible. 5 standard errors of the mean of 400 draws."""
    x = VECTORS[vector]
    errors = np.square(draws(codec, x) - x).sum(1) / squared(x)
    omega = codec.variance(64) if codec.unbiased else 1 - codec.contraction(64)
    assert omega == pytest.approx(expected)
    assert errors.mean() == pytest.approx(expected, abs=5 * errors.std(ddof=1) / math.sqrt(REPEATS))


def test_natural_compression_reaches_an_eighth_at_four_thirds():
    x = np.full(20_000, 4 / 3, np.float32)
    got = Natural().decode(Natural().encode(torch.from_numpy(x))).numpy()
    assert set(got.tolist()) == {1.0, 2.0}
    # relative error is 1/16 or 1/4 with chances 2/3 and 1/3: mean 1/8, standard deviation 0.0884 a value
    assert np.square(got / x - 1).mean() == pytest.approx(1 / 8, abs=5 * 0.0884 / math.sqrt(x.size))


@pytest.mark.parametrize("name", DETERMINISTIC)
@given(
    x=npst.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(2.0**-10, 1000, width=32) | st.floats(-1000, -(2.0**-10), width=32),
    )
)
@settings(deadline=None, max_examples=60)
def test_stated_contractions_hold_for_every_tensor(name, x):
    codec = LOSSY[name]()
    assert not codec.unbiased
    assert codec.variance(x.size) is None
    delta = codec.contraction(x.size)
    if name == "fp16":
        assert delta is None
        return
    got = codec.decode(codec.encode(torch.from_numpy(x))).numpy()
    # float32 products are off by 2^-23 relative, a squared error by at most 2^-22 of ||x||^2
    assert squared(got.astype(np.float64) - x) <= (1 - delta + 2.0**-22) * squared(x)
    if name == "sign":
        assert squared(got - x) == pytest.approx(
            squared(x) - np.abs(x).sum(dtype=np.float64) ** 2 / x.size, abs=1e-5 * squared(x)
        )


def test_a_tensor_of_equal_values_but_one_is_the_worst_case_of_rounding_to_nearest():
    """One value at the top and the others just below half a step: all but the largest are lost."""
    x = np.r_[7.0, np.full(99, 0.4999)].astype(np.float32)
    codec = Uniform(4)
    got = codec.decode(codec.encode(torch.from_numpy(x))).numpy()
    assert got[0] == 7
    assert not got[1:].any()
    assert squared(got - x) <= (1 - codec.contraction(100)) * squared(x)


def test_lattice_error_is_uniform_with_dither_and_bounded_without():
    x = torch.from_numpy(VECTORS["normal"])
    plain = Lattice(8, 0.1)
    got = plain.decode(plain.encode(x), reference=x)
    assert float((got - x).abs().max()) <= 0.05 + 1e-6
    assert not plain.unbiased
    dithered = Lattice(8, 0.1, dither=True)
    got = np.stack([dithered.decode(dithered.encode(x), reference=x).numpy() for _ in range(REPEATS)]).astype(
        np.float64
    )
    error = got - x.numpy()
    assert np.abs(error).max() <= 0.05 + 1e-6
    assert dithered.unbiased
    assert bias_ratio(got, x.numpy()) < 25
    # a uniform error's square has mean side^2 / 12 and relative standard deviation 2 / sqrt(5); 64 * 400 independent
    # ones
    assert np.square(error).sum(1).mean() == pytest.approx(
        dithered.squared_error(64), rel=5 * 0.894 / math.sqrt(error.size)
    )
