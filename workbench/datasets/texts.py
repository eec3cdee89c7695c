"""Text classification with a vocabulary of whole words, built from the training texts: nothing has to be downloaded for it.

A text is lower-cased and split into words and signs; the most frequent ones get ids of their own, all others share one. Figures are not
comparable with those of pretrained models and their sub-word vocabularies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from workbench import data
from workbench.data_texts import strings
from workbench.datasets import models_text as models
from workbench.datasets.models_text import CLS, PAD, SEP, UNKNOWN
from workbench.datasets.scores import confusion, f1, matthews
from workbench.method import Context
from workbench.params import Field
from workbench.task import SupervisedParams, SupervisedTask, Tally

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_")
SPECIAL = 4  # ids with a meaning of their own

Texts = list[tuple[str, ...]]


class TextParams(SupervisedParams):
    """Size of the data, of the vocabulary and of the network."""

    vocabulary: int = Field(10_000, ge=10, le=1_000_000, description="ids of words, the four special ones included; rarer words share one")
    length: int = Field(64, ge=8, le=512, description="ids of a text or a pair, with the special ones; longer ones are cut")
    width: float = Field(1.0, gt=0, le=4, description="factor on the network's features")
    layers: int = Field(0, ge=0, le=48, description="layers of the network; 0 = the model's own number")


def words(text: str) -> list[str]:
    """Lower-case words (letters and digits, with inner apostrophes) and single signs of a text."""
    return WORD.findall(text.lower())


def vocabulary(texts: Iterable[tuple[str, ...]], size: int) -> dict[str, int]:
    """Ids from 4 on for the ``size - 4`` most frequent words of the texts; of equally frequent ones the first in the alphabet."""
    counts = Counter(word for sample in texts for text in sample for word in words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size - SPECIAL]
    return {word: SPECIAL + i for i, word in enumerate(ranked)}


def encode(sample: Sequence[str], ids: dict[str, int], length: int) -> list[int]:
    """``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]`` as ids, at most ``length``: words go from the end of the longer text first."""
    parts = [[ids.get(word, UNKNOWN) for word in words(text)] for text in sample]
    while sum(map(len, parts)) > length - 1 - len(parts):
        max(parts, key=len).pop()
    return [CLS, *(i for part in parts for i in (*part, SEP))]


class TextTally(Tally):
    """Loss and accuracy, and what the task names beside them, of a binary task."""

    def __init__(self, task: TextTask, ctx: Context) -> None:
        super().__init__(task, ctx)
        self.counts = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64, device=ctx.device)

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        super().add(outputs, labels)
        self.counts += confusion(outputs.argmax(-1), labels, self.task.num_classes)

    def result(self) -> dict[str, float]:
        more = {"eval/matthews": matthews, "eval/f1": f1}
        return super().result() | {name: more[name](self.counts) for name in self.task.figures}


class TextTask(SupervisedTask):
    """Base of the text tasks. Inputs are word ids, int64 ``(n, length)``, :data:`PAD` behind the text; a batch is as long as its longest.

    After :meth:`setup`: ``ids`` is the vocabulary, ``train_x, test_x`` int64 on the device. A subclass gives :meth:`texts`.
    """

    Params = TextParams
    params: TextParams
    figures: ClassVar[tuple[str, ...]] = ()
    """Metrics beside loss and accuracy, of a binary task: ``eval/matthews``, ``eval/f1``."""

    def texts(self, split: str) -> tuple[Texts, np.ndarray]:
        """Texts and labels (int64) of ``train`` or ``test``, all there are."""
        arrays = data.load(self.dataset)
        return strings(arrays, split), arrays[f"{split}_y"]

    def setup(self, ctx: Context) -> None:
        p = self.params
        for split, size in (("train", p.train_size), ("test", p.test_size)):
            texts, labels = self.texts(split)
            rows = data.balanced_subset(labels, size)
            texts = [texts[i] for i in rows]
            if split == "train":
                self.ids = vocabulary(texts, p.vocabulary)
                self.num_classes = int(labels.max()) + 1
            coded = [encode(sample, self.ids, p.length) for sample in texts]
            x = torch.full((len(coded), p.length), PAD)
            for row, sample in zip(x, coded, strict=True):
                row[:len(sample)] = torch.tensor(sample)
            setattr(self, f"{split}_x", x.to(ctx.device))
            setattr(self, f"{split}_y", torch.from_numpy(labels[rows]).to(ctx.device))
        self.sample_shape = (p.length,)

    def build_model(self, ctx: Context) -> nn.Module:
        p, generator = self.params, ctx.generator("init", cpu=True)
        # as many rows as the vocabulary may have: the network is the same for every size of the training set
        return models.build(self.model_name, p.vocabulary, p.length, self.num_classes, p.width, p.layers, generator).to(ctx.device)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        index = index.to(self.train_y.device)
        return _trimmed(self.train_x[index]), self.train_y[index]

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return _trimmed(self.test_x[start:stop]), self.test_y[start:stop]

    def example(self, size: int) -> Any:
        """Texts of full length."""
        return torch.full((size, *self.sample_shape), UNKNOWN)

    def tally(self, ctx: Context) -> Tally:
        return TextTally(self, ctx)

    def provenance(self) -> dict[str, str]:
        facts = {"vocabulary": str(len(self.ids) + SPECIAL)}
        return super().provenance() | facts | (data.provenance(self.dataset) if self.dataset in data.DATASETS else {})


def _trimmed(ids: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return ids[:, :int((ids != PAD).sum(1).max())]
