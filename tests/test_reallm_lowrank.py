"""The low-rank part: singular values, the alternation's errors, weights of rank one, and adapters at their start."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tracking.errors import UserError
from workbench.llm.packed import combine, row_norm
from workbench.llm.reallm import ReALLM, VectorCode
from workbench.llm.reallm_lowrank import Importance, alternate, to_lora, truncated_svd


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(p: int, q: int, seed: int = 0) -> torch.Tensor:
    g = generator(seed)
    u, v = (torch.linalg.qr(torch.randn(n, min(p, q), generator=g)).Q for n in (p, q))
    return u * (0.8 ** torch.arange(min(p, q))) @ v.T


@pytest.mark.parametrize(("p", "q", "rank"), [(30, 20, 5), (64, 200, 8), (200, 64, 60), (12, 12, 12)])
def test_truncated_singular_values(p: int, q: int, rank: int) -> None:
    """No approximation of the rank is better than the tail of the singular values (Eckart & Young, 1936)."""
    matrix = decaying(p, q) + 0.01 * torch.randn(p, q, generator=generator(1))
    b, a = truncated_svd(matrix, rank, generator())
    assert b.shape == (p, rank)
    assert a.shape == (rank, q)
    tail = torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt()
    assert float((matrix - b @ a).norm()) <= 1.02 * float(tail) + 1e-5
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), rtol=1e-3, atol=1e-5)  # the values are split evenly


def rounder(step: float):
    return lambda w: (None, (w / step).round() * step)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
def test_error_never_rises_and_is_that_of_what_is_returned(seed: int, weighted: bool) -> None:
    weight = decaying(48, 40, seed) + 0.05 * torch.randn(48, 40, generator=generator(seed))
    importance = Importance.of_fisher(torch.rand(48, 40, generator=generator(9)) ** 2) if weighted else None
    found = alternate(weight, 4, lambda w: (w, (w / 0.1).round() * 0.1), steps=50, generator=generator(seed), importance=importance)
    assert all(b < a for a, b in pairwise(found.errors))
    assert len(found.errors) > 1
    low = found.b.float() @ found.a.float()
    left = weight - low - (found.code / 0.1).round() * 0.1
    assert found.errors[-1] == pytest.approx(importance.error(left) if importance else float(left.norm()), rel=1e-5)


def test_stops_at_the_first_rise_and_keeps_the_turn_before() -> None:
    """A quantiser that is good, better, bad, perfect: the perfect turn is never reached."""
    offsets, calls = [0.3, 0.1, 0.5, 0.0], []

    def quantise(w: torch.Tensor) -> tuple[int, torch.Tensor]:
        calls.append(w)
        return len(calls), w + offsets[len(calls) - 1]

    found = alternate(decaying(20, 20), 2, quantise, steps=10, generator=generator())
    assert (found.code, len(calls)) == (2, 3)
    assert found.errors == pytest.approx([0.3 * 20, 0.1 * 20], rel=1e-4)


def test_turns_end_with_the_first_that_gains_less_than_the_tolerance() -> None:
    """Errors 1, 0.5, 0.45, 0.449, 0.2: a tenth is gained by the third turn, a quarter of a per cent by the fourth."""
    for tolerance, turns in ((0.0, 5), (1e-3, 5), (0.01, 4), (0.15, 3), (0.6, 2)):
        def quantise(w: torch.Tensor, offsets=iter([1.0, 0.5, 0.45, 0.449, 0.2])) -> tuple[None, torch.Tensor]:  # noqa: B008
            return None, w + next(offsets)

        found = alternate(decaying(20, 20), 2, quantise, steps=5, generator=generator(), tolerance=tolerance)
        assert len(found.errors) == turns
        assert found.errors == pytest.approx([20.0, 10.0, 9.0, 8.98, 4.0][:turns], rel=1e-4), "the last turn is kept, for it is the best"
    code, weight = VectorCode(bits=2, dim=2, group=32), decaying(64, 64)
    slow, quick = (ReALLM(code, 4, permute="never", tolerance=t)(weight).dequantise() for t in (0.0, 0.02))
    assert float((weight - slow).norm()) <= float((weight - quick).norm()) <= 1.1 * float((weight - slow).norm())


def test_rank_zero_is_one_turn_without_factors() -> None:
    found = alternate(torch.ones(4, 4), 0, rounder(0.3), steps=9, generator=generator())
    assert found.a is None
    assert len(found.errors) == 1
    with pytest.raises(UserError, match="from 0 to 4"):
        alternate(torch.ones(4, 4), 5, rounder(0.3), steps=9, generator=generator())


def test_weights_of_rank_one_give_the_weighted_optimum() -> None:
    """For F = u v^T the weighted problem is a plain one in disguise: the error is the tail of diag(sqrt u) W diag(sqrt v)."""
    g = generator(2)
    weight, u, v = decaying(30, 40), torch.rand(30, generator=g) + 0.1, torch.rand(40, generator=g) + 0.1
    importance = Importance.of_fisher(torch.outer(u, v))
    found = alternate(weight, 3, lambda w: (None, torch.zeros_like(w)), steps=1, generator=g, importance=importance)
    tail = torch.linalg.svdvals(u.sqrt()[:, None] * weight * v.sqrt())[3:].square().sum().sqrt()
    assert found.errors[0] == pytest.approx(float(tail), rel=2e-3)  # the factors are float16


def test_rows_and_columns_without_weight() -> None:
    fisher = torch.rand(20, 20, generator=generator())
    fisher[3], fisher[:, 5] = 0, 0
    for f in (fisher, torch.zeros(20, 20)):
        found = alternate(decaying(20, 20), 3, rounder(0.2), steps=4, generator=generator(), importance=Importance.of_fisher(f))
        assert torch.isfinite(found.a).all()
        assert torch.isfinite(found.b).all()


def test_factors_beyond_float16_are_refused() -> None:
    with pytest.raises(UserError, match="float16"):
        alternate(1e12 * decaying(20, 20), 2, rounder(0.1), steps=1, generator=generator())


@pytest.mark.parametrize(("alpha", "rank"), [(16, 64), (16, 8), (8, 8), (32, 2)])
def test_an_adapter_starts_at_the_approximation(alpha: float, rank: int) -> None:
    """``Q x + (alpha / r) B' (A' x)`` with both factors divided by the root of alpha / r; undivided they are off by alpha / r."""
    weight = decaying(96, 80)
    packed = ReALLM(VectorCode(bits=3, dim=2), rank=rank, turns=2, permute="never")(weight)
    a, b = packed.tensors["low_rank.a"], packed.tensors["low_rank.b"]
    lora_a, lora_b = to_lora(a, b, alpha)
    x = torch.randn(7, 80, generator=generator())
    adapted = x @ packed.code().T + alpha / rank * (x @ lora_a.T) @ lora_b.T
    torch.testing.assert_close(adapted, x @ packed.dequantise().T, rtol=1e-5, atol=1e-5)
    if alpha != rank:
        wrong = x @ packed.code().T + alpha / rank * (x @ a.float().T) @ b.float().T
        assert (wrong - adapted).norm() > 1e-2 * adapted.norm()


def test_both_magnitudes() -> None:
    weight = decaying(64, 64)
    method = dict(rank=4, turns=2, permute="never")
    plain = ReALLM(**method)(weight)
    same, restored = (ReALLM(**method, magnitude=m)(weight) for m in ("approximation", "weight"))
    torch.testing.assert_close(same.dequantise(), plain.dequantise(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(restored.dequantise().norm(dim=1), weight.norm(dim=1), rtol=1e-5, atol=1e-6)
    a, b = plain.tensors["low_rank.a"], plain.tensors["low_rank.b"]
    assert torch.equal(same.tensors["magnitude"], row_norm(plain.code(), a, b))
    assert torch.equal(plain.dequantise(), combine(plain.code(), a, b, None))
