"""Greedy column orders against a Python loop, whatever the columns are; and the way back."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.llm.vq import order_columns
from workbench.llm.vq.ordering import inverse, permute, smoothness

BACKENDS = ["torch", *(["numba"] if importlib.util.find_spec("numba") else [])]


def greedy(weight: torch.Tensor, rows: int = 64) -> np.ndarray:
    """The definition: of the columns left, the nearest to the mean of the last 16 placed; the lowest number of equals."""
    w = weight.double().numpy()
    orders = []
    for top in range(0, len(w), rows):
        block = w[top:top + rows]
        order, left = [0], list(range(1, block.shape[1]))
        while left:
            mean = block[:, order[-16:]].mean(1)
            far = ((block[:, left] - mean[:, None]) ** 2).sum(0)
            chosen = int(np.flatnonzero(far <= far.min() * (1 + 1e-12))[0])
            order.append(left.pop(chosen))
        orders.append(order)
    return np.array(orders)


@settings(max_examples=25)
@given(st.integers(1, 80), st.integers(1, 150), st.integers(1, 64), st.integers(0, 2**31))
def test_equals_the_greedy_loop(p: int, q: int, rows: int, seed: int) -> None:
    weight = torch.randn(p, q, generator=torch.Generator().manual_seed(seed))
    want = greedy(weight, rows)
    for backend in BACKENDS:
        np.testing.assert_array_equal(order_columns(weight, rows, backend).numpy(), want, backend)


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 120), st.integers(1, 3), st.integers(0, 2**31))
def test_duplicates_and_coarse_values_stay_a_permutation(p: int, q: int, levels: int, seed: int) -> None:
    """Weights on a grid of few values make equal columns and equal distances, decided by the columns' numbers."""
    weight = torch.randint(levels, (p, q), generator=torch.Generator().manual_seed(seed)).float() * 0.25
    want = greedy(weight)
    for backend in BACKENDS:
        order = order_columns(weight, backend=backend)
        assert torch.equal(order.sort(1).values, torch.arange(q).expand_as(order))
        assert torch.equal(permute(permute(weight, order), inverse(order)), weight)
        np.testing.assert_array_equal(order.numpy(), want, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_that_differ_below_float32_distances(backend: str) -> None:
    """A hundred columns within 1e-6 of each other, far from zero: float32 distances to their mean are noise."""
    g = torch.Generator().manual_seed(0)
    weight = 100 + torch.randn(64, 1, generator=g) + 1e-4 * torch.randn(64, 100, generator=g)
    np.testing.assert_array_equal(order_columns(weight, backend=backend).numpy(), greedy(weight))


def test_real_widths() -> None:
    """The rows of 576 and 192 columns of a small model, and a block that is not full."""
    for p, q in ((192, 576), (96, 192)):
        weight = torch.randn(p, q, generator=torch.Generator().manual_seed(q))
        order = order_columns(weight)
        assert order.shape == (-(-p // 64), q)
        np.testing.assert_array_equal(order[-1:].numpy(), greedy(weight[(len(order) - 1) * 64:]))


def test_input_is_left_alone_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    before, one = weight.clone(), order_columns(weight)
    assert torch.equal(weight, before)
    if "numba" in BACKENDS:
        from workbench.boolean.packed import host

        monkeypatch.setattr(host, "GRAIN", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(order_columns(weight), one)


def test_order_finds_a_hidden_path() -> None:
    """Columns drawn along a curve and shuffled come back as neighbours: the picture is smooth again."""
    t = torch.linspace(0, 3, 200)
    curve = torch.cos(torch.arange(64)[:, None] * 0.3 + 2 * t)
    weight = curve[:, torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert smoothness(weight) == pytest.approx(2**0.5, rel=0.1)
    assert smoothness(permute(weight, order_columns(weight))) < 0.4
    assert smoothness(torch.zeros(4, 4)) == 0


def test_what_is_refused() -> None:
    for weight in (torch.tensor([[1.0, float("inf")]]), torch.zeros(3), torch.zeros(0, 2)):
        with pytest.raises(UserError, match="finite matrix"):
            order_columns(weight)
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        order_columns(torch.zeros(2, 2), backend="torsh")
