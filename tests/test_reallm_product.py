"""The fused product of vector-quantised matrices against decoding and multiplying in float64."""

from __future__ import annotations

import pytest
import torch

from workbench.llm import vq_product
from workbench.llm.formats_vq import product
from workbench.llm.packed import PRODUCTS
from workbench.llm.reallm import ReALLM, VectorCode


@pytest.mark.parametrize(("code", "permute", "p", "q", "kernel"), [
    (VectorCode(2, 4), "never", 64, 96, True), (VectorCode(2, 4), "always", 132, 70, True),
    (VectorCode(3, 2), "always", 100, 64, True), (VectorCode(3, 4), "never", 64, 65, True),
    (VectorCode(2, 4, group=16), "never", 8, 40, True), (VectorCode(2, 4), "never", 62, 64, False),
    (VectorCode(2, 4, "columns"), "never", 64, 64, False), (VectorCode(2, 4, stages=2), "never", 64, 64, False),
    (VectorCode(2, 1), "never", 16, 64, False),
])
def test_equals_the_product_with_the_decoded_matrix(code: VectorCode, permute: str, p: int, q: int, kernel: bool) -> None:
    pytest.importorskip("numba")
    packed = ReALLM(code, permute=permute)(torch.randn(p, q, generator=torch.Generator().manual_seed(0)))
    assert PRODUCTS["vq"] is product
    assert vq_product.fits(packed, 3) is kernel
    for rows in (1, 3, vq_product.FEW + 1):
        x = torch.randn(rows, q, generator=torch.Generator().manual_seed(rows))
        want = x.double() @ packed.code().double().T
        # float32 sums of q terms: q 2^-24 of the sum of magnitudes at most
        slack = q * 2.0**-23 * (x.double().abs() @ packed.code().double().abs().T)
        assert ((product(packed, x).double() - want).abs() <= slack + 1e-12).all()


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    host = pytest.importorskip("workbench.boolean.packed.host")
    packed = ReALLM(permute="always")(torch.randn(130, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    alone = product(packed, x)
    monkeypatch.setattr(host, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(product(packed, x), alone)
