"""Peers on scalar grids that round each weight for itself: NormalFloat, HQQ and AWQ, and the grids themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.llm_layers import layer, np_bits, np_per_input, np_rtn, np_uniform, output_error
from tracking.errors import UserError
from workbench.llm.calibration import LayerStatistics
from workbench.llm.feedback import required
from workbench.llm.formats_grid import NormalFloatGrid, UniformGrid
from workbench.methods.compression.awq import AWQ
from workbench.methods.compression.hqq import HQQ
from workbench.methods.compression.nf4 import QLoRA
from workbench.methods.compression.rtn import RTN

# Dettmers et al. 2023, appendix E, "exact values of the NF4 data type"
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]

SHAPES = pytest.mark.parametrize(("q", "size"), [(64, 32), (60, 32), (48, 0)], ids=["whole groups", "a shorter last group", "whole rows"])


# --- uniform --------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_uniform_grid_rounds_to_nearest_as_the_textbook_does(bits, symmetric, q, size):
    weight, _ = layer(12, q)
    packed = UniformGrid(bits, size, symmetric)(weight)
    expected = np_rtn(weight, bits, size, symmetric)
    # float32 arithmetic on both sides of a tie may differ; none of these weights lies on one
    np.testing.assert_allclose(packed.dequantise().numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np_uniform(packed), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_grid_of_the_peers_is_that_of_the_baseline(symmetric):
    weight, _ = layer(12, 60)
    ours, baseline = UniformGrid(3, 32, symmetric)(weight), RTN(3, 32, symmetric)(weight)
    assert ours.tensors.keys() == baseline.tensors.keys()
    assert all(torch.equal(ours.tensors[name], baseline.tensors[name]) for name in ours.tensors)


def test_weights_of_zero_stay_zero_and_a_group_of_zeros_too():
    weight, _ = layer(4, 32)
    weight[0], weight[1, ::3] = 0.0, 0.0
    for grid in (UniformGrid(2, 16), UniformGrid(2, 16, symmetric=True), NormalFloatGrid(2, 16), NormalFloatGrid(2, 16, "fp16")):
        assert bool((grid(weight).dequantise()[weight == 0] == 0).all())


def test_a_range_of_one_sign_includes_zero():
    weight = torch.linspace(1.0, 1.5, 16).view(1, 16)
    # level 0 is zero and the topmost one the maximum, so the error is at most half a step of 1.5 / 15 (fp16 scale: 2^-11 of 1.5)
    assert float((UniformGrid(4, 0)(weight).dequantise() - weight).abs().max()) <= 0.05 + 1.5 * 2**-11


@pytest.mark.parametrize("importance", [False, True])
def test_a_clipped_range_never_has_a_larger_error_in_its_own_norm(importance):
    weight, stats = layer(24, 64)
    weights = stats.hessian.diagonal() if importance else None

    def error(grid):
        steps = grid.fit(weight, weights)
        off = (weight - grid.decode(grid.encode(weight, steps), steps)).abs().view(24, 2, 32)
        return ((off.square() * weights.view(2, 32)) if importance else off.pow(2.4)).sum(-1)

    full, clipped = error(UniformGrid(2, 32)), error(UniformGrid(2, 32, clip=20))
    assert bool((clipped <= full * (1 + 1e-6)).all())
    assert float(clipped.sum()) < 0.8 * float(full.sum())  # heavy tails at two bits: clipping must pay


# --- NormalFloat ----------------------------------------------------------------------------------------------


def test_four_bits_are_the_published_levels():
    weight = torch.tensor([NF4])  # absmax 1, so each level is its own nearest
    packed = NormalFloatGrid(4, 16, "fp16")(weight)
    assert np_bits(packed.tensors["indices"], 4, 16).tolist() == list(range(16))
    # published values are float32 results of other libraries: equal to a few units in the last place
    np.testing.assert_allclose(packed.dequantise().numpy()[0], NF4, atol=2e-7)


@SHAPES
@pytest.mark.parametrize("scales", ["double", "fp16"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_float_takes_the_nearest_level_times_the_largest_magnitude(bits, scales, q, size):
    from scipy.stats import norm

    weight, _ = layer(20, q)
    packed = QLoRA(NormalFloatGrid(bits, size, scales))(weight)
    half = 2 ** (bits - 1)
    offset = 0.9677083
    levels = np.concatenate([-norm.ppf(np.linspace(offset, 0.5, half)[:-1]), [0.0], norm.ppf(np.linspace(offset, 0.5, half + 1)[:-1])])
    levels = np.sort(levels / np.abs(levels).max())
    groups = -(-q // (size or q))
    t, count = packed.tensors, 20 * groups
    if scales == "double":
        top = np.repeat(t["scales.tops"].numpy(), 256)[:count]
        scale = t["scales.offset"].numpy() + top * (t["scales.codes"].numpy() / np.float32(255))
    else:
        scale = t["scales"].numpy().astype(np.float32).reshape(-1)
    exact = np.array([np.abs(row[a:a + (size or q)]).max() for row in weight.numpy() for a in range(0, q, size or q)])
    # half a step of the 8-bit scales; half a unit of fp16's eleven bits
    bound = (exact.max() - exact.min()) / 510 + 1e-7 if scales == "double" else exact.max() * 2**-11
    assert np.abs(scale - exact).max() <= bound
    each = np_per_input(scale.reshape(20, groups).astype(float), q, size)
    expected = levels[np.abs(weight.numpy()[..., None] / each[..., None] - levels).argmin(-1)] * each
    np.testing.assert_allclose(packed.dequantise().numpy(), expected, rtol=2e-6, atol=1e-8)


def test_qlora_factors_leave_the_matrix_as_it_is():
    weight, _ = layer(24, 32)
    plain, tuned = QLoRA()(weight), QLoRA(rank=4)(weight, generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain.dequantise(), tuned.dequantise())
    assert tuned.bits()["low_rank"] == 16 * 4 * (24 + 32)
    assert float(tuned.tensors["low_rank.a"].abs().max()) > 0


# --- HQQ ------------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_half_quadratic_objective_never_rises_and_ends_lower(bits, q, size):
    weight, _ = layer(24, q, seed=bits)
    hqq = HQQ(UniformGrid(bits, size))
    steps, objective = hqq.solve(weight)
    assert all(b <= a for a, b in itertools.pairwise(objective))
    assert objective[-1] < objective[0]
    packed = hqq(weight)
    found = np.abs(weight.numpy() - np_uniform(packed)) ** 0.7
    assert found.sum() == pytest.approx(objective[-1], rel=1e-3)  # float32 powers near zero are steep
    assert steps.zero.shape == (24, -(-q // (size or q)))


def test_without_iterations_hqq_is_rounding_to_nearest():
    weight, _ = layer(16, 64)
    assert torch.equal(HQQ(UniformGrid(3, 32), iterations=0)(weight).dequantise(), UniformGrid(3, 32)(weight).dequantise())


def test_zero_points_that_are_not_whole_are_what_makes_hqq_better():
    weight, _ = layer(32, 64)
    plain, hqq = UniformGrid(2, 32)(weight), HQQ(UniformGrid(2, 32))(weight)
    errors = [float((weight - packed.dequantise()).abs().mean()) for packed in (plain, hqq)]
    assert errors[1] < errors[0]
    zeros = hqq.tensors["zeros"].float()
    assert bool((zeros != zeros.round()).any())


# --- AWQ ------------------------------------------------------------------------------------------------------


def test_alpha_zero_is_rounding_to_nearest_to_the_bit():
    weight, stats = layer(16, 64, outliers=3)
    plain, awq = UniformGrid(3, 32)(weight), AWQ(UniformGrid(3, 32), points=1, clip=0)(weight, stats)
    assert awq.format == plain.format == "uniform"
    assert all(torch.equal(plain.tensors[name], awq.tensors[name]) for name in plain.tensors)
    assert plain.tensors.keys() == awq.tensors.keys()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clip", [0, 20])
def test_awq_never_loses_to_rounding_to_nearest_and_wins_where_inputs_stand_out(clip, seed):
    for outliers, share in ((0, 1.0), (3, 0.7)):
        weight, stats = layer(32, 64, seed, outliers)
        plain, awq = UniformGrid(3, 32)(weight), AWQ(UniformGrid(3, 32), clip=clip)(weight, stats)
        assert output_error(weight, awq, stats) <= share * output_error(weight, plain, stats) * (1 + 1e-5)


def test_the_error_that_alpha_is_chosen_by_is_that_of_the_stored_matrix():
    weight, stats = layer(16, 64, outliers=2)
    awq = AWQ(UniformGrid(3, 32), clip=0)
    tried = [float(awq.scaled(weight, stats.hessian, stats.mean_abs, k / 20)[0]) for k in range(20)]
    packed = awq(weight, stats)
    np.testing.assert_allclose(np_uniform(packed), packed.dequantise().numpy(), rtol=1e-5, atol=1e-8)
    assert output_error(weight, packed, stats) == pytest.approx(min(tried), rel=1e-4)  # float32 sums of 16 x 64 x 64 terms
    assert min(tried) < tried[0]


def test_an_input_that_is_always_zero_is_survived():
    weight, stats = layer(8, 32)
    stats.mean_abs[5] = 0.0
    stats.hessian[5] = stats.hessian[:, 5] = 0.0
    assert bool(torch.isfinite(AWQ(UniformGrid(3, 16))(weight, stats).dequantise()).all())


# --- all of them ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(2, 40), st.integers(2, 5), st.sampled_from([0, 8, 16]))
def test_bits_are_those_of_the_stored_bytes(p, q, bits, size):
    from safetensors.torch import save

    weight, _ = layer(p, q)
    groups = p * -(-q // (size or q))
    whole = 8 * -(-p * q * bits // 8)
    expected = {
        UniformGrid(bits, size): {"indices": whole, "scales": 16 * groups, "zeros": 8 * -(-groups * bits // 8)},
        UniformGrid(bits, size, symmetric=True): {"indices": whole, "scales": 16 * groups},
        NormalFloatGrid(bits, size): {"indices": whole, "scales": 8 * groups + 32 * -(-groups // 256) + 32},
        HQQ(UniformGrid(bits, size)): {"indices": whole, "scales": 16 * groups, "zeros": 16 * groups},
    }
    for quantiser, terms in expected.items():
        packed = quantiser(weight)
        assert packed.bits() == terms
        blob = save(packed.tensors)
        assert 8 * (len(blob) - 8 - int.from_bytes(blob[:8], "little")) == sum(terms.values())


def test_a_quantiser_without_its_statistics_says_what_is_missing():
    weight, stats = layer(4, 16)
    with pytest.raises(UserError, match=r"AWQ needs .*mean_abs.*calibration text"):
        AWQ(UniformGrid(3, 16))(weight, LayerStatistics(1, stats.hessian))
    with pytest.raises(UserError, match="hessian"):
        required("GPTQ", None, "hessian")
