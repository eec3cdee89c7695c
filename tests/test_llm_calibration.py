"""What calibration gathers: the stream of hidden states, sums over inputs, squared gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.llm_helpers import llama, token_ids
from workbench.llm import compress
from workbench.llm.architecture import layout_of
from workbench.llm.calibration import LayerStatistics, Stream, fisher
from workbench.methods.compression.rtn import RTN

IDS = token_ids()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return llama(tied=True)


def test_statistics_are_the_sums_over_all_tokens(model):
    layout = layout_of(model)
    stream = Stream.at_entrance(model, layout, IDS, batch=4)  # six sequences: the last batch is smaller
    block, seen = model.model.layers[0], {}
    linears = {n: model.get_submodule(n) for n in layout.names[0]}
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, []).append(args[0]))
    stats = stream.statistics(block, linears, seed=0, samples=50)
    for module in linears.values():
        module._forward_pre_hooks.clear()
    for name, s in stats.items():
        x = torch.cat(seen[name]).double().flatten(0, 1)
        assert s.tokens == len(x) == IDS.numel()
        # running means over two batches in float32
        torch.testing.assert_close(s.hessian.double(), 2 / len(x) * x.T @ x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(s.mean_abs.double(), x.abs().mean(0), rtol=1e-5, atol=1e-7)
        rows = {tuple(r) for r in x.float().tolist()}
        assert s.samples.shape == (50, x.shape[1])
        assert all(tuple(r) in rows for r in s.samples.tolist())
    q, k, gate = (f"model.layers.0.{n}" for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))
    assert stats[q].hessian is stats[k].hessian, "one input, one sum"
    assert stats[q].hessian is not stats[gate].hessian


def test_the_stream_is_the_model(model):
    """Entrance and blocks one after another give the hidden states of the whole model."""
    layout = layout_of(model)
    stream = Stream.at_entrance(model, layout, IDS, batch=4)
    for block in model.model.layers:
        stream.advance(block)
    expected = model(IDS, output_hidden_states=False).logits
    # batches of four and two against one of six
    torch.testing.assert_close(model.lm_head(model.model.norm(stream.hidden)), expected, rtol=0, atol=1e-4)


def test_inputs_come_through_the_compressed_blocks(model):
    seen: dict[str, torch.Tensor] = {}

    @dataclass(frozen=True)
    class Spy:
        needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

        def __call__(self, weight, stats=None, generator=None):
            seen[len(seen)] = stats.hessian
            return RTN(2, 16)(weight)

    done = compress(copy.deepcopy(model), Spy(), calibration=IDS)
    mixed = copy.deepcopy(model)  # the second block's inputs: first block compressed, second as it was
    mixed.model.layers[0] = done.model.model.layers[0]
    stats = Stream.at_entrance(mixed, layout_of(model), IDS)
    stats.advance(mixed.model.layers[0])
    name = "model.layers.1.self_attn.q_proj"
    expected = stats.statistics(mixed.model.layers[1], {name: mixed.get_submodule(name)}, 0)[name].hessian
    assert torch.equal(seen[7], expected)


def test_fisher_is_the_sum_of_squared_gradients_of_single_sequences(model):
    name = "model.layers.1.mlp.up_proj"
    found = fisher(model, [name], IDS[:3])[name]
    twin = copy.deepcopy(model)
    weight = twin.get_submodule(name).weight.requires_grad_(True)
    expected = torch.zeros_like(weight)
    for row in IDS[:3]:
        weight.grad = None
        twin(row[None], labels=row[None]).loss.backward()
        expected += weight.grad.square()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)
    assert not any(p.requires_grad for p in model.parameters()), "the model is as it was"


def test_statistics_that_were_not_asked_for_are_none():
    assert LayerStatistics() == LayerStatistics(0, None, None, None, None)
