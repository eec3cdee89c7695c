"""Online vector quantisation: the updates against a twin, the errors against k-means, codewords that live where features drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError
from workbench.decoupled import OnlineVQ


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))


def relative_error(x: torch.Tensor, book: torch.Tensor) -> float:
    vq = VectorQuantiser(book)
    return float((vq.decode(vq.encode(x)) - x).square().sum() / x.square().sum())


def learnt(batches, **options) -> OnlineVQ:
    """A quantiser that has learnt from each batch with the codes of its own codebook."""
    vq = OnlineVQ(batches[0].shape[1], **options)
    vq.begin(batches[0])
    for x in batches:
        vq.update(x, VectorQuantiser(vq.codebook).codes(x))
    return vq


# --- the moving averages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "K", "rho"), [(1, 5, 0.9), (3, 4, 0.6), (2, 7, 0.0)])
def test_updates_are_the_papers_moving_averages(groups, K, rho):
    """A twin in float64 NumPy, vector by vector: counts, sums, Laplace smoothing, quotient."""
    d = 4
    vq = OnlineVQ(groups * d, groups, K, decay=rho, revival=0.0, seed=3)
    batches = [normal(5, groups * d, 3, 2, seed=s) for s in range(6)]
    vq.begin(batches[0])
    book = vq.codebook.double().numpy().copy()
    count = np.full((groups, K), 30 / K)
    total = book * count[..., None]
    for x in batches:
        vq.update(x, VectorQuantiser(vq.codebook).codes(x))
        vectors = x.double().permute(0, 2, 3, 1).reshape(-1, groups, d).numpy()
        n, s = np.zeros((groups, K)), np.zeros((groups, K, d))
        for v in vectors:
            for g in range(groups):
                k = np.argmin(((v[g] - book[g]) ** 2).sum(1))
                n[g, k] += 1
                s[g, k] += v[g]
        count, total = rho * count + (1 - rho) * n, rho * total + (1 - rho) * s
        mass = count.sum(1, keepdims=True)
        book = total / ((count + 1e-5) / (mass + K * 1e-5) * mass)[..., None]
        # float32 against float64, over quotients of small counts
        np.testing.assert_allclose(vq.codebook.numpy(), book, rtol=2e-4, atol=1e-5)


def test_a_first_codebook_of_data_is_a_sample_of_it():
    x = normal(8, 12, 3, 3)
    vq = OnlineVQ(12, 3, 20)
    vq.begin(x)
    vectors = vq.vectors(x)
    for g in range(3):
        same_as = (vq.codebook[g][:, None] == vectors[None, :, g]).all(-1)
        assert (same_as.sum(1) == 1).all()
        assert len(set(same_as.int().argmax(1).tolist())) == 20, "distinct"
    assert torch.equal(vq.count, torch.full((3, 20), 72 / 20))
    few = OnlineVQ(12, 3, 200)
    few.begin(x)  # fewer vectors than codewords: with repetition
    assert few.codebook.shape == (3, 200, 4)


def test_its_error_is_that_of_k_means():
    """Batches of one law: after 60 updates within 8 % of scikit-learn's k-means, which sees all data at once.

    A codeword is the mean of about 10 batches' 33 vectors each, which costs 1 / 330 of the error; the rest is for another local
    minimum.
    """
    cluster = pytest.importorskip("sklearn.cluster")
    batches = [normal(4, 4, 10, 10, seed=s).relu() for s in range(60)]
    vq = learnt(batches, groups=1, codewords=12, decay=0.9, seed=1)
    everything = torch.cat([vq.vectors(x)[:, 0] for x in batches]).numpy()
    peer = cluster.KMeans(12, n_init=3, random_state=0).fit(everything[::4])
    fresh = torch.cat([normal(4, 4, 10, 10, seed=s).relu() for s in range(100, 104)])
    theirs = relative_error(fresh, torch.tensor(peer.cluster_centers_, dtype=torch.float32))
    assert 0.95 * theirs < relative_error(fresh, vq.codebook[0]) < 1.08 * theirs


def test_the_error_falls_with_codewords_and_groups():
    batches = [normal(20, 16, 4, 4, seed=s).relu() for s in range(12)]
    by_size = [relative_error(batches[-1], learnt(batches, groups=4, codewords=k).codebook) for k in (1, 4, 16, 64)]
    by_groups = [relative_error(batches[-1], learnt(batches, groups=g, codewords=16).codebook) for g in (1, 2, 4, 8, 16)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_groups == sorted(by_groups, reverse=True)
    assert by_size[-1] < 0.5 * by_size[0]


def drifting_mixture(t: int, centres: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
    rng = np.random.default_rng(t)
    points = centres + t * drift
    return (points[rng.integers(len(centres), size=2048)] + 0.3 * normal(2048, 16, seed=t)).relu()


def test_revival_and_a_start_from_data_keep_codewords_alive_where_features_drift():
    """ReLU of a drifting mixture of 64 Gaussians. A uniform start near zero without revival leaves most of 128 codewords dead."""
    centres, drift = 1.5 * normal(64, 16, seed=1), 0.01 * normal(64, 16, seed=2)
    batches = [drifting_mixture(t, centres, drift) for t in range(40)]
    error, alive = {}, {}
    for start, revival in (("uniform", 0.0), ("uniform", 1.0), ("sample", 1.0)):
        vq = learnt(batches, groups=1, codewords=128, start=start, revival=revival)
        codes = VectorQuantiser(vq.codebook).codes(batches[-1])
        error[start, revival] = relative_error(batches[-1], vq.codebook[0])
        alive[start, revival] = len(codes.unique())
    assert alive["uniform", 0.0] < 0.6 * 128
    assert min(alive["uniform", 1.0], alive["sample", 1.0]) > 0.9 * 128
    assert max(error["uniform", 1.0], error["sample", 1.0]) < 0.9 * error["uniform", 0.0]


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_a_codeword_follows_a_drifting_mean_with_a_lag_of_one_over_one_minus_rho(rho):
    """One codeword, mean moving by v a step: it stays rho / (1 - rho) steps behind the newest batch."""
    v, steps = torch.tensor([0.3, -0.2]), 120
    batches = [(t * v).view(1, 2, 1, 1).expand(50, 2, 1, 1).contiguous() for t in range(steps)]
    vq = learnt(batches, groups=1, codewords=1, decay=rho)
    behind = ((steps - 1) * v - vq.codebook[0, 0]) / v
    torch.testing.assert_close(behind, torch.full((2,), rho / (1 - rho)), rtol=1e-3, atol=1e-3)


def test_draws_depend_on_the_seed_alone():
    batches = [normal(6, 8, 3, 3, seed=s) for s in range(5)]
    before = torch.get_rng_state()
    a, b, c = (learnt(batches, groups=2, codewords=30, seed=s).codebook for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(("options", "words"), [
    ({"groups": 3}, "a divisor of the 8 channels"), ({"groups": 2, "codewords": 0}, "1 <= codewords"),
    ({"groups": 2, "decay": 1.0}, "decay < 1"), ({"groups": 2, "start": "samples"}, "Did you mean 'sample'"),
])
def test_wrong_quantisers_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        OnlineVQ(8, **options)


@pytest.mark.parametrize("shape", [(2, 12, 3, 3), (8,), (0, 8, 3, 3)])
def test_a_batch_of_other_channels_is_refused(shape):
    with pytest.raises(UserError, match=r"Allowed: \(n, 8, ...\)"):
        OnlineVQ(8, 2, 4).begin(torch.zeros(shape))
