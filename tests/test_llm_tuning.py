"""Fine-tuning of low-rank parts and magnitudes, alone and through PEFT; perplexity and generation against
transformers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.llm_helpers import llama, token_ids
from tracking.errors import UserError
from workbench.datasets.pydoc import ByteTokenizer
from workbench.llm import compress, generate, perplexity
from workbench.llm.adapters import from_peft, to_peft
from workbench.llm.architecture import layout_of
from workbench.llm.calibration import Stream, next_token_loss
from workbench.llm.compressed import Compressed
from workbench.llm.evaluation import encode, mean_loss, windows
from workbench.llm.low_rank import Residual
from workbench.llm.tiny_llama import LlamaConfig, TinyLlama
from workbench.llm.tuning import BlockTuning, FactorTuner, cosine, tune_model
from workbench.methods.compression.rtn import RTN

IDS = token_ids(8, 24)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return llama(tied=False)


def squeezed(model: nn.Module, rank: int = 4, magnitude: bool = True, **more) -> Compressed:
    quantiser = Residual(RTN(2, 32), rank, magnitude) if rank else RTN(2, 32)
    return compress(copy.deepcopy(model), quantiser, **more)


# --- tuning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [False, True])
def test_gradients_are_those_of_the_matrix(model, magnitude):
    """Of A, B and m, of the layer and of its ``weight``, against autograd through the matrix written out; the norm is held fixed, as
    DoRA does."""
    layer = squeezed(model, magnitude=magnitude).layers()["model.layers.0.mlp.down_proj"]
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    parameters = layer.train_factors()
    layer(x).square().sum().backward()
    got = [p.grad.clone() for p in parameters]
    through = torch.autograd.grad((x @ layer.weight.T).square().sum(), parameters)
    a, b, *m = [p.detach().double().requires_grad_(True) for p in parameters]
    w = layer.code().double() + b @ a
    if m:
        w = w * (m[0] / w.detach().norm(dim=1))[:, None]
    expected = torch.autograd.grad((x.double() @ w.T).square().sum(), [a, b, *m])
    for one, other in zip([*got, *through], [*expected, *expected], strict=True):
        # sums of 176 products of numbers of size 1 to 100, in float32
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_opening_and_closing_the_tuner_changes_nothing(model):
    done = squeezed(model)
    before = {n: {k: t.clone() for k, t in layer.packed.tensors.items()} for n, layer in done.layers().items()}
    logits = done(IDS).logits
    with FactorTuner(done.model, lr=1e-3):
        assert sorted({p.dtype for p in done.model.parameters() if p.requires_grad}, key=str) == [torch.float32]
        # the same numbers, by another way of multiplying
        torch.testing.assert_close(done(IDS).logits, logits, rtol=0, atol=1e-4)
    assert not any(p.requires_grad for p in done.model.parameters())
    assert all(torch.equal(t, before[n][k]) for n, layer in done.layers().items() for k, t in layer.packed.tensors.items())


def test_only_factors_change_and_the_loss_falls(model):
    done = squeezed(model)
    kept = {n: p.clone() for n, p in done.model.named_parameters()}
    before = {n: {k: t.clone() for k, t in layer.packed.tensors.items()} for n, layer in done.layers().items()}
    start = float(next_token_loss(done.model, IDS))
    losses = tune_model(done, IDS, 25, lr=1e-2, batch=8)
    assert float(next_token_loss(done.model, IDS)) < start - 0.5, "eight sequences can be learnt by heart"
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, kept[n]) for n, p in done.model.named_parameters())
    for name, layer in done.layers().items():
        for key, tensor in layer.packed.tensors.items():
            assert tensor.dtype == before[name][key].dtype
            assert torch.equal(tensor, before[name][key]) == (key not in ("low_rank.a", "low_rank.b", "magnitude"))


def test_a_tuner_goes_on_where_it_was(model):
    """Two steps, then two of another tuner from the state of the first, are four steps to the bit."""
    ends = []
    for cut in (4, 2):
        done = squeezed(model)
        state = None
        for part in (range(cut), range(cut, 4)):
            with FactorTuner(done.model, lr=1e-2) as tuner:
                if state:
                    tuner.load_state_dict(state)
                for step in part:
                    tuner.step(next_token_loss(done.model, IDS[2 * step:2 * step + 2]))
                state = copy.deepcopy(tuner.state_dict())
        ends.append(state["factors"])
    assert all(torch.equal(t, ends[1][n][k]) for n, f in ends[0].items() for k, t in f.items())


def test_block_tuning_brings_each_block_nearer_to_what_it_was(model):
    plain = squeezed(model, calibration=IDS)
    tuned = squeezed(model, calibration=IDS, tuning=BlockTuning(40, 3e-3))
    stream = Stream.at_entrance(model, layout_of(model), IDS)
    target = torch.cat(list(stream.run(model.model.layers[0])))
    errors = [float(F.mse_loss(torch.cat(list(stream.run(c.model.model.layers[0]))), target)) for c in (plain, tuned)]
    assert errors[1] < 0.8 * errors[0]
    hopeless = squeezed(model, calibration=IDS, tuning=BlockTuning(3, 10.0))
    kept = float(F.mse_loss(torch.cat(list(stream.run(hopeless.model.model.layers[0]))), target))
    assert kept == pytest.approx(errors[0]), "a tuning that does harm is undone"


def test_a_rate_that_diverges_and_a_model_without_factors_are_refused(model):
    with pytest.raises(UserError, match="nothing to tune: no matrix has a low-rank part"):
        tune_model(squeezed(model, rank=0), IDS, 1)
    done = squeezed(model)
    with pytest.raises(UserError, match=r"loss became (nan|inf). Lower the learning rate \(1e\+30"):
        tune_model(done, IDS, 5, lr=1e30)
    bare = squeezed(model, rank=0)
    before = bare(IDS).logits
    for layer in bare.layers().values():
        layer.attach(rank=3, magnitude=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bare(IDS).logits, before, rtol=0, atol=1e-5)
    tune_model(bare, IDS, 2, lr=1e-3)
    assert not torch.equal(bare(IDS).logits, before)


def test_the_schedule_warms_up_and_ends_at_nothing():
    rates = [cosine(step, 100) for step in range(101)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates == [*rates[:3], *sorted(rates[3:], reverse=True)]
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert [cosine(step, 1) for step in range(1)] == [1]


# --- PEFT ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_peft_start_at_the_compressed_model(model, dora):
    """Any adapter put on by PEFT itself: B is zero, so the output is the compressed model's, to the bit for LoRA."""
    import peft

    done = squeezed(model, rank=0)
    before = done(IDS).logits
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=dora, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(done.model, config)
    after = wrapped(IDS).logits
    if dora:
        # one times a magnitude over the norm it was made from
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    else:
        assert torch.equal(after, before)
    wrapped(IDS, labels=IDS).loss.backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in n for n in trained)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_low_rank_parts_become_adapters_and_come_back(model, magnitude, alpha):
    done = squeezed(model, rank=4, magnitude=magnitude)
    before = done(IDS).logits
    stored = {n: {k: t.clone() for k, t in layer.packed.tensors.items()} for n, layer in done.layers().items()}
    wrapped = to_peft(done, alpha)
    assert wrapped.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] == (1.0 if alpha is None else 0.25)
    # the same products in another order
    torch.testing.assert_close(wrapped(IDS).logits, before, rtol=0, atol=2e-4)
    back = from_peft(wrapped, done)
    for name, layer in back.layers().items():
        for key, tensor in layer.packed.tensors.items():
            assert torch.equal(tensor, stored[name][key]), (name, key)  # scalings are squares of powers of two: nothing is rounded
    wrapped = to_peft(back, alpha)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(IDS, labels=IDS).loss.backward()
        optimizer.step()
    tuned = wrapped(IDS).logits.detach()
    # factors are rounded to fp16, eleven bits
    assert float((from_peft(wrapped, back)(IDS).logits - tuned).norm() / tuned.norm()) < 5e-3
    assert float((tuned - before).norm() / before.norm()) > 5e-2


def test_peft_is_told_when_there_is_nothing_for_it(model):
    with pytest.raises(UserError, match="No matrix has a low-rank part"):
        to_peft(squeezed(model, rank=0))
    mixed = squeezed(model, magnitude=False)
    mixed.layers()["model.layers.0.mlp.up_proj"].attach(magnitude=True)
    with pytest.raises(UserError, match="Some matrices have a magnitude and some have none"):
        to_peft(mixed)


# --- perplexity and generation ------------------------------------------------------------------------------


def test_perplexity_is_that_of_transformers(model):
    text = "The quick brown fox jumps over the lazy dog. " * 6
    ids = torch.tensor(list(text.encode()))
    losses = [model(w[None], labels=w[None]).loss.double() for w in ids.split(32)[:-1]]  # the remainder is dropped
    expected = math.exp(torch.stack(losses).mean())
    assert perplexity(model, ByteTokenizer(), text, window=32) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, lambda t: list(t.encode()), text, window=32, count=2) == pytest.approx(
        math.exp(torch.stack(losses[:2]).mean()), rel=1e-5)
    done = squeezed(model)
    assert perplexity(done, ByteTokenizer(), text, window=32) == perplexity(done.model, ByteTokenizer(), text, window=32)
    parts = ["first part", "second part of the text"]
    assert torch.equal(encode(ByteTokenizer(), parts), encode(ByteTokenizer(), "first part\n\nsecond part of the text"))


def test_windows_do_not_overlap_and_what_cannot_be_is_refused(model):
    ids = torch.arange(23)
    assert windows(ids, 5).tolist() == [list(range(i, i + 5)) for i in (0, 5, 10, 15)]
    assert windows(ids, 5, 2).shape == (2, 5)
    for words, call in (("less than one window of "
                         "24", (ids, 24)), ("9 windows of 5 tokens asked for; the text has 4", (ids, 5, 9)),
                        ("takes two tokens", (ids, 1))):
        with pytest.raises(UserError, match=words):
            windows(*call)
    polls = []
    mean_loss(model, token_ids(5, 300), poll=lambda: polls.append(1))
    assert len(polls) == 2, "three windows of 300 tokens at a time"


def test_generation_is_greedy(model):
    tokenizer = ByteTokenizer()
    ids = torch.tensor([list(b"Once upon")])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)[0, 9:]
    assert generate(model, tokenizer, "Once upon", 12) == tokenizer.decode(expected.tolist())
    small = TinyLlama(LlamaConfig(), torch.Generator().manual_seed(3))  # has no cache of keys: everything is run again
    twin = ids
    for _ in range(5):
        twin = torch.cat([twin, small(twin).logits[:, -1:].argmax(-1)], 1)
    assert generate(small, tokenizer, "Once upon", 5) == tokenizer.decode(twin[0, 9:].tolist())


def test_the_tiny_llama_is_that_of_transformers():
    from transformers import AutoConfig, AutoModelForCausalLM

    small = TinyLlama(LlamaConfig(), torch.Generator().manual_seed(0))
    facts = small.config.to_dict()
    twin = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts))
    twin.load_state_dict(small.state_dict())
    # the same operations; attention by other kernels
    torch.testing.assert_close(small(IDS).logits, twin(IDS).logits, rtol=0, atol=1e-5)
    before = torch.get_rng_state()
    again = TinyLlama(LlamaConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
