"""The channel between two modules: what is sent is billed to the byte, read as it was meant, and learnt from."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.test_decoupled_vq import labels, normal
from tests.test_state import same
from tracking.codecs import Dense
from tracking.codecs.registry import codec
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError
from tracking.ledger import Ledger
from workbench.datasets.models import build
from workbench.decoupled import Channel, DecoupledTraining, LocalNetwork, OnlineVQ, auxiliary_heads, units
from workbench.decoupled.messages import Labels, size


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
