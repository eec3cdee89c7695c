"""Compressed models on disk: streamed from shards, saved, loaded, damaged, killed and resumed."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.llm_helpers import Noisy, llama, same, token_ids
from tracking.errors import UserError
from workbench.llm import compress, load
from workbench.llm.compressed import Compressed
from workbench.llm.low_rank import Residual
from workbench.llm.source import Folder, read_named, shards_of
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


def test_a_streamed_model_is_the_one_in_memory(model, shards):
    inside = compress(copy.deepcopy(model), Noisy(), calibration=IDS)
    streamed = compress(shards, Noisy(), calibration=IDS)
    assert same(inside, streamed)
    assert torch.equal(inside(IDS).logits, streamed(IDS).logits)
    assert [r["tensor"] for r in streamed.kept()] == [r["tensor"] for r in inside.kept()]


def test_a_shard_is_read_as_safetensors_reads_it(shards, tmp_path):
    from safetensors.torch import load_file, save_file

    found = shards_of(shards)
    names = [name for name, path in found.items() if path == found["model.norm.weight"]]
    theirs = load_file(found["model.norm.weight"])
    assert {name: t.tolist() for name, t in read_named(found, names, shards)} == {name: theirs[name].tolist() for name in names}
    kinds = {str(kind): torch.arange(6).to(kind).view(2, 3) for kind in (torch.float64, torch.bfloat16, torch.int32, torch.bool)}
    path = tmp_path / "m.safetensors"
    save_file(kinds, path)
    for name, tensor in read_named(shards_of(tmp_path), list(kinds), tmp_path):
        assert torch.equal(tensor, kinds[name])
    data = path.read_bytes()
    for words, harmed in (("it ends within", data[:-9]), ("its header is damaged", b"\xff" * 8 + data[8:]), ("cannot be read", data[:30])):
        path.write_bytes(harmed)
        with pytest.raises(UserError, match=f"m.safetensors.*{words}"):
            list(read_named(dict.fromkeys(kinds, path), list(kinds), tmp_path))
    with pytest.raises(UserError, match=r"lacks a.b: its shards do not hold the model"):
        list(read_named({}, ["a.b"], tmp_path))


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


@pytest.mark.parametrize("harm", ["payload", "head", "cut", "gone", "manifest", "unfinished", "config"])
def test_a_damaged_folder_is_refused_by_name(model, tmp_path, harm):
    folder = tmp_path / "m"
    compress(copy.deepcopy(model), RTN(2, 16), folder=folder)
    file = folder / {"manifest": "compression.json", "unfinished": "compression.json", "config": "config.json"}.get(
        harm, "block-00001.safetensors")
    data = bytearray(file.read_bytes())
    if harm == "payload":
        data[-100] ^= 1
    elif harm == "head":
        data[20] ^= 1
    elif harm == "manifest":
        data[data.index(b'"bits"') + 30] ^= 1
    elif harm == "config":  # another base of the rotary positions: a model that runs, and is not the one saved
        data[data.index(b"10000")] ^= 2
    if harm in ("gone", "unfinished"):
        file.unlink()
    else:
        file.write_bytes(data[:len(data) // 2] if harm == "cut" else data)
    words = {"gone": "Cannot read .*block-00001", "manifest": "compression.json is damaged", "config": "config.json is damaged",
             "unfinished": "an unfinished compression"}
    with pytest.raises(UserError, match=words.get(harm, "block-00001.safetensors is damaged: its checksum")):
        load(folder)


# --- cut off and resumed ------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from tests import llm_helpers, test_llm_files as t

stop, folder = int(sys.argv[1]), sys.argv[2]
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dying(llm_helpers.Noisy):
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
    """SIGKILL at a matrix's end in the first block, then in the middle of a matrix of the second."""
    whole, cut = killable(tmp_path / "whole", Noisy()), tmp_path / "cut"
    for stop in (-3, 7):  # three are done; then six more, and into the seventh
        child = subprocess.run([sys.executable, "-c", CHILD, str(stop), str(cut)], cwd=ROOT, capture_output=True, text=True, timeout=140)
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


def test_trials_of_a_plan_are_not_made_again(model, tmp_path):
    """Cut off within planning, and once more within the matrices; the budget alone may change before there is a matrix."""

    @dataclass(frozen=True)
    class Planner:
        bits: int = 2
        needs: ClassVar[frozenset[str]] = frozenset()

        def plan(self, matrices, budget, trials=None):
            for name, _ in matrices:
                if name not in trials:
                    tried.append(name)
                    if len(tried) == fail_at:
                        raise KeyboardInterrupt
                    trials[name] = [self.bits, name]
            return {name: RTN(int(budget), 16) for name in trials}

        def __call__(self, weight, stats=None, generator=None):
            raise AssertionError("every matrix has a plan")

    tried, fail_at = [], 6
    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), Planner(), budget=2.0, folder=tmp_path)
    with pytest.raises(UserError, match=r"trials.json holds a compression with another quantiser"):
        compress(copy.deepcopy(model), Planner(3), budget=2.0, folder=tmp_path)
    file = tmp_path / "partial" / "trials.json"
    whole = file.read_text()
    file.write_text(whole[:-9])
    with pytest.raises(UserError, match=r"trials.json is damaged"):
        compress(copy.deepcopy(model), Planner(), budget=2.0, folder=tmp_path)
    file.write_text(whole)

    def stop(done, total, report):
        if report is not None:  # the plan is made
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), Planner(), budget=3.0, folder=tmp_path, progress=stop)
    assert len(tried) == 15, "five, the one that failed, and the nine that were left"
    with pytest.raises(UserError, match="another budget"):
        compress(copy.deepcopy(model), Planner(), budget=2.0, folder=tmp_path)
    done = compress(copy.deepcopy(model), Planner(), budget=3.0, folder=tmp_path)
    assert same(done, compress(copy.deepcopy(model), RTN(3, 16)))
    compress(copy.deepcopy(model), Planner(), budget=3.0, folder=tmp_path)
    assert len(tried) == 15, "a finished model needs no plan"


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
