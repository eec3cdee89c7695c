"""PowerSGD's factors, lattices with a reference, and codebooks."""

from __future__ import annotations

import math
import pickle
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.codecs.lattice import Lattice
from tracking.codecs.power_sgd import PowerSGD
from tracking.codecs.vq import VectorQuantiser, fit_codebook, nearest, send_codebook
from tracking.ledger import Ledger

HEAD = 5  # kind and one dimension


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- PowerSGD --------------------------------------------------------------------------------------------


def test_power_sgd_is_exact_at_the_rank_and_reaches_the_best_approximation():
    low = normal(40, 3) @ normal(3, 30, seed=1)
    power = PowerSGD(3)
    payload = power.of("w").encode(low)
    assert len(payload) == 9 + 5 + 4 * 3 * (40 + 30)
    # one multiplication finds the whole row space; float32 factors of 3-fold products: relative error some 1e-7
    assert float((power.of("w").decode(payload) - low).norm() / low.norm()) < 1e-6
    matrix = normal(40, 30, seed=2)
    u, _, v = torch.linalg.svd(matrix.double())
    matrix = (u[:, :30] * (0.6 ** torch.arange(30.0)) @ v).float()
    best = float((0.36 ** torch.arange(3.0, 30.0)).sum().sqrt())  # Eckart and Young
    errors = [float((power.of("m").decode(power.of("m").encode(matrix)) - matrix).norm()) for _ in range(12)]
    assert errors[0] >= best * (1 - 1e-5)
    assert errors[0] > errors[3] > best * (1 - 1e-5)
    # ratio of neighbouring singular values 0.6: subspace angles shrink by 0.36 an iteration in the square, to nothing
    # after 12
    assert errors[-1] == pytest.approx(best, rel=1e-4)


def test_power_sgd_resumes_its_warm_start_and_sends_small_tensors_densely():
    power, x = PowerSGD(2, rng=4), [normal(12, 5, 3, seed=i) for i in range(3)]
    power.of("conv").encode(x[0])
    again = PowerSGD(2, rng=0)
    again.load_state_dict(pickle.loads(pickle.dumps(power.state_dict())))
    for y in x[1:]:
        assert again.of("conv").encode(y) == power.of("conv").encode(y)
    assert len(power.of("conv").encode(x[0])) == 1 + 12 + 5 + 4 * 2 * (12 + 15)
    for y in (torch.tensor(3.5), normal(7), normal(3, 4), torch.empty(0, 4), torch.empty(2, 0)):
        of = power.of(f"small {tuple(y.shape)}")
        payload = of.encode(y)
        assert len(payload) == 1 + 4 * y.dim() + 5 + 4 * y.numel()
        assert torch.equal(of.decode(payload), y)
    with pytest.raises(ValueError, match="warm start of 'conv' has shape"):
        power.of("conv").encode(normal(12, 16))
    half = PowerSGD(2, "fp16").of("conv")
    assert len(half.encode(x[0])) == 1 + 12 + 5 + 2 * 2 * (12 + 15)
    with pytest.raises(ValueError, match="overflows fp16"):
        half.encode(x[1] * 1e6)


def test_a_zero_gradient_does_not_spoil_the_warm_start():
    power, matrix = PowerSGD(2), normal(20, 2) @ normal(2, 10, seed=1)
    for _ in range(2):
        power.of("w").encode(matrix)
    assert not power.of("w").decode(power.of("w").encode(torch.zeros(20, 10))).any()
    assert float((power.of("w").decode(power.of("w").encode(matrix)) - matrix).norm() / matrix.norm()) < 1e-6


# --- lattice ---------------------------------------------------------------------------------------------


@given(st.integers(2, 16), st.floats(1e-4, 10), st.integers(0, 2**32))
@settings(deadline=None, max_examples=80)
def test_lattice_decodes_within_its_reach_and_wraps_beyond(width, side, seed):
    rng = np.random.default_rng(seed)
    q = Lattice(width, side)
    x = torch.from_numpy(rng.normal(size=50) * 3 * side * 2**width).float()
    away = torch.from_numpy(rng.uniform(-1, 1, 50)) * q.reach() * 0.999
    key = (x.double() + away).float()
    payload = q.encode(x)
    got = q.decode(payload, reference=key)
    rounding = float(x.abs().max() + q.reach()) * 2.0**-23  # float32 sums and results
    assert float((got - x).abs().max()) <= side / 2 + 2 * rounding
    # beyond the reach by a whole period: the answer is off by exactly that period, the stated failure
    period = side * 2**width
    far = q.decode(payload, reference=(x.double() + period).float())
    assert torch.allclose(
        (far - x).double(), torch.full((50,), period, dtype=torch.float64), atol=side / 2 + 8 * rounding
    )


def test_the_stated_reach_is_sharp():
    """A value half a side above its lattice point, and a reference just inside and just outside (2^(b-1) - 1/2) sides
    below.
    """
    q, x = Lattice(4, 1.0), torch.tensor([0.5001])  # round(0.5001) = 1: the point lies 0.4999 above
    for distance, right in ((7.4, True), (7.6, False)):
        got = q.decode(q.encode(x), reference=x - distance)
        assert (abs(float(got - x)) <= 0.5) == right
        assert float(got) in (1.0, -15.0)


def test_a_checked_lattice_notices_a_far_reference():
    for dither, rotate in product((False, True), repeat=2):
        q = Lattice(6, 0.01, dither=dither, rotate=rotate, check=True)
        x = normal(1000)
        payload = q.encode(x)
        got = q.decode(payload, reference=x + 0.05 * normal(1000, seed=1))
        assert float((got - x).norm()) <= math.sqrt(1000) * 0.005 * (1 + 1e-4)
        with pytest.raises(ValueError, match="reference is too far"):
            q.decode(payload, reference=x + normal(1000, seed=1))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 100, 1000])
def test_rotation_is_shared_orthogonal_and_spreads_a_spike(n):
    q = Lattice(10, 1e-3, rotate=True)
    x = normal(n)
    assert len(q.encode(x)) == HEAD + 10 + 8 + math.ceil(n * 10 / 8), "no padding is sent"
    assert torch.allclose(q.decode(q.encode(x), reference=x), x, atol=1e-3 / 2 * math.sqrt(max(n, 1)))
    if (
        n == 64
    ):  # all of a distance of 2 on one value: beyond the reach of 0.51 unless it is spread over 64 values, 0.25 each
        far = x.clone()
        far[3] += 2
        assert torch.allclose(q.decode(q.encode(x), reference=far), x, atol=4e-3)
        plain = Lattice(10, 1e-3)
        assert abs(float(plain.decode(plain.encode(x), reference=far)[3] - x[3])) > 1


def test_lattice_errors_are_readable():
    q, x = Lattice(4, 0.1, check=True), torch.ones(6)
    payload = q.encode(x)
    with pytest.raises(ValueError, match="receiver's reference"):
        q.decode(payload)
    with pytest.raises(ValueError, match="reference has shape"):
        q.decode(payload, reference=torch.ones(5))
    with pytest.raises(ValueError, match="Use a larger side"):
        q.encode(x * 1e30)
    for cut in range(len(payload)):
        with pytest.raises(ValueError, match="Torn or foreign"):
            q.decode(payload[:cut], reference=x)
    for wrong in ({"bits": 0}, {"bits": 33}, {"side": 0.0}, {"side": math.nan}):
        with pytest.raises(ValueError, match="allowed"):
            Lattice(**wrong)


# --- vector quantisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "size", "d", "shared"), [(4, 256, 4, False), (4, 256, 4, True), (1, 5, 16, False), (8, 1, 2, True)]
)
def test_vq_sizes_and_nearest_codewords(groups, size, d, shared):
    book = normal(size, d) if shared else normal(groups, size, d)
    vq, x = VectorQuantiser(book), normal(3, groups * d, 6, 5, seed=1)
    payload = vq.encode(x)
    assert len(payload) == 17 + 4 + math.ceil(3 * 6 * 5 * groups * math.ceil(math.log2(size)) / 8)
    got = vq.decode(payload)
    vectors = x.permute(0, 2, 3, 1).reshape(-1, groups, d)
    for g in range(groups):
        own = book if shared else book[g]
        expected = own[torch.cdist(vectors[:, g].double(), own.double()).argmin(1)]
        assert torch.equal(got.permute(0, 2, 3, 1).reshape(-1, groups, d)[:, g], expected)
    assert torch.equal(vq.decode(vq.encode(got)), got), "codewords are their own nearest"


def test_vq_link_of_eight_groups_is_sixty_four_times_smaller():
    """R = 32 d / log2 K with d = 16, K = 256; 17 + 4 bytes of header and mark come on top."""
    vq = VectorQuantiser(normal(8, 256, 16))
    x = normal(4, 128, 8, 8)
    assert len(vq.encode(x)) - 21 == 4 * x.numel() // 64


def test_a_codebook_is_billed_apart_and_its_version_is_checked():
    ledger, vq = Ledger(), VectorQuantiser(normal(16, 8))
    x = normal(2, 24, 3, 3, seed=1)
    theirs = send_codebook(ledger, vq, "up", "module 2", "fp16")
    got = ledger.send(x, theirs, "up", "module 2", entropy=True)
    assert torch.equal(got, theirs.decode(theirs.encode(x)))
    rows = {r["part"]: r for r in ledger.table()}
    assert rows["codebook"]["bytes"] == 9 + 2 * 16 * 8
    assert rows["payload"]["bytes"] == 17 + 4 + 2 * 9 * 3 * 4 // 8
    assert 0 < rows["payload"]["entropy_bytes"] <= 27
    with pytest.raises(ValueError, match="another codebook"):
        vq.decode(theirs.encode(x))
    with pytest.raises(ValueError, match="has 20 channels; the codebook takes a multiple of 8"):
        vq.encode(normal(2, 20))
    with pytest.raises(ValueError, match="takes 2 times 4"):
        VectorQuantiser(normal(2, 3, 4)).encode(normal(2, 12))
    with pytest.raises(ValueError, match="no axis 1"):
        vq.encode(normal(8))
    with pytest.raises(ValueError, match="Torn or foreign"):
        vq.decode(vq.encode(x)[:-1])
    with pytest.raises(ValueError, match="not finite"):
        vq.encode(x / 0)
    with pytest.raises(ValueError, match=r"allowed: \(K, d\)"):
        VectorQuantiser(normal(5))


def test_k_means_finds_separate_clusters_and_its_error_falls():
    centres = 10 * normal(12, 4)
    points = centres.repeat_interleave(40, 0) + 0.01 * normal(480, 4, seed=1)
    book = fit_codebook(points, 12, rng=3)
    assert torch.allclose(book[torch.cdist(centres, book).argmin(1)], points.reshape(12, 40, 4).mean(1), atol=1e-5)
    cloud = normal(600, 3, seed=2)

    def error(book):
        return float((cloud - book[nearest(cloud[:, None], book[None])[:, 0]]).square().sum(1).mean())

    by_iteration = [error(fit_codebook(cloud, 20, iterations=i)) for i in (0, 1, 2, 4, 8, 25)]
    assert by_iteration == sorted(by_iteration, reverse=True)
    assert by_iteration[-1] < by_iteration[0]
    assert error(fit_codebook(cloud, 600, iterations=3)) < 1e-12
    assert torch.equal(fit_codebook(cloud, 20, rng=7), fit_codebook(cloud, 20, rng=7))
    assert fit_codebook(torch.ones(30, 2), 4).eq(1).all()
    for wrong in (cloud[:5], cloud[0]):
        with pytest.raises(ValueError, match="20 codewords cannot be fitted"):
            fit_codebook(wrong, 20)
