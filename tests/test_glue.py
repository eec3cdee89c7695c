"""Text classification: words and vocabulary by hand, padding that changes nothing, figures against scikit-learn, networks, data."""

from __future__ import annotations

import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.task_helpers import context, have, make, needs_data, train, untouched_generator
from tracking.errors import UserError
from workbench import data, data_texts
from workbench.boolean import split_parameters
from workbench.datasets import models_text as models
from workbench.datasets.glue import MRPC, RTE, SST2, CoLA
from workbench.datasets.models_text import CLS, PAD, SEP, UNKNOWN
from workbench.datasets.python_topics import PASSAGE, TOPICS, PythonTopics
from workbench.datasets.scores import f1, matthews
from workbench.datasets.texts import SPECIAL, TextTally, encode, vocabulary, words
from workbench.methods.supervised import test as measure

SMALL = {"width": 0.25, "layers": 1, "vocabulary": 400}


@pytest.fixture(scope="module")
def task():
    return make(PythonTopics, "bert_tiny", **SMALL)


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("It's 2 o'clock -- isn't it?", ["it's", "2", "o'clock", "-", "-", "isn't", "it", "?"]),
    ("naïve café, Ünïcode_name", ["naïve", "café", ",", "ünïcode", "_", "name"]), ("  ", []), ("U.S.", ["u", ".", "s", "."])])
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=60))
def test_words_lose_nothing_but_space(text):
    assert "".join(words(text)) == "".join(text.lower().split())


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), min_size=1, max_size=6), st.integers(5, 12))
def test_the_vocabulary_is_the_most_frequent_words(samples, size):
    texts = [(" ".join(sample),) for sample in samples]
    ids = vocabulary(texts, size)
    counts = Counter(word for sample in samples for word in sample)
    assert len(ids) == min(size - SPECIAL, len(counts))
    assert sorted(ids.values()) == list(range(SPECIAL, SPECIAL + len(ids)))
    order = sorted(ids, key=ids.get)
    assert [(-counts[w], w) for w in order] == sorted((-counts[w], w) for w in counts)[:len(ids)]


def test_pairs_have_separators_and_are_cut_at_the_longer_text():
    ids = {"a": 4, "b": 5}
    assert encode(("a z b",), ids, 16) == [CLS, 4, UNKNOWN, 5, SEP]
    assert encode(("a b", "b"), ids, 16) == [CLS, 4, 5, SEP, 5, SEP]
    assert encode(("a b a b a b", "b a"), ids, 8) == [CLS, 4, 5, 4, SEP, 5, 4, SEP]
    assert encode(("a " * 50,), ids, 8) == [CLS, 4, 4, 4, 4, 4, 4, SEP]


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), min_size=1, max_size=6))
def test_texts_come_back_from_their_bytes(pairs):
    arrays = data_texts.labelled_texts("train", pairs, np.arange(len(pairs)))
    assert data_texts.strings(arrays, "train") == pairs
    assert arrays["train_ends"].shape == (len(pairs), 2)


# --- figures ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_matthews_and_f1_are_those_of_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = np.array(rows).T
    counts = torch.from_numpy(metrics.confusion_matrix(labels, predicted, labels=[0, 1]))
    assert matthews(counts) == pytest.approx(metrics.matthews_corrcoef(labels, predicted) if len(set(labels)) > 1 or
                                             len(set(predicted)) > 1 else 0.0, abs=1e-12)
    assert f1(counts) == pytest.approx(metrics.f1_score(labels, predicted, zero_division=0), abs=1e-12)


def test_a_tally_adds_what_the_task_names(task):
    cola = CoLA("bert_tiny", CoLA.Params())
    cola.num_classes = 2
    tally = TextTally(cola, context())
    scores = torch.tensor([[2.0, 0], [0, 1], [0, 3], [1, 0]])
    for part in (slice(0, 1), slice(1, 4)):
        tally.add(scores[part], torch.tensor([0, 1, 0, 1])[part])
    result = tally.result()
    assert result["eval/accuracy"] == 0.5
    assert result["eval/matthews"] == 0.0
    assert set(result) == {"eval/loss", "eval/accuracy", "eval/matthews"}
    assert set(measure(task.build_model(context()), task, context())) == {"eval/loss", "eval/accuracy"}


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("bert_tiny", 4_385_920), ("bert_mini", 11_170_560), ("bert_base", 109_482_240)])
def test_parameters_of_the_published_sizes(name, count):
    """With BERT's 30,522 sub-words and 512 places, without the classifier (bert-base-uncased: 109,482,240)."""
    with torch.device("meta"):
        model = models.Bert(30_522, 512, 2, *models.MODELS[name])
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.classifier.parameters()) == count


def network(boolean: bool, features: float = 0.25) -> models.Bert:
    model = models.build("bert_tiny", 30, 20, 3, features, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():  # larger than BERT's, so that attention is not flat
        for p in model.parameters():
            p.mul_(8) if p.dim() > 1 else None
    if boolean:
        model = model.boolean(generator=torch.Generator().manual_seed(1))
        model.train()(torch.randint(4, 30, (8, 20), generator=torch.Generator().manual_seed(2)))  # thresholds learn the spread
    return model.eval()


@pytest.mark.parametrize("boolean", [False, True])
def test_padding_changes_nothing(boolean):
    model = network(boolean)
    ids = torch.tensor([[CLS, 7, 9, SEP, 12, 5, SEP], [CLS, 8, 8, 8, 8, SEP, PAD]])
    alone = torch.cat([model(ids[:1]), model(ids[1:, :6])])
    padded = model(torch.cat([ids, torch.full((2, 9), PAD)], 1))
    # other sums of the same numbers, values of order 1; a sign that turned would change a Boolean network by far more
    torch.testing.assert_close(padded, alone, atol=2e-5, rtol=0)
    assert (model(torch.tensor([[CLS, 7, 9, SEP, 12, 6, SEP]])) - alone[:1]).abs().max() > 1e-3, "a word does"


def test_padded_places_get_no_gradient():
    model = network(False)
    model(torch.tensor([[CLS, 7, SEP, PAD, PAD]])).sum().backward()
    assert not model.embedding.word.weight.grad[PAD].any()
    assert model.embedding.word.weight.grad[7].any()


def test_segments_change_behind_the_first_separator():
    embedding = models.Embedding(10, 8, 4)
    with torch.no_grad():
        embedding.word.weight.zero_()
        embedding.position.weight.zero_()
        embedding.segment.weight.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]]))
    out = embedding(torch.tensor([[CLS, 5, SEP, 6, 7, SEP, PAD]]))[0]
    assert (out[:, 0] > 0.5).tolist() == [True, True, True, False, False, False, False]


def test_attention_is_the_slow_one():
    q, k, v = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    got = models.SoftmaxAttention(2)(q, k, v, mask)
    for n in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            seen = mask[n].numpy()
            scores = q[n, :, head].numpy() @ k[n, seen, head].numpy().T / 2
            weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            assert got[n, :, head].numpy() == pytest.approx(weights @ v[n, seen, head].numpy(), rel=1e-10)


def test_the_boolean_network_has_six_boolean_projections_a_layer(task):
    with untouched_generator():
        model = task.build_model(context())
        boolean = model.boolean(generator=torch.Generator().manual_seed(1))
    flipped, real = split_parameters(boolean)
    assert sorted(p.numel() for p in flipped) == [32 * 32] * 4 + [32 * 128] * 2
    theirs = {name for name, p in boolean.named_parameters() if any(p is r for r in real)}
    gains = {f"layers.0.{part}.{p}" for part in ("attention.inputs", "attention.out", "feed_forward") for p in ("shift", "gain")}
    ours = {name for name, _ in model.named_parameters() if "attention" not in name and "feed_forward" not in name}
    assert theirs == ours | gains
    seen = {}
    for path in ("layers.0.attention.inputs.layers.0", "layers.0.attention.out.layers.0", "layers.0.feed_forward.first",
                 "layers.0.feed_forward.second"):
        boolean.get_submodule(path).register_forward_pre_hook(lambda m, x, path=path: seen.update({path: set(x[0].unique().tolist())}))
    boolean(task.batch(torch.arange(4))[0])
    assert set(map(frozenset, seen.values())) == {frozenset({-1.0, 1.0})}
    assert len(seen) == 4


def test_features_that_heads_cannot_share_are_refused():
    with pytest.raises(UserError, match="attention heads"):
        models.build("bert_tiny", 10, 8, 2, 129 / 128, 1, torch.Generator())


@pytest.mark.parametrize("boolean", [False, True])
def test_the_embedded_task_is_learnt(task, boolean):
    model = task.build_model(context())
    model = model.boolean(generator=torch.Generator().manual_seed(1)) if boolean else model
    train(model, task, steps=60, batch=32, lr=3e-3, eta=300.0)
    # measured with two seeds: 0.70 to 0.82; the largest of the four topics is 0.27 of the test
    assert measure(model, task, context())["eval/accuracy"] > 0.5


# --- the tasks ----------------------------------------------------------------------------------------------


def test_passages_of_the_manual(task):
    (train_x, train_y), (test_x, test_y) = task.texts("train"), task.texts("test")
    assert len(train_y) == len(train_x) > 3 * len(test_y) > 200
    assert set(train_y) == set(range(len(TOPICS)))
    assert not {x for (x,) in train_x} & {x for (x,) in test_x}
    assert all(len(x.split()) == PASSAGE for (x,) in train_x)
    assert np.bincount(test_y).max() < 0.4 * len(test_y)
    assert "Python" in task.provenance()["source"]


def test_inputs_are_the_encoded_texts(task):
    texts, labels = task.texts("test")
    x, y = task.test_batch(0, len(labels))
    for row, sample in zip(x.tolist(), texts, strict=True):
        assert [i for i in row if i != PAD] == encode(sample, task.ids, 32)
    assert y.tolist() == labels.tolist()
    assert (x[:, -1] != PAD).any(), "a batch is as long as its longest text"
    assert max(task.ids.values()) < 400


def test_the_energy_model_sees_the_network_in_both_forms(task):
    from tracking.energy_model.trace import trace

    model = task.build_model(context())
    layers = {layer.name: layer.kind for layer in trace(model.boolean(generator=torch.Generator().manual_seed(1)), task.example(2))}
    assert sum(kind == "linear" for kind in layers.values()) == 6 + 2
    assert sum(kind == "matmul" for kind in layers.values()) == 2


def test_a_machine_without_the_texts_is_told_of_the_embedded_task(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"glue_sst2\.parquet") as caught:
        make(SST2, "bert_tiny")
    assert "'python_topics/bert_tiny' needs no data" in str(caught.value)
    assert "workbench data fetch sst2" in str(caught.value)


def test_a_download_of_mrpc_joins_training_and_validation(monkeypatch, tmp_path):
    asked = []

    def load_dataset(hub, config, split):
        asked.append((hub, config, split))
        count = 4076 if "train" in split else 1725
        return {"sentence1": ["a"] * count, "sentence2": ["b c"] * count, "label": [0, 1] * (count // 2) + [1] * (count % 2)}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, __version__="5"))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    assert data_texts.strings(data.load("mrpc"), "test")[0] == ("a", "b c")
    assert asked == [("nyu-mll/glue", "mrpc", "train+validation"), ("nyu-mll/glue", "mrpc", "test")]


@needs_data
@pytest.mark.parametrize(("cls", "sizes", "share"), [
    # share of label 1 in training: published, or counted in GLUE's own files
    (SST2, (67_349, 872), 37_569 / 67_349), (CoLA, (8_551, 1_043), 6_023 / 8_551), (RTE, (2_490, 277), 1_241 / 2_490),
    (MRPC, (4_076, 1_725), 2_753 / 4_076)])
def test_published_counts_of_glue(cls, sizes, share):
    have(cls.dataset)
    arrays = data.load(cls.dataset)
    assert (len(arrays["train_y"]), len(arrays["test_y"])) == sizes
    assert arrays["train_y"].mean() == pytest.approx(share, abs=1e-12)
    texts = data_texts.strings(arrays, "test")
    assert {len(sample) for sample in texts} == {len(data.DATASETS[cls.dataset].texts)}
    assert all(all(sample) for sample in texts)


@needs_data
def test_a_part_of_a_real_set_is_balanced_and_its_vocabulary_its_own():
    have("rte")
    task = make(RTE, "bert_tiny", train_size=100, test_size=20)
    assert torch.bincount(task.train_y).tolist() == [50, 50]
    texts, labels = task.texts("train")
    seen = {word for i in data.balanced_subset(labels, 100) for text in texts[i] for word in words(text)}
    assert set(task.ids) == seen
    assert task.train_x.shape == (100, 128)
    assert ((task.train_x == SEP).sum(1) == 2).all()
