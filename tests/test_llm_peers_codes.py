"""Peers with codebooks, low-rank parts or learnt grids: AQLM, LoftQ, LQ-LoRA, ApiQ and LR-QAT."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.llm_layers import generator, layer, np_bits, np_rtn, np_uniform, output_error
from workbench.llm.calibration import LayerStatistics
from workbench.llm.descent import descend
from workbench.llm.feedback import row_errors
from workbench.llm.formats_additive import pack_additive, sum_codewords
from workbench.llm.formats_grid import NormalFloatGrid, UniformGrid
from workbench.llm.reallm_lowrank import Importance
from workbench.methods.compression.apiq import ApiQ
from workbench.methods.compression.aqlm import AQLM, AdditiveFit
from workbench.methods.compression.loftq import LoftQ
from workbench.methods.compression.lq_lora import LQLoRA
from workbench.methods.compression.lr_qat import LRQAT


@pytest.fixture(scope="module")
def problem():
    return layer(24, 32)


def share(weight, packed, stats):
    """Output error as a share of that of a zero matrix."""
    return output_error(weight, packed, stats) / float(row_errors(weight, stats.hessian).sum())


# --- AQLM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [24, 26])
def test_additive_codes_decode_as_written_out_in_numpy(q):
    g = generator()
    codes = torch.randint(8, (5, 7 if q == 26 else 6, 3), generator=g)
    books, scales = torch.randn(3, 8, 4, generator=g).half(), torch.rand(5, generator=g).half()
    packed = pack_additive(codes, books.float(), scales.float(), q)
    found = np_bits(packed.tensors["indices"], 3, codes.numel()).reshape(codes.shape)
    expected = np.stack([[sum(books.numpy().astype(float)[m, c[m]] for m in range(3)) for c in row] for row in found]).reshape(5, -1)[:, :q]
    np.testing.assert_allclose(packed.dequantise().numpy(), expected * scales.numpy().astype(float)[:, None], atol=1e-6)
    assert packed.bits() == {"indices": 8 * -(-codes.numel() * 3 // 8), "codebooks": 16 * 3 * 8 * 4, "scales": 16 * 5}


@pytest.mark.parametrize("beam", [1, 4])
def test_no_turn_raises_the_additive_objective(problem, beam):
    weight, stats = problem
    aqlm = AQLM(codebooks=2, code_bits=4, d=4, beam=beam, rounds=4, tolerance=0.0)
    fit, objective = aqlm.solve(weight, stats.hessian, generator())
    assert len(objective) == 9
    # float32 sums of the objective are good to about 1e-6 of it
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(objective))
    assert objective[-1] < 0.7 * objective[0]
    # rounding to fp16, codes chosen anew: 2^-11 of every codeword, far below what quantisation leaves
    assert fit.objective() == pytest.approx(objective[-1], rel=0.02)
    packed = aqlm(weight, stats, generator())
    torch.testing.assert_close(weight - packed.dequantise(), fit.error()[:, :32], rtol=1e-3, atol=1e-4)


def test_a_beam_as_wide_as_a_codebook_finds_the_best_codes_of_a_group():
    weight, stats = layer(6, 8)
    fit = AdditiveFit(weight, stats.hessian, 4)
    fit.start(2, 8, generator())
    error, h = fit.error(), stats.hessian
    own, outside = error[:, :4], error @ h[:, :4] - error[:, :4] @ h[:4, :4]
    codes, _ = fit._search_group(fit.codes[:, 0], own, outside, h[:4, :4], beam=64)
    for i in range(6):
        def loss(pair, i=i):
            e = weight[i, :4] - fit.scales[i] * sum(fit.books[m, c] for m, c in enumerate(pair))
            return float(e @ h[:4, :4] @ e + 2 * e @ outside[i])

        best = min(map(loss, itertools.product(range(8), repeat=2)))
        assert loss(codes[i].tolist()) == pytest.approx(best, rel=1e-4, abs=1e-5)


def test_tuning_solves_the_least_squares_problem_of_the_codebooks():
    weight, stats = layer(10, 8)
    fit = AdditiveFit(weight, stats.hessian, 4)
    fit.start(2, 4, generator())
    scales = fit.scales.clone()
    # the design matrix: the effect of each of 2 x 4 x 4 codebook entries on the 80 weights, in units of the output
    root = torch.linalg.cholesky(stats.hessian.double())
    columns = []
    for k in range(32):
        unit = torch.zeros(32).index_fill_(0, torch.tensor(k), 1.0).view(2, 4, 4)
        columns.append((scales[:, None] * sum_codewords(fit.codes, unit)).double() @ root)
    design = torch.stack([c.reshape(-1) for c in columns], 1).numpy()
    target = (weight.double() @ root).reshape(-1).numpy()
    solution, _, rank, _ = np.linalg.lstsq(design, target, rcond=1e-10)
    least = float(np.square(target - design @ solution).sum())
    assert rank < 32  # a constant may move from one table to the other: the problem is singular, and must be survived
    fit.tune(60)
    with_old_scales = weight - scales[:, None] * sum_codewords(fit.codes, fit.books)
    assert float(row_errors(with_old_scales, stats.hessian).sum()) == pytest.approx(least, rel=1e-3)
    assert fit.objective() <= least * (1 + 1e-4)


def test_additive_codes_beat_a_uniform_grid_at_two_bits():
    weight, stats = layer(96, 64)
    packed = AQLM(codebooks=2, code_bits=4, d=4)(weight, stats, generator())
    assert packed.bits()["indices"] == 2 * 96 * 64
    assert output_error(weight, packed, stats) < 0.5 * output_error(weight, UniformGrid(2, 16)(weight), stats)


# --- LoftQ and LQ-LoRA ----------------------------------------------------------------------------------------

EXACT = 14  # of 24: with the ten extra directions the randomised decomposition is the exact one


def low_rank(packed):
    return (packed.tensors["low_rank.b"].float() @ packed.tensors["low_rank.a"].float()).numpy()


def truncated(matrix):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :EXACT] * s[:EXACT] @ v[:EXACT]


@pytest.mark.parametrize("grid", [NormalFloatGrid(2, 16), UniformGrid(2, 16)], ids=["normal float", "uniform"])
def test_the_low_rank_step_of_loftq_never_raises_the_error_and_the_best_turn_is_kept(problem, grid):
    weight, _ = problem
    packed, errors = LoftQ(grid, 4, turns=6).solve(weight)
    # factors in fp16: 2^-11 of their product
    assert all(after <= before * (1 + 1e-3) for before, after in errors)
    assert float((weight - packed.dequantise()).norm()) == pytest.approx(min(after for _, after in errors), rel=1e-5)
    assert errors[0][0] == pytest.approx(float((weight - grid(weight).dequantise()).norm()), rel=1e-5)
    assert min(after for _, after in errors[1:]) < errors[0][1]
    assert packed.bits()["low_rank"] == 16 * 4 * (24 + 32)


def test_one_turn_of_loftq_is_the_truncated_decomposition_of_what_is_left(problem):
    weight, _ = problem
    packed, _ = LoftQ(NormalFloatGrid(3, 16), EXACT, turns=1).solve(weight)
    left = (weight - NormalFloatGrid(3, 16)(weight).dequantise()).double().numpy()
    np.testing.assert_allclose(low_rank(packed), truncated(left), atol=2e-3 * np.linalg.norm(left, 2))


def test_the_error_of_lq_lora_falls_at_every_turn_that_is_kept(problem):
    weight, stats = problem
    for fisher in (None, stats.fisher):
        importance = None if fisher is None else Importance.of_fisher(fisher)
        packed, errors = LQLoRA(NormalFloatGrid(2, 16), 4).solve(weight, importance)
        assert len(errors) > 1
        assert all(b < a for a, b in itertools.pairwise(errors))
        entry = 1 if fisher is None else fisher.sqrt()
        assert float((entry * (weight - packed.dequantise())).norm()) == pytest.approx(errors[-1], rel=1e-5)


def test_lq_lora_starts_with_the_low_rank_part(problem):
    weight, _ = problem
    packed, _ = LQLoRA(NormalFloatGrid(3, 16), EXACT, turns=1).solve(weight)
    w = weight.double().numpy()
    np.testing.assert_allclose(low_rank(packed), truncated(w), atol=2e-3 * np.linalg.norm(w, 2))
    assert torch.equal(packed.code(), NormalFloatGrid(3, 16)(weight - torch.from_numpy(low_rank(packed))).dequantise())


def test_fisher_weights_lower_the_weighted_error(problem):
    weight, stats = problem
    plain = LQLoRA(NormalFloatGrid(2, 16), 4)(weight)
    weighted = LQLoRA(NormalFloatGrid(2, 16), 4, weighted=True)(weight, stats)
    errors = [float((stats.fisher.sqrt() * (weight - packed.dequantise())).norm()) for packed in (plain, weighted)]
    assert errors[1] < 0.9 * errors[0]
    assert (LQLoRA().needs, LQLoRA(weighted=True).needs) == (frozenset(), {"fisher"})


def test_rows_that_no_token_reaches_do_no_harm(problem):
    weight, stats = problem
    fisher = stats.fisher.clone()
    fisher[3], fisher[:, 5] = 0.0, 0.0
    for weights in (fisher, torch.zeros_like(fisher)):
        packed = LQLoRA(NormalFloatGrid(2, 16), 4, weighted=True)(weight, LayerStatistics(fisher=weights))
        assert bool(torch.isfinite(packed.dequantise()).all())


# --- what is learnt by gradients ------------------------------------------------------------------------------


def test_descent_reaches_the_optimum_of_a_problem_that_has_one_and_never_ends_higher(problem):
    weight, stats = problem
    b, a = torch.zeros(24, 4), torch.randn(4, 32, generator=generator()) * 0.2
    root = torch.linalg.cholesky(stats.hessian.double())
    s = torch.linalg.svdvals(weight.double() @ root)
    least = float(s[4:].square().sum() / s.square().sum())  # Eckart & Young in the metric of H
    objective = descend(lambda: b @ a, [{"params": [a, b], "lr": 0.02, "weight_decay": 0.0}], weight, stats.hessian, 400)
    assert objective[0] == pytest.approx(1.0, rel=1e-5)
    assert least * (1 - 1e-4) <= min(objective) <= 1.05 * least
    found = float(row_errors(weight - b @ a, stats.hessian).sum() / row_errors(weight, stats.hessian).sum())
    assert found == pytest.approx(min(objective), rel=1e-4)
    # a rate that throws it out of the valley: the parameters are those it began with
    before = b.clone()
    wild = descend(lambda: b @ a, [{"params": [a, b], "lr": 1e3, "weight_decay": 0.0}], weight, stats.hessian, 3)
    assert max(wild) > 10 * wild[0]
    torch.testing.assert_close(b, before)


def test_apiq_starts_as_rounding_in_slightly_clipped_groups(problem):
    weight, stats = problem
    packed, objective = ApiQ(UniformGrid(3, 16), 4, steps=0).solve(weight, stats.hessian, generator())
    keep = 1 / (1 + np.exp(-4.0))
    w, found = weight.double().numpy(), packed.dequantise().double().numpy()
    for i, k in itertools.product(range(24), range(2)):
        part = w[i, 16 * k:16 * k + 16]
        low, high = keep * min(0, part.min()), keep * max(0, part.max())
        scale = np.float16((high - low) / 7).astype(float)
        zero = np.clip(np.round(-low / scale), 0, 7)
        np.testing.assert_allclose(found[i, 16 * k:16 * k + 16], (np.clip(np.round(part / scale + zero), 0, 7) - zero) * scale, atol=1e-6)
    assert not packed.tensors["low_rank.b"].any()
    assert share(weight, packed, stats) == pytest.approx(objective[0], rel=1e-4)


def test_lr_qat_at_the_start_is_rounding_to_nearest(problem):
    weight, stats = problem
    packed = LRQAT(UniformGrid(3, 16, symmetric=True), phi="float", steps=0)(weight, stats, generator())
    np.testing.assert_allclose(packed.dequantise().numpy(), np_rtn(weight, 3, 16, symmetric=True), rtol=1e-6, atol=1e-9)
    plain = UniformGrid(3, 16, symmetric=True)(weight)
    assert all(torch.equal(plain.tensors[name], packed.tensors[name]) for name in plain.tensors)


def test_lr_qat_in_fixed_point_rounds_the_weights_of_eight_bits(problem):
    weight, stats = problem
    grid = UniformGrid(3, 16, symmetric=True)
    packed = LRQAT(grid, steps=0)(weight, stats, generator())
    scale = np.repeat(packed.tensors["scales"].numpy().astype(np.float32).reshape(24, 2), 16, 1)
    eight = np.clip(np.round(weight.numpy() / scale * 32), -128, 127) / 32  # 3 bits before the point, 5 behind
    np.testing.assert_allclose(packed.dequantise().numpy(), np.clip(np.round(eight), -4, 3) * scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("name", ["apiq", "lr_qat"])
def test_training_lowers_the_output_error_and_what_is_stored_is_what_was_trained(problem, name, bits):
    weight, stats = problem
    quantiser = ApiQ(UniformGrid(bits, 16), 4) if name == "apiq" else LRQAT(UniformGrid(bits, 16, symmetric=True))
    packed, objective = quantiser.solve(weight, stats.hessian, generator())
    assert min(objective) < 0.97 * objective[0]  # few steps on few weights: a gain, and not by rounding errors
    # straight-through sums in float32 against what is decoded: a code may flip at a tie
    assert share(weight, packed, stats) == pytest.approx(min(objective), rel=0.02)
    plain = {"indices", "scales"}
    assert set(packed.bits()) == (plain if name == "lr_qat" else plain | {"zeros", "low_rank"})
    code = packed.code().numpy()
    np.testing.assert_allclose(code, np_uniform(packed), rtol=1e-6, atol=1e-9)
