"""Messages of quantised models: level numbers in real bytes, without bias, exact where weights have settled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.federated_helpers import Federation
from tracking.codecs import Dense
from tracking.codecs.levels import Levels, index_width
from workbench.methods.federated._exchange import Layout, LevelNumbers, Part
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.lowbit._levels import LEVELS, nearest_level, sawb_scale

PARTS = [Part(40, True), Part(5, False), Part(600, True), Part(3, False)]
P = 648


def vector(seed: int) -> torch.Tensor:
    return torch.randn(P, generator=torch.Generator().manual_seed(seed)) * 0.3


def settled(start: torch.Tensor, weights: str) -> torch.Tensor:
    """A model whose quantised parts lie on the levels that its receiver of ``start`` trains with."""
    out = []
    for part, w in zip(PARTS, start.split([p.size for p in PARTS]), strict=True):
        s = sawb_scale(w, weights)
        out.append(nearest_level(w / s, torch.tensor(LEVELS[weights])) * s if part.quantised else w + 1)
    return torch.cat(out)


@pytest.mark.parametrize("weights", LEVELS)
def test_weights_on_levels_arrive_as_they_are_in_a_few_bits_each(weights):
    start = vector(0)
    end = settled(start, weights)
    codec = LevelNumbers(weights, Layout(PARTS), start, (1, 2))
    payload = codec.encode(end)
    torch.testing.assert_close(codec.decode(payload), end, rtol=1e-6, atol=1e-7)  # a level is a float32 product
    bits = index_width(len(LEVELS[weights]))
    tables = 2 * (4 + 5 + 2 + 4 * len(LEVELS[weights]))  # length, header, count, values
    most = tables + -(-40 * bits // 8) + -(-600 * bits // 8) + 4 + len(Dense().encode(torch.zeros(8)))
    assert len(payload) <= most
    assert len(payload) < 0.27 * 4 * P


@pytest.mark.parametrize("weights", ["binary", "2bit", "4bit16"])
def test_weights_between_levels_arrive_without_bias(weights):
    """Mean over 300 messages, within 5 standard errors in each coordinate; weights beyond the levels included."""
    start, end = vector(0), vector(1)
    codecs = [LevelNumbers(weights, Layout(PARTS), start, (9, i)) for i in range(300)]
    got = torch.stack([codec.decode(codec.encode(end)) for codec in codecs])
    at = 0
    for part in PARTS:
        own = slice(at, at + part.size)
        at += part.size
        if not part.quantised:
            assert torch.equal(got[:, own], end[own].expand(300, -1))
            continue
        drawn, wanted = got[:, own], end[own]
        assert drawn.unique().numel() <= len(LEVELS[weights])
        gap = drawn.unique().diff().max()
        # next to a level the other one is drawn a few times or never: Poisson, not normal
        assert ((drawn.mean(0) - wanted).abs() <= 5 * drawn.std(0) / 300**0.5 + 12 * gap / 300).all()
        assert (drawn - wanted).abs().max() <= gap * (1 + 1e-4), "to one of the two levels around it"


def test_fixed_scales_are_kept_to():
    start, end = vector(0), vector(1).clamp(-0.2, 0.2)
    codec = LevelNumbers("4bit", Layout(PARTS, (0.05, 0.04)), start, (1, 2))
    got = codec.decode(codec.encode(end)).split([p.size for p in PARTS])
    for part, scale in ((got[0], 0.05), (got[2], 0.04)):
        torch.testing.assert_close(part / scale, (part / scale).round(), rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_layout_goes_there_and_back(sizes, seed):
    parts = [Part(*s) for s in sizes]
    n = sum(p.size for p in parts)
    w = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    codec = LevelNumbers("4bit", Layout(parts), w, (seed, 0))
    got = codec.decode(codec.encode(w))
    assert got.shape == w.shape
    for part, a, b in zip(parts, got.split([p.size for p in parts]), w.split([p.size for p in parts]), strict=True):
        reach = 0.0 if not part.quantised else float(torch.maximum(sawb_scale(b, "4bit"), b.abs().max() / 8))
        assert (a - b).abs().max() <= reach * (1 + 1e-5)


def test_a_federation_pays_for_level_numbers_and_uses_what_they_decode_to(monkeypatch):
    f = Federation(FAVASTraining, local="askewsgd", quantised_layers="all", upload="levels", horizon=200.0)
    used, inner = [], f.state.aggregator.aggregate
    monkeypatch.setattr(f.state.aggregator, "aggregate",
                        lambda server, start, end, work: used.append(end) or inner(server, start, end, work))
    f.run()
    # per client and layer of 30 and 20 weights: 17 levels at most; biases in full
    for model in torch.cat(used):
        assert all(model.split([30, 5, 20, 4])[layer].unique().numel() <= 17 for layer in (0, 2))
    rows = [(k, r) for k, r in f.ctx.ledger.rows.items() if k.direction == "up"]
    assert {k.codec for k, _ in rows} == {"levels"}
    assert sum(r.messages for _, r in rows) == len(f.method.schedule.client)
    # tables and headers outweigh so few weights: a size of the order of both together
    each = sum(r.bytes for _, r in rows) / sum(r.messages for _, r in rows)
    full = [len(Levels().encode(torch.arange(17.0).repeat(2)[:size])) for size in (30, 20)]
    assert each <= sum(full) + 3 * 4 + len(Dense().encode(torch.zeros(9)))
