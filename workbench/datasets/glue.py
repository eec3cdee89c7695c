"""Four tasks of GLUE: sentiment, acceptability, entailment, paraphrases (Wang et al., ICLR 2019, arXiv:1804.07461).

GLUE keeps the labels of its test sets; as everywhere in the field, figures are of the validation set (MRPC: of its original test set).
"""

from __future__ import annotations

from workbench.datasets.texts import TextParams, TextTask
from workbench.params import Field


class SST2(TextTask):
    """Sentiment of phrases from film reviews: 67,349 to train, 872 to test."""

    dataset = "sst2"
    models = ("bert_tiny", "bert_mini", "bert_base")
    title = "GLUE SST-2"
    kind = "text_classification"
    embedded = False


class CoLA(TextTask):
    """Acceptability of English sentences: 8,551 to train, 1,043 to test, seven in ten acceptable; judged by Matthews correlation."""

    dataset = "cola"
    models = ("bert_tiny", "bert_mini", "bert_base")
    title = "GLUE CoLA"
    kind = "text_classification"
    embedded = False

    figures = ("eval/matthews",)


class PairParams(TextParams):
    """Longer, as two texts share the ids."""

    length: int = Field(128, ge=8, le=512, description="ids of a text or a pair, with the special ones; longer ones are cut")


class RTE(TextTask):
    """Whether a text entails a sentence: 2,490 pairs to train, 277 to test."""

    dataset = "rte"
    models = ("bert_tiny", "bert_mini", "bert_base")
    title = "GLUE RTE"
    kind = "text_classification"
    embedded = False

    Params = PairParams


class MRPC(TextTask):
    """Whether two sentences from the news say the same: 4,076 pairs to train, 1,725 to test, two in three paraphrases; judged by F1 too."""

    dataset = "mrpc"
    models = ("bert_tiny", "bert_mini", "bert_base")
    title = "MRPC"
    kind = "text_classification"
    embedded = False

    Params = PairParams
    figures = ("eval/f1",)
