"""Rounding with feedback: GPTQ against enumeration and its published form, QuIP's rotations and proxy loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.llm_layers import generator, layer, np_bits, np_uniform, output_error
from tracking.errors import UserError
from workbench.llm.feedback import damped, feedback_matrix, round_with_feedback, row_errors
from workbench.llm.formats_grid import UniformGrid
from workbench.llm.formats_incoherent import mixing, rotate, rotate_back
from workbench.methods.compression.gptq import GPTQ
from workbench.methods.compression.quip import GAUSSIAN_STEP, QuIP

TWO_BITS = UniformGrid(2, 0)


def enumerated(weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """The least tr(E H E^T) over all codes of the grid that two bits give each row, by trying them all."""
    steps = TWO_BITS.fit(weight)
    scale, zero = steps.scale[:, 0].double().numpy(), steps.zero[:, 0].double().numpy()
    h, total = hessian.double().numpy(), 0.0
    for i, row in enumerate(weight.double().numpy()):
        codes = np.array(list(itertools.product(range(4), repeat=len(row))))
        error = row - scale[i] * (codes - zero[i])
        total += ((error @ h) * error).sum(1).min()
    return total


def np_gptq(w: np.ndarray, h: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    """Alg. 1 of the paper as printed: upper Cholesky factor of the inverse, errors pushed to the columns on the right."""
    u, w, out = np.linalg.cholesky(np.linalg.inv(h)).T, w.copy(), np.empty_like(w)
    for j in range(w.shape[1]):
        out[:, j] = (np.clip(np.round(w[:, j] / scale + zero), 0, top) - zero) * scale
        w[:, j:] -= np.outer((w[:, j] - out[:, j]) / u[j, j], u[j, j:])
    return out


# --- the factorisation ----------------------------------------------------------------------------------------


def test_the_factor_is_unit_upper_triangular_and_gives_h_back():
    _, stats = layer(2, 24)
    upper = feedback_matrix(stats.hessian, 0.01).double()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.diagonal(), torch.ones(24, dtype=torch.float64))
    inner = torch.linalg.solve(upper, torch.linalg.solve(upper, damped(stats.hessian, 0.01).double()).T)
    # D is diagonal up to float32 errors of the factorisation
    assert float((inner - inner.diag().diag()).abs().max()) < 1e-4 * float(inner.diagonal().max())


def test_too_few_inputs_are_damped_until_they_suffice():
    weight, stats = layer(6, 32, tokens=5)  # rank 5 of 32
    assert output_error(weight, GPTQ(UniformGrid(3, 16), damping=1e-9)(weight, stats), stats) <= (
        output_error(weight, UniformGrid(3, 16)(weight), stats) * (1 + 1e-5))


def test_what_is_no_second_moment_is_refused():
    with pytest.raises(UserError, match="no second moment"):
        feedback_matrix(torch.tensor([[1.0, 1e9], [1e9, 1.0]]))
    with pytest.raises(UserError, match="nan or inf"):
        feedback_matrix(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


@pytest.mark.parametrize("block", [1, 5, 16, 128])
def test_lazy_blocks_change_nothing(block):
    weight, stats = layer(7, 40)
    feedback = feedback_matrix(stats.hessian)
    results = [round_with_feedback(weight, feedback, lambda k, w: (w / 0.03).round() * 0.03, block=b) for b in (block, 40)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_the_block_handed_out_is_the_best_real_valued_answer_to_the_errors_so_far():
    weight, stats = layer(5, 12)
    h = damped(stats.hessian, 0.01)
    seen = {}
    rounded = round_with_feedback(weight, feedback_matrix(stats.hessian, 0.01), lambda k, w: (w / 0.1).round() * 0.1,
                                  begin=lambda start, best: seen.update({start: best.clone()}), block=4)
    torch.testing.assert_close(seen[0], weight[:, :4])
    error = (weight - rounded)[:, :4].double()
    # least squares in all columns still free: E_free = -E_fixed H_fixed,free H_free,free^-1
    free = -torch.linalg.solve(h[4:, 4:].double(), h[4:, :4].double() @ error.T).T
    torch.testing.assert_close(seen[4].double(), weight[:, 4:8] - free[:, :4], rtol=1e-3, atol=1e-4)


# --- GPTQ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_with_inputs_that_do_not_correlate_gptq_is_the_optimum(seed):
    weight, stats = layer(1, 4, seed)
    stats.hessian = stats.hessian.diagonal().diag()
    found = output_error(weight, GPTQ(TWO_BITS)(weight, stats), stats)
    assert found == pytest.approx(enumerated(weight, stats.hessian), rel=1e-5)


def test_with_two_inputs_gptq_is_the_optimum_where_the_first_rounding_is_clear():
    clear = 0
    for seed in range(60):
        weight, stats = layer(1, 2, seed)
        h = stats.hessian.double()
        steps = TWO_BITS.fit(weight)
        scale, zero = float(steps.scale), float(steps.zero)
        off = np.sort((float(weight[0, 0]) - scale * (np.arange(4) - zero)) ** 2)
        # the objective is D_0 e_0^2 + H_11 eta^2, eta the rounding error of the second, D_0 = det H / H_11. If the second best level
        # of the first costs more than the worst rounding of the second inside its range can save, greedy is optimal
        d0 = float(torch.linalg.det(h) / h[1, 1])
        target = float(weight[0, 1]) + float(h[0, 1] / h[1, 1]) * (float(weight[0, 0]) - scale * (np.clip(np.round(
            float(weight[0, 0]) / scale + zero), 0, 3) - zero))
        inside = -scale * zero - scale / 2 <= target <= scale * (3 - zero) + scale / 2
        if inside and d0 * (off[1] - off[0]) > float(h[1, 1]) * (scale / 2) ** 2:
            clear += 1
            found = output_error(weight, GPTQ(TWO_BITS, damping=1e-6, act_order=False)(weight, stats), stats)
            assert found == pytest.approx(enumerated(weight, stats.hessian), rel=1e-3, abs=1e-9)
    assert clear >= 5


@pytest.mark.parametrize("q", [3, 4])
def test_elsewhere_gptq_lies_between_the_optimum_and_rounding_to_nearest(q):
    totals = np.zeros(3)
    for seed in range(25):
        weight, stats = layer(1, q, seed)
        best = enumerated(weight, stats.hessian)
        greedy, nearest = (output_error(weight, packed, stats) for packed in (GPTQ(TWO_BITS)(weight, stats), TWO_BITS(weight)))
        assert best * (1 - 1e-6) <= greedy <= nearest * (1 + 1e-5)
        totals += (best, greedy, nearest)
    # over many problems it closes most of the gap between the two
    assert totals[1] - totals[0] < 0.5 * (totals[2] - totals[0])


def test_gptq_is_the_published_algorithm():
    weight, stats = layer(24, 32)
    grid = UniformGrid(3, 0)
    packed = GPTQ(grid, act_order=False)(weight, stats)
    steps = grid.fit(weight)
    scale, zero = (t[:, 0].double().numpy() for t in steps)
    h = damped(stats.hessian, 0.01).double().numpy()
    expected = np_gptq(weight.double().numpy(), h, scale, zero, 7)
    found = packed.dequantise().double().numpy()
    nearest = grid(weight).dequantise().double().numpy()
    raw = stats.hessian.double().numpy()
    exact = weight.double().numpy()
    lost = [(e @ raw @ e) > (n @ raw @ n) for e, n in zip(exact - expected, exact - nearest, strict=True)]
    expected[lost] = nearest[lost]
    # float32 and float64 may part at a tie and then go different ways: no more than one row of 24 may
    assert (np.abs(found - expected).max(1) > 1e-6).sum() <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 24), st.integers(2, 4), st.booleans(), st.booleans(),
       st.sampled_from([0, 8]))
def test_no_row_ever_loses_to_rounding_to_nearest_in_the_same_groups(seed, p, q, bits, act_order, static, size):
    weight, stats = layer(p, q, seed, outliers=seed % 3 and 1)
    grid = UniformGrid(bits, size)
    found = row_errors(weight - GPTQ(grid, 0.01, act_order, static)(weight, stats).dequantise(), stats.hessian)
    order = torch.arange(q)
    if act_order and not static:  # its groups are of re-ordered inputs
        order = stats.hessian.diagonal().argsort(descending=True, stable=True)
    nearest = row_errors(weight[:, order] - grid(weight[:, order]).dequantise(), stats.hessian[order][:, order])
    assert bool((found <= nearest * (1 + 1e-4) + 1e-9).all())


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_pays_for_its_order_only_where_it_must(act_order, static):
    weight, stats = layer(20, 48, outliers=2)
    packed = GPTQ(UniformGrid(2, 16), act_order=act_order, static_groups=static)(weight, stats)
    plain = UniformGrid(2, 16)(weight)
    order = {"permutation": 6 * 48} if act_order and not static else {}
    assert packed.bits() == plain.bits() | order
    np.testing.assert_allclose(packed.dequantise().numpy(), np_uniform(packed), rtol=1e-6, atol=1e-9)
    assert output_error(weight, packed, stats) < 0.8 * output_error(weight, plain, stats)


def test_an_input_never_active_is_rounded_to_nearest():
    weight, stats = layer(6, 24)
    stats.hessian[7] = stats.hessian[:, 7] = 0.0
    for packed in (GPTQ(UniformGrid(3, 0))(weight, stats),):
        torch.testing.assert_close(packed.dequantise()[:, 7], UniformGrid(3, 0)(weight).dequantise()[:, 7])


# --- QuIP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 9, 12, 64, 192, 576, 1536])
def test_rotations_are_orthogonal_with_small_entries(size):
    matrix = mixing(size).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.equal(matrix, matrix.T) or float((matrix - matrix.T).abs().max()) < 1e-7
    assert float(matrix.abs().max()) <= (2 / size) ** 0.5 + 1e-6 or size == 1


def test_a_power_of_two_is_a_hadamard_matrix():
    from scipy.linalg import hadamard

    np.testing.assert_allclose(mixing(64).numpy(), hadamard(64) / 8, atol=1e-6)


@pytest.mark.parametrize("size", [9, 64, 576])
def test_rotating_back_is_the_exact_inverse(size):
    x = torch.randn(5, size, generator=generator())
    signs = torch.randint(2, (size,), generator=generator(1)) * 2.0 - 1
    # float32: two sums of `size` products of numbers about 1
    torch.testing.assert_close(rotate_back(rotate(x, signs), signs), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotate(x, signs).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", [(24, 36), (16, 64)])
def test_quip_decodes_as_written_out_in_numpy(shape, rescale):
    (p, q), (weight, stats) = shape, layer(*shape)
    packed = QuIP(2, rescale=rescale)(weight, stats, generator())
    t = packed.tensors
    codes = np_bits(t["indices"], 2, p * q).reshape(p, q)
    rows, columns = (np.diag(2.0 * np_bits(t[f"other.{side}_signs"], 1, n) - 1) for side, n in (("row", p), ("column", q)))
    u, v = mixing(p).double().numpy() @ rows, mixing(q).double().numpy() @ columns
    expected = u.T @ ((codes - 1.5) * float(t["scales"])) @ v
    if rescale:
        expected = expected * t["scales.column"].numpy().astype(float)
    np.testing.assert_allclose(packed.dequantise().numpy(), expected, atol=1e-6)
    assert packed.bits() == {"indices": 2 * p * q, "scales": 32 + 16 * q * rescale, "other": 8 * (-(-p // 8) + -(-q // 8))}


def test_a_generator_says_all():
    weight, stats = layer(16, 24)
    a, b, c = (QuIP(2)(weight, stats, generator(s)).tensors["indices"] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_rotation_helps_where_weights_and_inputs_stand_out():
    weight, stats = layer(64, 72, outliers=4)
    weight[3, 5] = 3.0
    rotated, plain = QuIP(2)(weight, stats, generator()), GPTQ(UniformGrid(2, 0))(weight, stats)
    assert rotated.bpw() < plain.bpw() + 0.3
    assert output_error(weight, rotated, stats) < output_error(weight, plain, stats)


@pytest.mark.parametrize("bits", GAUSSIAN_STEP)
def test_the_step_is_the_best_one_for_a_gaussian(bits):
    from scipy.stats import norm

    def distortion(step):  # exact: E x^2 - 2 E x Q(x) + E Q(x)^2, cell by cell
        levels = step * (np.arange(2**bits) - (2**bits - 1) / 2)
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        mass, mean = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
        return 1 - 2 * levels @ mean + levels**2 @ mass

    best = distortion(GAUSSIAN_STEP[bits])
    # the table has four digits, so neighbours at 2 % must be worse
    assert best < distortion(0.98 * GAUSSIAN_STEP[bits])
    assert best < distortion(1.02 * GAUSSIAN_STEP[bits])
