"""What calibration gathers: the stream of hidden states, sums over inputs, squared gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.llm_helpers import llama, seeded, token_ids
from tracking.errors import UserError
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


@pytest.mark.parametrize("kind", ["Gemma3", "Bloom"])
def test_each_block_is_called_as_the_model_calls_it(kind):
    """Blocks of one model differ: in Gemma 3 some attend to a window, with other rotary positions; Bloom's blocks return tuples."""
    import transformers as t

    sizes = {"hidden_size": 32, "vocab_size": 64, "num_attention_heads": 4, "num_hidden_layers": 5, "n_layer": 5, "n_head": 4}
    if kind == "Gemma3":
        config = t.Gemma3TextConfig(**sizes, intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=4,
                                    layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"])
        other = seeded(t.Gemma3ForCausalLM, config, 0)
    else:
        other = seeded(t.BloomForCausalLM, t.BloomConfig(**sizes), 0)
    layout, ids = layout_of(other), token_ids(vocabulary=64)
    blocks = layout.blocks(other)
    seen = [[] for _ in blocks]
    hooks = [b.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out))
             for b, kept in zip(blocks, seen, strict=True)]
    for part in ids.split(4):
        other(part, use_cache=False)
    for hook in hooks:
        hook.remove()
    stream = Stream.at_entrance(other, layout, ids, batch=4)
    for block, expected in zip(blocks, seen, strict=True):
        assert "forward" not in vars(block), "the block's own method is back"
        stream.advance(block)
        assert torch.equal(stream.hidden, torch.cat(expected))


@pytest.mark.parametrize("name", ["model.layers.1.input_layernorm.weight", "model.embed_tokens.weight",
                                  "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_named(model, name):
    """Those of norms and embeddings too: statistics that come through them are worth nothing."""
    bad = copy.deepcopy(model)
    bad.get_parameter(name).data.flatten()[1] = torch.inf
    ids = IDS.clone()
    ids[0, 0] = 0  # the row of the embedding that is bad
    with pytest.raises(UserError, match=f"{name.removesuffix('.weight')}.*not finite|nan or inf: {name} holds"):
        compress(bad, RTN(), calibration=ids)


def test_dropout_does_not_enter_the_statistics():
    import transformers as t

    config = t.GPTNeoXConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
                             hidden_dropout=0.5)
    errors = []
    for training in (False, True):
        compressed = compress(seeded(t.GPTNeoXForCausalLM, config, 0).train(training), RTN(2, 16), calibration=token_ids(vocabulary=64))
        errors.append([r.weighted_error for r in compressed.reports.values()])
    assert errors[0] == errors[1]


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
