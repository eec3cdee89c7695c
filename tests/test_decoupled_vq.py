"""Online vector quantisation and the channel: the updates against a twin, the errors against k-means, the bytes to the byte."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.test_state import same
from tracking.codecs import Dense
from tracking.codecs.registry import codec
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError
from tracking.ledger import Ledger
from workbench.datasets.models import build
from workbench.decoupled import Channel, DecoupledTraining, LocalNetwork, OnlineVQ, auxiliary_heads, units
from workbench.decoupled.messages import Labels, size


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


# --- the channel ------------------------------------------------------------------------------------------


def test_a_plain_channel_carries_exactly_and_bills_to_the_byte():
    ledger = Ledger()
    channel, x, y = Channel("module 2", 10, ledger=ledger), normal(7, 6, 4, 4), labels(7)
    message = channel.send(x, y)
    got, targets = channel.receive(message)
    assert torch.equal(got, x)
    assert torch.equal(targets, y)
    assert size(message) == 4 * x.numel() + 17 + 7
    assert {r["codec"]: r["bytes"] for r in ledger.table()} == {"dense_fp32": 4 * x.numel() + 17, "labels": 7}
    assert torch.equal(channel.through(x), x)
    assert not channel.lossy


@pytest.mark.parametrize(("name", "width"), [("dense_fp16", 2), ("dense_bf16", 2), ("int8", 1)])
def test_other_encodings(name, width):
    channel, x = Channel("module 2", 10, codec=codec(name)), normal(5, 6, 4, 4)
    message = channel.send(x, labels(5))
    got, _ = channel.receive(message)
    assert torch.equal(got, channel.through(x))
    assert channel.lossy
    assert not torch.equal(got, x)
    assert 0 <= len(message[0]) - width * x.numel() <= 17 + 10


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (256, 1), (257, 2), (70_000, 4)])
def test_labels_take_whole_bytes(classes, width):
    y = torch.tensor([0, classes - 1, 1])
    payload = Labels(classes).encode(y)
    assert len(payload) == 3 * width
    assert torch.equal(Labels(classes).decode(payload), y)


@pytest.mark.parametrize("y", [torch.tensor([1, 10]), torch.tensor([-100, 1]), torch.tensor([0.5, 1])])
def test_what_is_no_label_is_not_sent_as_another(y):
    with pytest.raises(UserError, match="whole numbers from 0 to 9"):
        Labels(10).encode(y)


@pytest.mark.parametrize(("K", "groups", "T"), [(256, 2, 4), (16, 4, 1), (5, 8, 3)])
def test_quantised_messages_and_codebooks_are_billed_to_the_byte(K, groups, T):
    """B H² g ceil(log2 K) / 8 bytes of codes, B of labels; 4 K c of a codebook every T sends; 21, 13 bytes of headers and marks."""
    ledger, B, c, H = Ledger(), 6, 16, 5
    channel = Channel("module 2", 10, quantiser=OnlineVQ(c, groups, K), sync_every=T, ledger=ledger)
    for t in range(9):
        channel.send(normal(B, c, H, H, seed=t), labels(B))
    codes = math.ceil(B * H * H * groups * math.ceil(math.log2(K)) / 8)
    syncs = math.ceil(9 / T)
    rows = {(r["codec"], r["part"]): (r["bytes"], r["messages"]) for r in ledger.table()}
    assert rows == {("vq", "payload"): (9 * (codes + 17 + 4), 9), ("labels", "payload"): (9 * B, 9),
                    ("dense_fp32", "codebook"): (syncs * (4 * K * c + 13), syncs)}


def test_the_effective_compression_grows_with_the_time_between_codebooks():
    raw, found = 4 * 8 * 16 * 36, []
    for T in (1, 2, 5, 10):
        ledger = Ledger()
        channel = Channel("m", 10, quantiser=OnlineVQ(16, 2, 16), sync_every=T, ledger=ledger)
        for t in range(20):
            channel.send(normal(8, 16, 6, 6, seed=t), labels(8))
        found.append(20 * raw / ledger.metrics()["comm/up_bytes"])
    assert found == sorted(found)
    assert found[-1] < 32 * 8 / 4  # 32 d / log2 K, were it not for codebooks, labels and headers


def test_the_receiver_reads_what_the_sender_meant():
    """Codes of the codebook sent last, decoded with it, are its nearest codewords; the sender's own codebook moves on meanwhile."""
    channel = Channel("m", 10, quantiser=OnlineVQ(8, 2, 12), sync_every=3)
    for t in range(5):
        x = normal(6, 8, 4, 4, seed=t)
        message = channel.send(x, labels(6))
        channel.arrive(message)
        got, _ = channel.receive(message)
        shared = channel.shared.codebook
        assert torch.equal(got, channel.shared.decode(channel.shared.encode(x)))
        assert bool(message[3]) == (t % 3 == 0)
        assert torch.equal(channel.books[message[2]], shared)
        assert torch.equal(channel.through(x), got)
        assert not torch.equal(channel.quantiser.codebook, shared)


def test_old_codes_are_read_with_the_newest_codebook_or_their_own():
    first, second = normal(6, 8, 4, 4), 2 + normal(6, 8, 4, 4, seed=1)
    read = {}
    for drift in ("latest", "versioned"):
        channel = Channel("m", 10, quantiser=OnlineVQ(8, 2, 12, decay=0.5), drift=drift)
        messages = [channel.send(x, labels(6)) for x in (first, second)]
        channel.arrive(messages[0])
        own = channel.receive(messages[0])[0]
        channel.arrive(messages[1], needed=[messages[0][2]])
        read[drift] = channel.receive(messages[0])[0]
        codes = VectorQuantiser(own.new_zeros(2, 12, 4), strict=False)._read(messages[0][0])[1]
        moved = VectorQuantiser(channel.books[2]).look_up(codes, first.shape)
        assert torch.equal(read[drift], own if drift == "versioned" else moved)
        channel.arrive(channel.send(second, labels(6)))
        assert set(channel.books) == {3}, "nobody needs the others"
    assert not torch.equal(*read.values())


def test_a_frozen_codebook_stays_and_is_not_sent_again():
    ledger = Ledger()
    channel = Channel("m", 10, quantiser=OnlineVQ(8, 2, 6), sync_every=2, freeze_after=3, ledger=ledger)
    books = []
    for t in range(10):
        channel.send(normal(6, 8, 4, 4, seed=t), labels(6))
        books.append(channel.quantiser.codebook.clone())
    assert [torch.equal(a, b) for a, b in pairwise(books)] == [False, False] + [True] * 7
    assert torch.equal(channel.shared.codebook, books[-1])
    assert next(r["messages"] for r in ledger.table() if r["part"] == "codebook") == 3  # at sends 0, 2 and 4


def test_a_module_that_is_done_teaches_its_codebook_nothing():
    channel = Channel("m", 10, quantiser=OnlineVQ(8, 2, 6))
    channel.send(normal(6, 8, 4, 4), labels(6))
    book = channel.quantiser.codebook.clone()
    channel.send(normal(6, 8, 4, 4, seed=1), labels(6), learn=False)
    assert torch.equal(channel.quantiser.codebook, book)


def test_figures_of_the_quantiser():
    channel = Channel("m", 10, quantiser=OnlineVQ(4, 1, 4, revival=0.0), sync_every=100)
    assert channel.figures() == {}
    corners = torch.eye(4).repeat(6, 1)
    x = torch.cat([corners, corners[:4]]).view(7, 4, 4).permute(0, 2, 1).reshape(7, 4, 2, 2)
    channel.quantiser.begin(x)
    channel.quantiser.codebook = torch.stack([torch.eye(4)]) * torch.tensor([1.0, 1, 1, 1])
    channel.quantiser.codebook[0, 3] = 9  # the fourth corner is served by another codeword, at squared distance 2
    channel.send(x, labels(7))
    figures = channel.figures()
    assert figures["error"] == pytest.approx(2 * 7 / 28)
    assert figures["idle"] == 1 / 4
    used = np.array([14, 7, 7]) / 28
    assert figures["perplexity"] == pytest.approx(math.exp(-(used * np.log(used)).sum()))
    assert channel.figures() == {}


def test_looking_through_a_channel_changes_nothing():
    ledger = Ledger()
    channel, x = Channel("m", 10, quantiser=OnlineVQ(8, 2, 6), ledger=ledger), normal(6, 8, 4, 4)
    assert channel.through(x) is x
    channel.send(x, labels(6))
    state, billed = copy.deepcopy(channel.state_dict()), ledger.metrics()
    channel.through(normal(3, 8, 4, 4, seed=4))
    assert same(channel.state_dict(), state)
    assert ledger.metrics() == billed


@pytest.mark.parametrize("drift", ["latest", "versioned"])
def test_a_channel_goes_on_from_its_state(drift):
    def make():
        return Channel("m", 10, quantiser=OnlineVQ(8, 2, 20, seed=5), sync_every=3, drift=drift)

    channel, other = make(), make()
    for t in range(4):
        channel.pass_on(normal(6, 8, 4, 4, seed=t), labels(6))
    other.load_state_dict(copy.deepcopy(channel.state_dict()))
    for t in range(4, 9):
        x = normal(6, 8, 4, 4, seed=t)
        assert channel.send(x, labels(6)) == other.send(x, labels(6))
    assert same(channel.state_dict(), other.state_dict())
    assert channel.figures() == other.figures()


def test_training_is_unchanged_by_a_quantiser_that_loses_nothing():
    """A codeword for every vector of a batch, made anew for each: local training gives the same weights, to the bit."""
    trained = []
    for quantised in (False, True):
        bodies = units(build("dgl_cnn4", (1, 8, 8), 10, 0.1, torch.Generator().manual_seed(0)))
        heads = auxiliary_heads(bodies, "linear", torch.zeros(2, 1, 8, 8), torch.Generator().manual_seed(1))
        training = DecoupledTraining(LocalNetwork(bodies, heads), lambda p: torch.optim.SGD(p, lr=0.1))

        def hand_over(j, x, y, quantised=quantised):
            return Channel("m", 10, quantiser=OnlineVQ(x.shape[1], 1, x[:, 0].numel())).pass_on(x, y) if quantised else (x, y)

        losses = [training.step(normal(8, 1, 8, 8, seed=t), labels(8, t), hand_over) for t in range(3)]
        trained.append([*(v for step in losses for v in step), *training.network.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_a_codebook_is_rounded_by_nothing_on_its_way():
    book = normal(3, 5, 2)
    assert torch.equal(Dense().decode(Dense().encode(book)), book)
    loose, strict = VectorQuantiser(book + 1, strict=False), VectorQuantiser(book + 1)
    x = normal(2, 6, 3, 3)
    payload = VectorQuantiser(book).encode(x)
    torch.testing.assert_close(loose.decode(payload), VectorQuantiser(book).decode(payload) + 1)
    with pytest.raises(ValueError, match="another codebook"):
        strict.decode(payload)
