"""Whole models: what is compressed, streamed from shards, saved, loaded, resumed, refused."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.llm_helpers import llama, seeded, token_ids
from tracking.errors import UserError
from workbench.llm import compress, load
from workbench.llm.architecture import layout_of
from workbench.llm.calibration import LayerStatistics, Stream, fisher
from workbench.llm.compressed import Compressed
from workbench.llm.linear import CompressedLinear
from workbench.llm.low_rank import Residual
from workbench.llm.packed import Packed
from workbench.llm.source import Folder
from workbench.llm.tiny_llama import LlamaConfig, TinyLlama
from workbench.llm.tuning import BlockTuning
from workbench.methods.compression.rtn import RTN

ROOT = Path(__file__).parent.parent
IDS = token_ids()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tied one: what is not compressed must not be counted or written twice."""
    return llama(tied=True)


@pytest.fixture(scope="module")
def shards(model, tmp_path_factory) -> Path:
    """The model as ``save_pretrained`` writes it, in several shards."""
    folder = tmp_path_factory.mktemp("shards")
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@dataclass(frozen=True)
class Noisy:
    """Rounds at random by what it is given to draw from, and weighs nothing: seeds and needs are visible in its
    result."""

    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight, stats=None, generator=None):
        noise = torch.rand(weight.shape, generator=generator) * stats.hessian.diagonal().sqrt()
        return RTN(3, 16)(weight + 0.01 * noise)


def payloads(compressed: Compressed) -> dict[str, dict[str, torch.Tensor]]:
    return {name: layer.packed.tensors for name, layer in compressed.layers().items()}


def same(one: Compressed, two: Compressed) -> bool:
    a, b = payloads(one), payloads(two)
    return a.keys() == b.keys() and all(a[n].keys() == b[n].keys() and all(torch.equal(t, b[n][k]) for k, t in a[n].items()) for n in a)


# --- what it gives ------------------------------------------------------------------------------------------


def test_every_matrix_is_compressed_and_nothing_else(model):
    done = compress(copy.deepcopy(model), RTN(4, 32), calibration=IDS)
    assert list(done.layers()) == [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert len(done.reports) == 14
    for name, layer in done.layers().items():
        w = model.get_submodule(name).weight
        assert torch.equal(layer.weight, RTN(4, 32)(w).dequantise())
        report = done.reports[name]
        assert report.error == pytest.approx(float((w - layer.weight).norm() / w.norm()))
        assert report.bits == layer.packed.bits()
    expected = copy.deepcopy(model)
    for name, layer in done.layers().items():
        expected.get_submodule(name).weight.copy_(layer.weight)
    # the same products in the same order, but for the rows of a fused one
    torch.testing.assert_close(done(IDS).logits, expected(IDS).logits, rtol=0, atol=1e-4)


def test_the_weighted_error_is_that_of_the_outputs(model):
    done = compress(copy.deepcopy(model), RTN(2, 32), calibration=IDS, layers=[0])
    x = {}
    before = copy.deepcopy(model)
    linear = before.model.layers[0].mlp.down_proj
    hook = linear.register_forward_pre_hook(lambda m, args: x.update(x=args[0].double().flatten(0, 1)))
    before(IDS)
    hook.remove()
    w = linear.weight.double()
    e = w - done.layers()["model.layers.0.mlp.down_proj"].weight.double()
    expected = float((x["x"] @ e.T).norm() / (x["x"] @ w.T).norm())
    # sums over 144 tokens in float32, squared
    assert done.reports["model.layers.0.mlp.down_proj"].weighted_error == pytest.approx(expected, rel=1e-4)


def test_the_report_has_every_term_and_names_what_is_tied(model):
    done = compress(copy.deepcopy(model), Residual(RTN(3, 32), 4, True))
    table = done.report()
    assert list(table.data.matrix) == list(done.layers())
    billed = table.data[[c for c in table.data if c.endswith("_bits")]].sum().sum()
    assert billed == sum(done.bits().values())
    numbers = sum(layer.in_features * layer.out_features for layer in done.layers().values())
    assert done.bpw() == pytest.approx(billed / numbers)
    assert done.code_bpw() == pytest.approx(sum(v for k, v in done.bits().items() if k not in ("low_rank", "magnitude")) / numbers)
    assert "tied model.embed_tokens.weight (also lm_head.weight)" in table.caption
    assert {row["tensor"] for row in done.kept()} == {n for n, _ in model.named_parameters() if "_proj" not in n}


@pytest.mark.parametrize("family", ["neox", "opt", "qwen2", "mistral"])
def test_other_layouts(family):
    import transformers as t

    small = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    grouped = small | {"intermediate_size": 64, "num_key_value_heads": 1}
    made = {"neox": lambda: (t.GPTNeoXForCausalLM, t.GPTNeoXConfig(**small, intermediate_size=64)),
            "opt": lambda: (t.OPTForCausalLM, t.OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32)),
            "qwen2": lambda: (t.Qwen2ForCausalLM, t.Qwen2Config(**grouped)),
            "mistral": lambda: (t.MistralForCausalLM, t.MistralConfig(**grouped, head_dim=16))}[family]()
    model = seeded(*made, seed=2)
    ids = token_ids(3, 12, vocabulary=128)
    before = model(ids).logits
    done = compress(copy.deepcopy(model), RTN(8, 16), calibration=ids)
    assert len(done.layers()) == 2 * {"neox": 4, "opt": 6}.get(family, 7)
    # eight bits: every matrix within 1 %, and four or more of them in a row
    assert float((done(ids).logits - before).norm() / before.norm()) < 0.1
    weighted = [r.weighted_error for r in done.reports.values()]
    assert all(w is not None and 0 < w < 0.02 for w in weighted)


# --- calibration --------------------------------------------------------------------------------------------


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


# --- files --------------------------------------------------------------------------------------------------


def test_a_streamed_model_is_the_one_in_memory(model, shards):
    inside = compress(copy.deepcopy(model), Noisy(), calibration=IDS)
    streamed = compress(shards, Noisy(), calibration=IDS)
    assert same(inside, streamed)
    assert torch.equal(inside(IDS).logits, streamed(IDS).logits)
    assert [r["tensor"] for r in streamed.kept()] == [r["tensor"] for r in inside.kept()]


def test_streaming_holds_one_block_at_a_time(tmp_path):
    """Counted on the live tensors, at the moment a matrix is compressed."""
    model = llama(num_hidden_layers=6, tied=True)
    model.save_pretrained(tmp_path)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    most = []

    @dataclass(frozen=True)
    class Watch:
        needs: ClassVar[frozenset[str]] = frozenset()

        def __call__(self, weight, stats=None, generator=None):
            live = sum(p.numel() for b in source.model.model.layers for p in b.parameters() if not p.is_meta)
            outside = [n for n, p in source.model.named_parameters() if not p.is_meta and ".layers." not in n]
            most.append((live, outside))
            return RTN(2, 16)(weight)

    from workbench.llm import compression

    source = Folder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "source_of", lambda m: source)
        compress(tmp_path, Watch())
    assert len(most) == 42
    norms = 2 * 64 * 6  # stay with the compressed blocks
    assert max(live for live, _ in most) <= block + norms
    assert not any(outside for _, outside in most), "embeddings are read when all blocks are done"


def test_bits_on_disk_are_the_bits_reported(model, tmp_path):
    done = compress(copy.deepcopy(model), Residual(RTN(3, 32), 4, True), folder=tmp_path / "m")
    payload = 0
    for file in sorted((tmp_path / "m").glob("block-*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8:8 + length])
        entries = {k: v["data_offsets"] for k, v in head.items() if k != "__metadata__"}
        assert sum(b - a for a, b in entries.values()) == len(data) - 8 - length, "no padding hides anything"
        payload += sum(b - a for k, (a, b) in entries.items() if "::" in k)
    assert 8 * payload == sum(done.bits().values())
    total = sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    heads = sum(8 + int.from_bytes(f.read_bytes()[:8], "little") for f in (tmp_path / "m").glob("*.safetensors"))
    assert total - heads == done.size_bytes()


@pytest.mark.parametrize("way", ["folder", "save"])
def test_saved_and_loaded_it_is_the_same_to_the_bit(model, tmp_path, way):
    quantiser = Residual(RTN(3, 16), 2, True)
    done = compress(copy.deepcopy(model), quantiser, calibration=IDS, folder=tmp_path / "m" if way == "folder" else None)
    if way == "save":
        done.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert same(done, again)
    assert torch.equal(done(IDS).logits, again(IDS).logits)
    assert again.reports.keys() == done.reports.keys()
    assert again.bits() == done.bits()
    assert again.kept() == done.kept()
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    half = load(tmp_path / "m", dtype=torch.bfloat16)
    assert half(IDS).logits.dtype == torch.bfloat16
    assert same(done, half), "the payload keeps its types"
    with pytest.raises(UserError, match="holds a compressed model already"):
        done.save(tmp_path / "m")


@pytest.mark.parametrize("harm", ["payload", "head", "cut", "gone", "manifest", "unfinished"])
def test_a_damaged_folder_is_refused_by_name(model, tmp_path, harm):
    folder = tmp_path / "m"
    compress(copy.deepcopy(model), RTN(2, 16), folder=folder)
    file = folder / ("compression.json" if harm in ("manifest", "unfinished") else "block-00001.safetensors")
    data = bytearray(file.read_bytes())
    if harm == "payload":
        data[-100] ^= 1
    elif harm == "head":
        data[20] ^= 1
    elif harm == "manifest":
        data[data.index(b'"bits"') + 30] ^= 1
    if harm in ("gone", "unfinished"):
        file.unlink()
    else:
        file.write_bytes(data[:len(data) // 2] if harm == "cut" else data)
    words = {"gone": "Cannot read "
                     ".*block-00001", "manifest": "compression.json is "
                                                  "damaged", "unfinished": "an unfinished compression"}
    with pytest.raises(UserError, match=words.get(harm, "block-00001.safetensors is damaged: its checksum")):
        load(folder)


# --- cut off and resumed ------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tests import test_llm_compress as t

stop, folder = int(sys.argv[1]), sys.argv[2]
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dying(t.Noisy):
    def __call__(self, weight, stats=None, generator=None):
        global calls
        calls += 1
        if calls == stop:
            die()  # in the middle of a matrix
        return super().__call__(weight, stats, generator)

Dying.__qualname__ = "Noisy"  # a folder remembers what was called
progress = (lambda done, total, report: done == -stop and die()) if stop < 0 else None
t.killable(folder, Dying(), progress)
"""


def killable(folder, quantiser, progress=None) -> Compressed:
    """A compression with everything that has a state: calibration, random numbers, low rank, tuning of blocks."""
    model = TinyLlama(LlamaConfig(), torch.Generator().manual_seed(0)).requires_grad_(False)
    return compress(model, Residual(quantiser, 2), calibration=IDS, folder=folder, tuning=BlockTuning(3, 1e-3), progress=progress)


def test_killed_and_called_again_it_ends_bit_identical(tmp_path):
    """SIGKILL at a matrix's end in the first block, in the middle of the first of the second block, and of another
    there."""
    whole, cut = killable(tmp_path / "whole", Noisy()), tmp_path / "cut"
    for stop in (-3, 5, 3):  # three done; then four more and into the fifth; then two more and into the third
        child = subprocess.run([sys.executable, "-c", CHILD, str(stop), str(cut)], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert not (cut / "compression.json").exists()
    assert (cut / "block-00000.safetensors").is_file()
    assert len(list((cut / "partial").glob("model.layers.1.*"))) == 2
    (cut / "partial" / ".model.layers.1.mlp.up_proj.safetensors.abcd").write_bytes(b"what a killed process was writing")
    calls = []
    done = killable(cut, Noisy(), lambda n, total, r: calls.append(n))
    assert calls == list(range(8, 15)), "a finished block is not done again"
    assert not (cut / "partial").exists()
    assert same(whole, done)
    assert torch.equal(whole(IDS).logits, done(IDS).logits)
    again = killable(cut, Noisy(), lambda *a: pytest.fail("a finished model is only read"))
    assert same(whole, again)
    assert same(whole, load(cut)), "which transformers runs"


def test_a_matrix_that_is_done_is_not_done_again(model, tmp_path):
    """A quantiser that fails at a matrix stands for any end within a block."""

    @dataclass(frozen=True)
    class Failing(Noisy):
        def __call__(self, weight, stats=None, generator=None):
            calls.append(tuple(weight.shape))
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            return super().__call__(weight, stats, generator)

    calls, fail_at = [], 5
    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), Failing(), calibration=IDS, folder=tmp_path / "m")
    assert len(list((tmp_path / "m" / "partial").glob("*.safetensors"))) == 4
    calls, fail_at = [], -1
    done = compress(copy.deepcopy(model), Failing(), calibration=IDS, folder=tmp_path / "m")
    assert len(calls) == 10
    assert same(done, compress(copy.deepcopy(model), Noisy(), calibration=IDS))


def test_a_folder_of_another_call_is_refused(model, tmp_path):
    compress(copy.deepcopy(model), RTN(2, 16), folder=tmp_path)
    other = copy.deepcopy(model)
    other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    for words, call in (("quantiser", (model, RTN(3, 16), {})), ("seed", (model, RTN(2, 16), {"seed": 1})),
                        ("source", (other, RTN(2, 16), {})),
                        ("matrices", (model, RTN(2, 16), {"layers": [1]})), ("calibration", (model, RTN(2, 16), {"calibration": IDS}))):
        with pytest.raises(UserError, match=f"holds a compression with another {words}"):
            compress(copy.deepcopy(call[0]), call[1], folder=tmp_path, **call[2])


def test_a_damaged_partial_file_is_refused(model, tmp_path):
    def stop(done, total, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), RTN(2, 16), folder=tmp_path, progress=stop)
    file = next((tmp_path / "partial").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"q_proj.safetensors is damaged: its checksum"):
        compress(copy.deepcopy(model), RTN(2, 16), folder=tmp_path)


# --- refused ------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_named(model):
    bad = copy.deepcopy(model)
    bad.model.layers[1].self_attn.v_proj.weight[2, 3] = math.nan
    with pytest.raises(UserError, match=r"model.layers.1.self_attn.v_proj holds 1 weight that is not finite"):
        compress(bad, RTN(2, 16))
    large = copy.deepcopy(model)
    large.model.layers[0].mlp.gate_proj.weight[0] = 1e30
    with pytest.raises(UserError, match=r"gate_proj decodes to weights that are not finite.*65504"):
        compress(large, Overflowing())


@dataclass(frozen=True)
class Overflowing:
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight, stats=None, generator=None):
        return Packed("dense", tuple(weight.shape), {"other": weight.half()})


def test_unknown_architectures_name_their_layers(model):
    import transformers as t

    gpt2 = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UserError, match=r"decoder blocks of GPT2LMHeadModel were not recognised.*transformer "
                                        r"\(GPT2Model\), lm_head \(Linear\)"):
        compress(gpt2, RTN())
    with pytest.raises(UserError, match=r"decoder blocks of Sequential were not recognised: no list of equal "
                                        r"blocks.*0 \(Linear\)"):
        compress(nn.Sequential(nn.Linear(4, 4)), RTN())
    odd = copy.deepcopy(model)
    odd.model.layers[1].mlp.experts = nn.ParameterList([nn.Parameter(torch.zeros(2, 3, 4))])
    with pytest.raises(UserError, match=r"not recognised.*model.layers.1.mlp.experts \(ParameterList\).*targets"):
        compress(odd, RTN())
    assert len(compress(odd, RTN(), targets=("q_proj", "down_proj")).layers()) == 4


def test_calls_that_cannot_be_are_refused_in_a_sentence(model, shards, tmp_path):
    for words, call in (
        ("Unknown target 'q_prj'. Did you mean 'q_proj'", lambda: compress(model, RTN(), targets=("q_prj",))),
        (r"layers = \[2\] is refused: the model's blocks are 0 to 1", lambda: compress(model, RTN(), layers=[2])),
        ("Nothing is left to compress", lambda: compress(model, RTN(), layers=[])),
        ("Noisy needs calibration", lambda: compress(model, Noisy())),
        ("Block-wise tuning needs calibration", lambda: compress(model, RTN(), tuning=BlockTuning())),
        ("is no quantiser", lambda: compress(model, lambda w: w)),
        ("RTN takes no budget", lambda: compress(model, RTN(), budget=2.5)),
        ("Calibration takes token ids as whole numbers", lambda: compress(model, RTN(), calibration=torch.rand(2, 3))),
        ("There is no folder", lambda: compress(tmp_path / "nowhere", RTN())),
        ("holds no safetensors file", lambda: compress(tmp_path, RTN())),
        ("takes a model, a folder or a hub id, not a dict", lambda: compress({}, RTN())),
        ("holds no compressed model", lambda: load(tmp_path)),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert not any(isinstance(m, CompressedLinear) for m in model.modules()), "nothing was changed before the refusal"


def test_a_hub_id_without_a_network_is_explained(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'someone/some-model' is neither a folder nor a model that could be "
                                        "fetched.*no network"):
        compress("someone/some-model", RTN())


def test_a_plan_is_followed(model):
    @dataclass(frozen=True)
    class Planner:
        needs: ClassVar[frozenset[str]] = frozenset()

        def plan(self, matrices, budget):
            assert budget == 3.5
            return {name: RTN(2 if "mlp" in name else 4, 16) for name, weight in matrices if weight.dtype == torch.float32}

        def __call__(self, weight, stats=None, generator=None):
            raise AssertionError("every matrix has a plan")

    done = compress(copy.deepcopy(model), Planner(), budget=3.5)
    assert {layer.meta["bits"] for name, layer in done.layers().items() if "mlp" in name} == {2}
    assert {layer.meta["bits"] for name, layer in done.layers().items() if "attn" in name} == {4}


def test_statistics_that_were_not_asked_for_are_none():
    assert LayerStatistics() == LayerStatistics(0, None, None, None, None)
