"""Double-quantised block scales against a NumPy formula, with the shapes that do not divide; NormalFloat levels as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.llm.vq import block_scales, normal_float
from workbench.llm.vq.normal_float import nearest_level
from workbench.llm.vq.scales import divide


def np_scales(w: np.ndarray, group: int) -> np.ndarray:
    """Scale of each weight: group by group, then run by run of 256 scales."""
    p, q = w.shape
    exact = np.array([np.abs(w[i, j:j + group]).max() for i in range(p) for j in range(0, q, group)], np.float32)
    offset = exact.min()
    stored = np.empty_like(exact)
    for run in range(0, len(exact), 256):
        above = exact[run:run + 256] - offset
        top = above.max()
        codes = np.round(255 * above / top) if top > 0 else np.zeros_like(above)
        if offset == 0:
            codes = np.where((above > 0) & (codes == 0), 1, codes)
        stored[run:run + 256] = offset + top * (codes.astype(np.float32) / 255)
    return np.repeat(stored.reshape(p, -1), group, 1)[:, :q]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from([1, 16, 64, 100]), st.integers(0, 2**31), st.booleans())
def test_values_equal_the_formula(p: int, q: int, group: int, seed: int, sparse: bool) -> None:
    weight = torch.randn(p, q, generator=torch.Generator().manual_seed(seed))
    weight = weight * (weight > 1.5) if sparse else weight
    got = block_scales(weight, group).dense(p, q)
    np.testing.assert_allclose(got.numpy(), np_scales(weight.numpy(), group), rtol=1e-6, atol=0)  # one rounding of a float32 each way
    assert torch.isfinite(divide(weight, got)).all()
    assert ((got > 0) | (weight == 0)).all()


@pytest.mark.parametrize(("p", "q"), [(576, 576), (192, 576), (1536, 576), (576, 1536), (64, 64)])
def test_bytes_where_the_list_of_scales_does_not_fill_its_runs(p: int, q: int) -> None:
    """576 x 576 has 20.25 runs of 256 scales of 64 weights: one byte a scale, four a run begun, four for the offset."""
    scales = block_scales(torch.randn(p, q, generator=torch.Generator().manual_seed(0)))
    assert scales.codes.nbytes == p * q // 64
    assert scales.tops.nbytes == 4 * -(-p * q // (64 * 256))
    assert scales.offset.nbytes == 4


def test_error_of_a_scale_is_half_a_step() -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    exact = weight.view(256, -1, 64).abs().amax(2).flatten()
    scales = block_scales(weight)
    step = scales.tops.repeat_interleave(256)[:1024] / 255
    assert ((scales.values() - exact).abs() <= step / 2 * (1 + 1e-5)).all()


def test_a_matrix_of_zeros() -> None:
    scales = block_scales(torch.zeros(3, 70))
    assert scales.codes.numel() == 6
    assert not divide(torch.zeros(3, 70), scales.dense(3, 70)).any()


def test_nf4_is_the_published_table() -> None:
    """Dettmers et al. (2023), appendix E."""
    table = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
             -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
             0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    np.testing.assert_allclose(normal_float(4).numpy(), table, atol=2e-7)  # the table has the digits of float32


@pytest.mark.parametrize("bits", range(1, 9))
def test_normal_float_levels(bits: int) -> None:
    levels = normal_float(bits)
    assert levels.shape == (2**bits,)
    assert (levels.diff() > 0).all()
    assert levels[-1] == 1
    assert (levels == 0).sum() == 1
    assert int((levels <= 0).sum()) == 2 ** (bits - 1)
    assert bits == 1 or levels[0] == pytest.approx(-1, abs=1e-6)
    values = torch.linspace(-1.2, 1.2, 999)
    far = (values[:, None] - levels).abs()
    got = nearest_level(values, levels)
    assert (far.gather(1, got[:, None])[:, 0] <= far.min(1).values + 1e-6).all()


def test_two_bits_are_lopsided() -> None:
    np.testing.assert_allclose(normal_float(2).numpy(), [-1, 0, 0.3379, 1], atol=1e-4)
    with pytest.raises(UserError, match="1 to 8 bits"):
        normal_float(9)
