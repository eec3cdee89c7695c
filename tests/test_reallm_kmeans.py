"""k-means of short vectors: scikit-learn, a NumPy twin, brute force, and what must not change the result."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.llm.vq import assign, kmeans
from workbench.llm.vq.sums import sums_by_code, sums_in_any_order

BACKENDS = ["torch", *(["numba"] if importlib.util.find_spec("numba") else [])]
each = pytest.mark.parametrize("backend", BACKENDS)


def vectors(n: int, d: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) * (1 + torch.rand(n, 1, generator=g))


def np_error(x: torch.Tensor, book: torch.Tensor, codes: torch.Tensor, w: torch.Tensor | None = None) -> float:
    square = (x.double() - book.double()[codes]).square()
    return float((square if w is None else square * w.double()).sum())


def np_lloyd(x: np.ndarray, w: np.ndarray, book: np.ndarray, steps: int) -> np.ndarray:
    """Lloyd's algorithm with a weight for each coordinate, in float64 and by the whole distance matrix."""
    for _ in range(steps):
        codes = (w[:, None] * (x[:, None] - book[None]) ** 2).sum(2).argmin(1)
        for k in range(len(book)):
            mine = codes == k
            if mine.any():
                mass = w[mine].sum(0)
                book[k] = np.where(mass > 0, (w[mine] * x[mine]).sum(0) / np.where(mass > 0, mass, 1), book[k])
    return book


@each
@pytest.mark.parametrize(("d", "size"), [(1, 4), (2, 16), (4, 64), (8, 32)])
def test_objective_against_scikit_learn_from_the_same_start(backend: str, d: int, size: int) -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    x = vectors(3000, d)
    start = x[:size].clone()
    peer = sklearn.KMeans(size, init=start.numpy(), n_init=1, max_iter=30, tol=0, algorithm="lloyd").fit(x.numpy())
    ours = kmeans(x, size, start=start, iterations=30, tolerance=0, backend=backend)
    # both make the same 30 Lloyd steps; float32 against scikit-learn's own float32 sums
    assert ours.error <= peer.inertia_ * (1 + 1e-5)
    assert ours.error == pytest.approx(np_error(x, ours.codebook, ours.codes), rel=1e-5)


@each
@pytest.mark.parametrize(("size", "distortion"), [(2, 0.36338), (4, 0.11748), (8, 0.03454)])
def test_scalar_codebooks_of_a_gaussian(backend: str, size: int, distortion: float) -> None:
    """Max (1960), table I: the least mean squared errors of quantisers with so many levels. The vectors are the Gaussian's quantiles."""
    x = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]
    ours = kmeans(x, size, iterations=300, tolerance=1e-8, backend=backend)
    assert ours.error / len(x) == pytest.approx(distortion, rel=3e-3)  # the quantiles end at 4.1, and cut some 1e-3 of the error off


@each
@pytest.mark.parametrize("d", [1, 2, 4, 5])
def test_weights_of_coordinates_against_numpy(backend: str, d: int) -> None:
    x, g = vectors(700, d), torch.Generator().manual_seed(3)
    w = torch.rand(700, d, generator=g) ** 3
    w[torch.rand(700, d, generator=g) < 0.1] = 0
    ours = kmeans(x, 8, weights=w, start=x[:8], iterations=6, tolerance=0, backend=backend)
    want = np_lloyd(x.double().numpy(), w.double().numpy(), x[:8].double().numpy().copy(), 6)
    np.testing.assert_allclose(ours.codebook.numpy(), want, rtol=2e-4, atol=2e-5)  # float32 scores: a vector on an edge may go either way
    assert ours.error == pytest.approx(np_error(x, ours.codebook, ours.codes, w), rel=1e-5)


@each
def test_whole_weights_are_repeated_vectors(backend: str) -> None:
    x = vectors(400, 3)
    times = torch.randint(1, 5, (400,), generator=torch.Generator().manual_seed(1))
    once = kmeans(x, 10, weights=times.float(), start=x[:10], iterations=5, tolerance=0, backend=backend)
    often = kmeans(x.repeat_interleave(times, 0), 10, start=x[:10], iterations=5, tolerance=0, backend=backend)
    torch.testing.assert_close(once.codebook, often.codebook, rtol=1e-4, atol=1e-5)
    assert once.error == pytest.approx(often.error, rel=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_assignment_is_nearest(n: int, d: int, size: int, seed: int, weighted: bool) -> None:
    x, book = vectors(n, d, seed), vectors(size, d, seed + 1)
    w = torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) if weighted else torch.ones(n, d)
    far = (w[:, None] * (x[:, None] - book[None]).square()).double().sum(2)
    for backend in BACKENDS:
        codes, error = assign(x, book, w if weighted else None, backend)
        assert codes.dtype == torch.int64
        # float32 scores are off by some 1e-7 of |x|^2 + |c|^2, a few hundred at most here
        assert (far.gather(1, codes[:, None])[:, 0] <= far.min(1).values + 1e-4).all()
        assert error == pytest.approx(float(far.gather(1, codes[:, None]).sum()), rel=1e-4, abs=1e-4)


@each
@pytest.mark.parametrize("weighted", [False, True])
def test_error_never_grows(backend: str, weighted: bool) -> None:
    x = vectors(2000, 4)
    w = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)) if weighted else None
    errors = [kmeans(x, 40, weights=w, start=x[:40], iterations=i, tolerance=0, backend=backend).error for i in range(12)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@each
def test_idle_codewords_are_put_to_use(backend: str) -> None:
    x = vectors(500, 2)
    start = torch.cat([x[:4], torch.full((12, 2), 1e3)])  # twelve that nobody will ever be nearest to
    ours = kmeans(x, 16, start=start, iterations=30, backend=backend)
    assert len(ours.codes.unique()) == 16
    assert ours.error < 0.5 * kmeans(x, 4, start=x[:4], iterations=30, backend=backend).error


@each
def test_more_codewords_than_vectors(backend: str) -> None:
    x = torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    ours = kmeans(x, 8, backend=backend)
    assert ours.codebook.shape == (8, 1)
    assert ours.error == 0
    assert torch.equal(ours.codebook[ours.codes], x)


def test_backends_agree() -> None:
    if len(BACKENDS) == 1:
        pytest.skip("numba is not installed")
    x = vectors(5000, 4)
    plain, fast = (kmeans(x, 64, backend=b) for b in BACKENDS)
    assert plain.error == pytest.approx(fast.error, rel=1e-3)  # ties in float32 part the ways in the end
    from workbench.llm.vq import _host, _plain

    draws = torch.rand(64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = x.T.contiguous()
    w = torch.rand(5000, generator=torch.Generator().manual_seed(2))
    seeds = [module.seeds(rows, w, draws) for module in (_host, _plain)]
    assert (seeds[0] == seeds[1]).all(1).float().mean() > 0.9  # sums of float32 in another order: a draw at an edge may differ


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    if "numba" not in BACKENDS:
        pytest.skip("numba is not installed")
    from workbench.boolean.packed import host

    monkeypatch.setattr(host, "GRAIN", 1)
    x, results = vectors(30_000, 4), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(kmeans(x, 32, iterations=4, backend="numba"))
    assert all(torch.equal(results[0].codebook, r.codebook) and torch.equal(results[0].codes, r.codes) for r in results)


def test_a_sample_and_two_whole_steps_come_close_to_all() -> None:
    x = vectors(60_000, 4)
    whole = kmeans(x, 64, iterations=30)
    sampled = kmeans(x, 64, iterations=30, sample=8_000)
    assert sampled.iterations <= 32
    # a codebook of K d = 256 numbers fitted to 8,000 vectors is some 256 / 8,000 above the best; two whole steps bring most of it back
    assert sampled.error < 1.02 * whole.error
    assert sampled.codes.shape == (60_000,)


def test_half_rounds_the_codebook_before_the_last_assignment() -> None:
    x = vectors(2000, 2)
    ours = kmeans(x, 16, half=True)
    assert torch.equal(ours.codebook, ours.codebook.half().float())
    assert ours.error == pytest.approx(np_error(x, ours.codebook, ours.codes), rel=1e-5)


def test_one_seed_one_result() -> None:
    x = vectors(3000, 2)
    first, again, other = (kmeans(x, 16, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.codebook, again.codebook)
    assert not torch.equal(first.codebook, other.codebook)
    before = torch.get_rng_state()
    kmeans(x, 16)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("x", "kwargs", "message"), [
    (torch.zeros(4), {}, "vectors"), (torch.zeros(0, 2), {}, "vectors"), (torch.tensor([[float("nan")]]), {}, "not finite"),
    (torch.zeros(4, 2), {"weights": torch.zeros(3)}, "do not fit"), (torch.zeros(4, 2), {"weights": -torch.ones(4)}, "not negative"),
    (torch.zeros(4, 2), {"start": torch.zeros(3, 2)}, r"\(2, 2\) is due"), (torch.zeros(4, 2), {"start": "random"}, "start"),
    (torch.zeros(4, 2), {"backend": "numbs"}, "Did you mean 'numba'"),
])
def test_what_is_refused(x: torch.Tensor, kwargs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kmeans(x, 2, **kwargs)


def test_without_numba_plain_torch_takes_over() -> None:
    program = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import torch
from tracking.errors import UserError
from workbench.llm.vq import kmeans, order_columns
x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
assert kmeans(x, 4).error < 0.5 * float(x.square().sum())
assert order_columns(x).shape == (5, 2)
try:
    kmeans(x, 4, backend="numba")
except UserError as error:
    assert "pip install numba" in str(error), error
else:
    raise SystemExit("numba was not missed")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_processor() -> None:
    from workbench.llm.reallm import ReALLM
    from workbench.llm.vq import order_columns

    x = vectors(20_000, 4)
    cpu, cuda = kmeans(x, 64, start=x[:64], iterations=5), kmeans(x.cuda(), 64, start=x[:64].cuda(), iterations=5)
    assert cuda.codebook.is_cuda
    assert cuda.error == pytest.approx(cpu.error, rel=1e-3)  # float32 scores in another order part the ways at ties
    weight = torch.randn(128, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order_columns(weight.cuda()).cpu(), order_columns(weight))
    there = ReALLM(rank=4, turns=2, permute="always")(weight.cuda())
    here = ReALLM(rank=4, turns=2, permute="always")(weight)
    assert there.bits() == here.bits()
    assert (there.dequantise().cpu() - weight).norm() == pytest.approx((here.dequantise() - weight).norm(), rel=0.02)


@given(st.integers(1, 400), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
@settings(max_examples=40, deadline=None)
def test_sums_of_whole_numbers_are_the_sums_and_know_no_order(n: int, d: int, seed: int, size: float) -> None:
    x, g = vectors(n, d, seed) * size, torch.Generator().manual_seed(seed)
    codes = torch.randint(7, (n,), generator=g)
    found, expected = sums_in_any_order(x, codes, 7), sums_by_code(x, codes, 7)
    # each of n terms is rounded to 62 - log2 n bits below the largest; the other sum rounds n times, to 53 bits
    torch.testing.assert_close(found, expected, rtol=0, atol=n * float(x.abs().max()) * (2.0 ** (n.bit_length() - 62) + n * 2.0**-53))
    order = torch.randperm(n, generator=g)
    assert torch.equal(sums_in_any_order(x[order], codes[order], 7), found)
