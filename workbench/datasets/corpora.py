"""Texts to calibrate and judge language models on, from files of the data folder or from what comes with Python."""

from __future__ import annotations

import gzip
import json
import tarfile
import warnings
from functools import cache
from pathlib import Path

from tracking.errors import UserError
from workbench.data_sources import cache_folder, data_folder

WIKITEXT = "wikitext2.tar.xz"
C4 = "c4_en_sample.jsonl.gz"
EVERY = 5
"""Of so many topics or documents one tests."""


@cache
def _wikitext2(path: Path, stamp: int) -> tuple[str, str]:
    try:
        with tarfile.open(path) as archive:
            parts = {split: archive.extractfile(f"wikitext-2/wiki.{split}.tokens").read().decode() for split in ("train", "test")}
    except (tarfile.TarError, KeyError, OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Replace it by an intact copy.") from None
    return parts["train"], parts["test"]


def wikitext2() -> tuple[str, str]:
    """Training and test text of WikiText-2 in its tokenised form, rare words as ``<unk>`` (Merity et al., ICLR 2017),
    files as they are."""
    path = find(WIKITEXT, "WikiText-2, with wikitext-2/wiki.train.tokens and wiki.test.tokens in it")
    return _wikitext2(path, path.stat().st_mtime_ns)


@cache
def _c4(path: Path, stamp: int) -> tuple[str, str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            documents = [json.loads(line)["text"] for line in file]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}. Replace it by an intact copy.") from None
    train, test = split(documents)
    return "\n\n".join(train), "\n\n".join(test)


def c4() -> tuple[str, str]:
    """A sample of C4's English training documents (Raffel et al., JMLR 2020): every fifth tests, joined by blank
    lines."""
    path = find(C4, "documents of C4, a JSON object with `text` a line")
    return _c4(path, path.stat().st_mtime_ns)


@cache
def pydoc() -> tuple[str, str]:
    """Python's own manual as ``pydoc_data`` has it: every fifth topic, in the order of their names, tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # some versions of the file hold escapes that are none
        from pydoc_data.topics import topics

    train, test = split([topics[name] for name in sorted(topics)])
    return "\n".join(train), "\n".join(test)


def split(parts: list[str]) -> tuple[list[str], list[str]]:
    """Parts to train and parts to test on."""
    return [p for i, p in enumerate(parts) if i % EVERY != EVERY - 1], parts[EVERY - 1::EVERY]


def find(file: str, what: str) -> Path:
    """A file of the data folder or of the cache."""
    for folder in filter(None, (data_folder(), cache_folder())):
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"{file} ({what}) is neither in {data_folder() or 'the folder WORKBENCH_DATA names (not set)'} "
                    f"nor in {cache_folder()}. "
                    "Put it into a folder and set WORKBENCH_DATA to it. The task 'pydoc/tiny_llama' needs no data.")
