"""Tasks of language models, the base method on the tiny LLaMA, and texts with faults injected."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch

from tests.llm_helpers import llama
from tracking.errors import UserError
from workbench import data
from workbench.datasets import corpora, language, pydoc
from workbench.datasets.c4 import C4
from workbench.datasets.pydoc import ByteTokenizer, Pydoc
from workbench.datasets.wikitext2 import WikiText2
from workbench.llm import ReALLM, VectorCode
from workbench.method import Context
from workbench.methods.compression._compression import Compression, restored
from workbench.methods.compression.rtn import RTN, RTNCompression
from workbench.methods.compression.uncompressed import Uncompressed
from workbench.params import parse

SMALL = {"pretrain_steps": 40, "window": 32, "test_size": 10}


def context(seed: int = 0) -> Context:
    return Context(torch.device("cpu"), seed)


def tiny(**values) -> Pydoc:
    task = Pydoc("tiny_llama", parse(Pydoc.Params, SMALL | values, "task"))
    task.setup(context())
    return task


def run(method: Compression, task: Pydoc, seed: int = 0):
    ctx = context(seed)
    state, figures = method.init(task, ctx), []
    while method.progress(state).done < method.progress(state).total:
        figures.append(method.step(state, task, ctx))
        if method.evaluation_due(state):
            figures[-1] |= method.evaluate(state, task, ctx)
    return state, figures, method.evaluate(state, task, ctx)


# --- the tiny model -----------------------------------------------------------------------------------------


def test_the_tiny_model_has_learnt_and_is_the_same_every_time(monkeypatch):
    task = tiny()
    loss = float(task.loss(task.reference()(task.test_windows[:, :-1]), task.test_windows[:, 1:]))
    assert loss < 0.65 * math.log(256), "byte frequencies alone give 0.57 of it"
    assert task.test_windows.shape == (10, 32)
    again = tiny(test_size=3)
    assert all(torch.equal(a, b) for a, b in zip(task.reference().parameters(), again.reference().parameters(), strict=True))
    assert task.reference() is not again.reference(), "one task's swapping of layers is not seen by another"
    before = set((data.cache_folder() / "models").glob("pydoc-*.pt"))
    first = tiny(pretrain_steps=2)
    kept, = set((data.cache_folder() / "models").glob("pydoc-*.pt")) - before
    monkeypatch.setattr(pydoc, "_trained", {})
    kept.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"is damaged .*trained anew"):
        fresh = tiny(pretrain_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(first.reference().parameters(), fresh.reference().parameters(), strict=True))
    assert torch.load(kept, weights_only=True).keys() == first.reference().state_dict().keys()


def test_text_of_the_test_is_never_calibrated_on():
    train, test = corpora.pydoc()
    assert len(train) > 3 * len(test) > 30_000
    task = tiny()
    assert bytes(task.train_ids[:500].tolist()).decode(errors="ignore") == train[:500]
    assert task.tokenizer.decode(task.test_windows[0].tolist()) == test.encode()[:32].decode()
    ids = task.calibration(5, 20, torch.Generator().manual_seed(0))
    text = train.encode()
    assert all(bytes(row.tolist()) in text for row in ids)
    assert torch.equal(ids, task.calibration(5, 20, torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match=r"windows of \d+ do not fit"):
        task.calibration(1, 10**7, torch.Generator())
    assert ByteTokenizer().decode(ByteTokenizer()("naïve")["input_ids"]) == "naïve"


def test_ids_of_another_tokenizer_are_refused():
    from workbench.llm import perplexity

    words = tiny().reference().config.vocab_size
    with pytest.raises(UserError, match=f"test ids go from 0 to {2 * words - 1}; the model knows 0 to {words - 1}. Encode the text with"):
        perplexity(tiny().reference(), lambda text: list(range(2 * words)), "text", 16)


# --- the base method ----------------------------------------------------------------------------------------


def test_the_method_is_compress(tmp_path):
    """The step-wise method and the library's one call give the same bits."""
    from workbench.llm import compress
    from workbench.llm.evaluation import mean_loss
    from workbench.llm.low_rank import Residual
    from workbench.llm.tuning import BlockTuning

    task = tiny()
    values = {"bits": 2, "rank": 2, "magnitude": True, "sequences": 6, "block_steps": 3}
    method = RTNCompression(parse(RTNCompression.Params, values, "rtn"))
    state, figures, last = run(method, task)
    assert len(figures) == 14
    ids = task.calibration(6, 32, context().generator("calibration", cpu=True))
    done = compress(tiny().reference(), Residual(RTN(2, 64), 2, True), calibration=ids, tuning=BlockTuning(3, 1e-3, 4))
    for name, layer in done.layers().items():
        mine = restored(state.packed[name])
        assert all(torch.equal(mine.tensors[k], t) for k, t in layer.packed.tensors.items()), name
    assert last["eval/loss"] == pytest.approx(mean_loss(done, task.test_windows), rel=1e-6)
    assert last["eval/perplexity"] == pytest.approx(math.exp(last["eval/loss"]))
    assert last["memory/bits_per_weight"] == pytest.approx(done.bpw())
    assert last["memory/code_bits_per_weight"] == pytest.approx(done.code_bpw())
    assert last["memory/model_bytes"] == done.size_bytes()
    view, *_ = method.views(state, task)
    assert sum(view.groups.values()) == pytest.approx(done.bpw())
    assert not method.views(method.init(task, context()), task)
    reports = list(done.reports.values())
    assert [f["train/weight_error"] for f in figures] == pytest.approx([r.error for r in reports])
    assert [f["train/output_error"] for f in figures] == pytest.approx([r.weighted_error for r in reports], rel=1e-4)
    assert task.reference().model.layers[0].mlp.up_proj.weight.dtype == torch.float32, "the task's model is as it was"


def test_a_plan_is_remembered_with_the_run_and_can_be_stopped(monkeypatch):
    """Under a budget every shape is tried on every matrix before the first step ends: a run that goes on does not try them again."""
    from workbench.llm import reallm_plan
    from workbench.methods.compression.reallm import ReALLMCompression

    task, values, ctx = tiny(), {"budget": 2.2, "sequences": 1, "turns": 2, "group_size": 16}, context()
    shapes = tuple(ReALLM(VectorCode(bits=b, dim=1, group=16), permute="never") for b in (1, 2))
    monkeypatch.setattr(reallm_plan, "default_candidates", lambda method: shapes)

    def method() -> Compression:
        return ReALLMCompression(parse(ReALLMCompression.Params, values, "reallm"))

    polls = []
    ctx.poll = lambda: polls.append(1)
    state = method().init(task, ctx)
    method().step(state, task, ctx)
    assert len(polls) == len(state.trials) == 14
    monkeypatch.setattr(reallm_plan, "_trial", lambda *a: pytest.fail("tried again"))
    again = method()
    while again.progress(state).done < 14:
        again.step(state, task, ctx)
    assert again.evaluate(state, task, ctx)["memory/bits_per_weight"] <= 2.2
    assert {entry["meta"]["bits"] for entry in state.packed.values()} == {1, 2}


def test_data_are_only_run_through_the_model_where_somebody_asks():
    task = tiny()
    figures = run(RTNCompression(parse(RTNCompression.Params, {}, "rtn")), task)[1]
    asked = run(RTNCompression(parse(RTNCompression.Params, {"output_errors": True, "sequences": 2}, "rtn")), task)[1]
    assert not any("train/output_error" in f for f in figures)
    assert all(0 < f["train/output_error"] < 1 for f in asked)
    assert [f["train/weight_error"] for f in figures] == [f["train/weight_error"] for f in asked]


def test_more_bits_and_tuning_lose_less():
    task = tiny()
    whole = run(Uncompressed(parse(Uncompressed.Params, {"dtype": "float32"}, "m")), task)[2]
    exact = float(task.loss(task.reference()(task.test_windows[:, :-1]), task.test_windows[:, 1:]))
    assert whole["eval/loss"] == pytest.approx(exact, rel=1e-6)
    assert whole["memory/bits_per_weight"] == 32
    losses = {}
    for name, values in {"2": {"bits": 2, "group_size": 0, "symmetric": True}, "3": {"bits": 3}, "8": {"bits": 8},
                         "2 tuned": {"bits": 2, "group_size": 0, "symmetric": True, "rank": 4, "steps": 20, "tune_lr": 1e-2}}.items():
        losses[name] = run(RTNCompression(parse(RTNCompression.Params, values, "rtn")), task)[2]["eval/loss"]
    assert losses["2"] > losses["3"] > losses["8"] - 1e-3
    assert abs(losses["8"] - exact) < 2e-3
    assert losses["2 tuned"] < losses["2"] - 0.02


def test_parameters_that_tune_nothing_are_refused():
    for values in ({"steps": 3}, {"block_steps": 3}):
        with pytest.raises(UserError, match=r"steps and block_steps tune low-rank parts .*, and there are none: set rank or magnitude"):
            parse(RTNCompression.Params, values, "method 'rtn'")


# --- texts --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A data folder with small files in the layout of the real ones, and an empty cache."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "data" / "wikitext2.tar.xz", "w:xz") as archive:
        for split in ("train", "valid", "test"):
            text = f" = A {split} heading = \n \n".encode() * 60
            entry = tarfile.TarInfo(f"wikitext-2/wiki.{split}.tokens")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    with gzip.open(tmp_path / "data" / "c4_en_sample.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"Document {i}. " * 30}) + "\n" for i in range(10))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random LLaMA with a tokenizer of bytes, as save_pretrained writes them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("checkpoint")
    llama(tied=True).save_pretrained(place)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return place


@pytest.mark.parametrize("cls", [WikiText2, C4])
def test_any_checkpoint_runs_on_a_text(cls, folder, checkpoint):
    task = cls("hub", parse(cls.Params, {"window": 16, "test_size": 4, "checkpoint": str(checkpoint)}, "task"))
    task.setup(context())
    assert task.test_windows.shape == (4, 16)
    words = {"wikitext2": (" = A test", " = A train"), "c4": ("Document 4.", "Document 0.")}[task.dataset]
    assert task.tokenizer.decode(task.test_windows[0].tolist()).startswith(words[0])
    assert task.tokenizer.decode(task.train_ids[:16].tolist()).startswith(words[1])
    assert "do not compare" in task.provenance()["note"]
    figures = run(RTNCompression(parse(RTNCompression.Params, {"bits": 4, "sequences": 2}, "rtn")), task)[2]
    assert 100 < figures["eval/perplexity"] < 1000, "random weights know nothing"
    from workbench.llm import perplexity

    text = task.texts()[1]
    expected = perplexity(task.reference(), task.tokenizer, text, window=16, count=4)
    plain = run(Uncompressed(Uncompressed.Params(dtype="float32", sequences=2)), task)[2]
    assert plain["eval/perplexity"] == pytest.approx(expected, rel=1e-5)


def test_c4_keeps_every_fifth_document_for_the_test(folder):
    train, test = corpora.c4()
    assert [int(t.split()[1].rstrip(".")) for t in test.split("\n\n")] == [4, 9]
    assert [int(t.split()[1].rstrip(".")) for t in train.split("\n\n")] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_settings_are_chosen_on_text_that_neither_tests_nor_trains(folder):
    """Of ten documents the fifth and tenth test; with the fourth and ninth for validation six are left to train."""
    train, judged = corpora.c4("validation")
    assert [int(t.split()[1].rstrip(".")) for t in judged.split("\n\n")] == [3, 8]
    assert [int(t.split()[1].rstrip(".")) for t in train.split("\n\n")] == [0, 1, 2, 5, 6, 7]
    assert corpora.wikitext2("validation")[1].startswith(" = A valid")
    assert corpora.wikitext2("validation")[0] == corpora.wikitext2()[0]
    topics = [corpora.split(list(range(1000)), part) for part in ("test", "validation")]
    assert not set(topics[0][1]) & {*topics[1][0], *topics[1][1]}, "no topic of the test has a part in a choice"
    task, chosen = tiny(), tiny(judged="validation")
    assert chosen.provenance()["judged"] == "validation"
    assert not torch.equal(task.test_windows, chosen.test_windows)
    assert not torch.equal(next(task.reference().parameters()), next(chosen.reference().parameters())), "trained on less text"


def test_texts_are_downloaded_once_and_are_the_files_that_were_published(folder, monkeypatch):
    """A stand-in for Hugging Face's loader, with the rows as the hub has them: an empty one for a line of one space."""
    files, asked = {"train": " \n = A = \n \n a <unk> b \n", "validation": " = V = \n \n", "test": " \n = T = \n text \n \n"}, []

    def load_dataset(hub, config, split, streaming=False):
        asked.append((hub, config, split))
        if hub == "allenai/c4":
            assert streaming, "the whole set is 300 GB"
            return ({"text": f"page {i}", "url": "u"} for i in range(10**9))
        return {"text": [line if line != " \n" else "" for line in files[split].splitlines(keepends=True)]}

    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(corpora, "WIKITEXT_MD5", {n: hashlib.md5(files[s].encode()).hexdigest() for n, s in corpora.SPLITS.items()})
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for _ in range(2):
        assert corpora.wikitext2() == (files["train"], files["test"])
        assert corpora.wikitext2("validation")[1] == files["validation"]
        assert corpora.c4()[1].split("\n\n")[:2] == ["page 4", "page 9"]
        assert len(corpora.c4()[0].split("\n\n")) == 800
    assert len(asked) == 4
    (data.cache_folder() / corpora.WIKITEXT).unlink()
    files["test"] += "altered"
    with pytest.raises(UserError, match=r"download failed: ValueError: its test text is not the published one .*set WORKBENCH_DATA"):
        corpora.wikitext2()
    assert corpora.at_hand(corpora.WIKITEXT) is None, "nothing half or false is kept"


def test_texts_that_are_not_there_or_damaged_say_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, call in (("wikitext2.tar.xz", corpora.wikitext2), ("c4_en_sample.jsonl.gz", corpora.c4)):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:len(whole) // 2])
        with pytest.raises(UserError, match=f"{name} cannot be read: .* Replace it by an intact copy"):
            call()
        (folder / name).unlink()
        words = rf"{name} .*datasets, which would download it, is not installed\. Put it into a folder and set WORKBENCH_DATA"
        with pytest.raises(UserError, match=f"{words}.*'pydoc/tiny_llama' needs no data"):
            call()
    task = WikiText2("hub", parse(WikiText2.Params, {}, "task"))
    with pytest.raises(UserError, match="takes any causal language model: name its folder or hub id in the parameter `checkpoint`"):
        task.setup(context())


def test_a_folder_without_a_model_is_explained(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(language, "_loaded", {})
    task = WikiText2("hub", parse(WikiText2.Params, {"checkpoint": str(tmp_path)}, "task"))
    with pytest.raises(UserError, match="holds no causal language model that transformers can load"):
        task.setup(context())
