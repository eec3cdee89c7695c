"""Text classification without data: which topic of Python's own manual a passage is from."""

from __future__ import annotations

import platform

import numpy as np

from workbench.datasets.texts import TextParams, Texts, TextTask
from workbench.params import Field

TOPICS = ("debugger", "formatstrings", "string-methods", "import")
"""Keys of ``pydoc_data.topics``: long, and none contains another."""
PASSAGE = 24  # words
EVERY = 5  # passages, of which one tests


class TopicsParams(TextParams):
    """Small enough for seconds."""

    vocabulary: int = Field(1000, ge=10, le=1_000_000, description="ids of words, the four special ones included; rarer words share one")
    length: int = Field(32, ge=8, le=512, description="ids of a text or a pair, with the special ones; longer ones are cut")
    width: float = Field(0.5, gt=0, le=4, description="factor on the network's features")


class PythonTopics(TextTask):
    """Passages of 24 words from four topics of the manual that comes with CPython, some 400 to train and 100 to test.

    Every fifth passage tests. The texts differ a little between versions of Python.
    """

    dataset = "python_topics"
    models = ("bert_tiny",)
    title = "Topics of the Python manual"
    kind = "text_classification"
    embedded = True

    Params = TopicsParams

    def texts(self, split: str) -> tuple[Texts, np.ndarray]:
        from pydoc_data.topics import topics

        found: Texts = []
        labels = []
        for label, topic in enumerate(TOPICS):
            parts = topics[topic].split()
            passages = [" ".join(parts[i:i + PASSAGE]) for i in range(0, len(parts) - PASSAGE + 1, PASSAGE)]
            mine = [passage for i, passage in enumerate(passages) if (i % EVERY == EVERY - 1) == (split == "test")]
            found += [(passage,) for passage in mine]
            labels += [label] * len(mine)
        return found, np.array(labels, dtype=np.int64)

    def provenance(self) -> dict[str, str]:
        return super().provenance() | {"source": f"pydoc_data of Python {platform.python_version()}"}
