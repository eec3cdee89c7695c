"""Payloads that stay on a device, here on the processor: byte for byte the codecs' own; runs with and without them are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_decoupled_vq import labels, normal
from tests.test_dgl_methods import Ran, equal
from tracking.codecs import bits
from tracking.codecs.registry import codec
from workbench.decoupled import Channel, OnlineVQ, messages, vq_codec
from workbench.decoupled.messages import Labels, size
from workbench.decoupled.parcels import host, kind_of, nbytes, opened, pack_bits, unpack_bits
from workbench.decoupled.vq_codec import LinkQuantiser, tally

ENCODINGS = ("dense_fp32", "dense_fp16", "dense_bf16", "int8", "int4")


@pytest.fixture
def staying(monkeypatch):
    """As if every tensor were on a GPU."""
    for module in (messages, vq_codec):
        monkeypatch.setattr(module, "stays", lambda value: isinstance(value, torch.Tensor))


def joined(payload) -> bytes:
    return b"".join(piece.tobytes() for piece in host(payload))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 16), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_bits_are_those_of_the_codecs(width, count, seed):
    codes = np.random.default_rng(seed).integers(2**width, size=count).astype(np.uint32)
    packed = pack_bits(torch.from_numpy(codes.astype(np.int64)), width)
    assert packed.numpy().tobytes() == bits.pack(codes, width).tobytes()
    assert unpack_bits(packed, width, count).tolist() == codes.tolist()


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("x", [normal(3, 5, 2, 3), normal(1), torch.zeros(2, 3), torch.empty(0, 4), normal(1, 2, 1, 1, 1, 1, 1, 3),
                               normal(4, 4).T, 1e30 * normal(6), 1e-44 * normal(50)], ids=str)
def test_a_parcel_is_the_payload(name, x):
    """Headers of any number of sides, views, subnormal scales and great values included; what is opened is the same on every way."""
    ours, x = codec(name), x.clamp(-6e4, 6e4) if name == "dense_fp16" else x
    kind, payload = kind_of(ours), ours.encode(x)
    parcel = kind.pack(x)
    assert joined(parcel) == payload
    assert nbytes(parcel) == len(payload)
    got, want = opened(ours, kind, parcel, "cpu"), ours.decode(payload)
    assert torch.equal(got, want)
    assert got.shape == want.shape
    if x.numel():
        before = joined(parcel)
        got.add_(1)  # the receiver's own memory
        assert joined(parcel) == before


@pytest.mark.parametrize(("name", "value"), [("dense_fp16", 1e5), ("dense_bf16", 3.4e38), ("int8", torch.nan), ("int4", torch.inf)])
def test_what_a_codec_refuses_is_refused(name, value):
    with pytest.raises(ValueError, match=r"overflows|not finite"):
        kind_of(codec(name)).pack(torch.tensor([0.0, value]))


@pytest.mark.parametrize("classes", [10, 300, 70_000])
def test_labels_as_parcels(classes):
    y, kind = torch.tensor([0, classes - 1, 7]), Labels(classes)
    assert joined(kind.pack(y)) == kind.encode(y)
    assert torch.equal(kind.unpack(*kind.pack(y)), y)


@pytest.mark.parametrize("words", [1, 2, 5, 64, 256, 300])
def test_quantised_parcels(words):
    """Codes by large products, in parts, are those of the kernels or as near; bytes and what they stand for are the same."""
    x, vq = normal(6, 12, 5, 5), LinkQuantiser(normal(3, words, 4, seed=1))
    codes = vq.codes(x)
    assert torch.equal(vq._sought(x), codes), "random vectors have no ties"
    parcel = vq.pack(x)
    assert joined(parcel) == vq.encode(x)
    assert torch.equal(vq.unpack(*parcel), vq.decode(vq.encode(x)))
    with pytest.raises(ValueError, match="another codebook"):
        LinkQuantiser(normal(3, words, 4, seed=2)).unpack(*parcel)


def test_scores_are_held_a_part_at_a_time(monkeypatch):
    x, vq = normal(7, 8, 3, 3), LinkQuantiser(normal(2, 9, 4, seed=1))
    whole = vq._sought(x)
    monkeypatch.setattr(vq_codec, "SCORES", 2 * 9 * 9 * 2)  # two samples' worth
    assert torch.equal(vq._sought(x), whole)
    assert vq._sought(x[:0]).shape == (0, 2)


def test_counts_without_a_wait_are_the_same(staying):
    x, book = normal(6, 8, 4, 4), normal(2, 5, 4, seed=1)
    codes = LinkQuantiser(book).codes(x)
    found, plain = tally(x, codes, book, "torch"), tally(x, codes, book, "auto")
    assert isinstance(found.error, torch.Tensor)
    assert torch.equal(found.counts, plain.counts)
    torch.testing.assert_close(found.sums, plain.sums)  # float32 sums in two orders
    assert float(found.error) == pytest.approx(float(plain.error), rel=1e-5)


def test_a_channel_keeps_what_is_sent_where_it_is(staying):
    link, x, y = Channel("m", 10, quantiser=OnlineVQ(8, 2, 12), sync_every=2), normal(6, 8, 4, 4), labels(6)
    message = link.send(x, y)
    assert isinstance(message[0], tuple)
    assert isinstance(message[1], tuple)
    assert sum(r["bytes"] for r in link.ledger.table()) == size(message)
    link.arrive(message)
    got, targets = link.receive(message)
    assert torch.equal(got, link.through(x))
    assert torch.equal(targets, y)
    x[0, 0, 0, 0] = torch.nan
    link.send(x, y)
    with pytest.raises(ValueError, match="not finite"):
        link.figures()


@pytest.mark.parametrize(("method", "params"), [
    ("dgl", {}), ("decoupled_backprop", {}), ("ddg", {}), ("dgl", {"codec": "int8"}),
    ("async_dgl_vq", {"codewords": 16, "group_size": 1, "sync_every": 3, "buffer": 3, "schedule": "events"}),
], ids=str)
def test_a_run_does_not_care_where_its_messages_are(method, params, monkeypatch):
    """Weights, bytes and figures; the quantiser's sums are made in another order, so its run agrees up to rounding."""
    options = {"stop": 12 if method == "async_dgl_vq" else 6, "report_every": 3} | params
    plain = Ran(method, **options)
    for module in (messages, vq_codec):
        monkeypatch.setattr(module, "stays", lambda value: isinstance(value, torch.Tensor))
    ours = Ran(method, **options)
    if method == "async_dgl_vq":
        for a, b in zip(ours.weights(), plain.weights(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    else:
        assert equal(ours.weights(), plain.weights())
    assert ours.ctx.ledger.table() == plain.ctx.ledger.table()
    assert ours.last == pytest.approx(plain.last, rel=1e-3)
