"""Texts to calibrate and judge language models on, from files of the data folder, from Hugging Face, or from what comes with Python.

What is judged on is the ``test`` part, or for the choice of settings the ``validation`` part, which no test has in it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tracking.errors import UserError
from tracking.folder import write_atomic
from workbench.data_sources import cache_folder, data_folder

Part = Literal["test", "validation"]
WIKITEXT = "wikitext2.tar.xz"
C4 = "c4_en_sample.jsonl.gz"
DOCUMENTS = 1000
"""Of C4, from the beginning of its training set."""
EVERY = 5
"""Of so many topics or documents one tests."""
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Splits of WikiText-2: in the names of its files, and at the hub."""
WIKITEXT_MD5 = {"train": "34a77ebe59551b3a3b3d8c0a2797c976", "valid": "d756d22ab2310e7e60c094bea5c5a8eb",
                "test": "781c9418ab9414bd09e4aad825aae752"}
"""Of the three files as they were published."""


def wikitext2(part: Part = "test") -> tuple[str, str]:
    """Training text and one of the others of WikiText-2 in its tokenised form, rare words as ``<unk>`` (Merity et al., ICLR 2017), files
    as they are."""
    files = ", ".join(f"wikitext-2/wiki.{name}.tokens" for name in SPLITS)
    path = found(WIKITEXT, f"WikiText-2, with {files} in it", _download_wikitext2)
    texts = _wikitext2(path, path.stat().st_mtime_ns)
    return texts["train"], texts["test" if part == "test" else "valid"]


def c4(part: Part = "test") -> tuple[str, str]:
    """A sample of C4's English training documents (Raffel et al., JMLR 2020), divided by :func:`split`, joined by blank lines."""
    path = found(C4, "documents of C4, a JSON object with `text` a line", _download_c4)
    train, judged = split(_c4(path, path.stat().st_mtime_ns), part)
    return "\n\n".join(train), "\n\n".join(judged)


def pydoc(part: Part = "test") -> tuple[str, str]:
    """Python's own manual as ``pydoc_data`` has it, topics in the order of their names divided by :func:`split`."""
    train, judged = split(_pydoc(), part)
    return "\n".join(train), "\n".join(judged)


def split(parts: list[str], part: Part = "test") -> tuple[list[str], list[str]]:
    """Parts to train and parts to judge on. Every fifth tests. For validation the one before each of these is judged on, and neither
    trains."""
    tests, validates = EVERY - 1, EVERY - 2
    if part == "test":
        return [p for i, p in enumerate(parts) if i % EVERY != tests], parts[tests::EVERY]
    return [p for i, p in enumerate(parts) if i % EVERY < validates], parts[validates::EVERY]


def at_hand(file: str) -> Path | None:
    """A file of the data folder or of the cache."""
    return next((folder / file for folder in filter(None, (data_folder(), cache_folder())) if (folder / file).is_file()), None)


def found(file: str, what: str, download: Callable[[Any], bytes]) -> Path:
    """The file, downloaded into the cache through Hugging Face ``datasets`` where it is not at hand."""
    if (path := at_hand(file)) is not None:
        return path
    try:
        import datasets

        path = cache_folder() / file
        write_atomic(path, download(datasets))
        return path
    except ImportError:
        reason = "The package datasets, which would download it, is not installed"
    except Exception as error:  # the loader raises errors of a dozen libraries
        reason = f"Its download failed: {type(error).__name__}{': ' * bool(str(error))}{str(error).partition(chr(10))[0]}"
    raise UserError(f"{file} ({what}) is neither in {data_folder() or 'the folder WORKBENCH_DATA names (not set)'} "
                    f"nor in {cache_folder()}. {reason.rstrip('.')}. "
                    "Put it into a folder and set WORKBENCH_DATA to it. The task 'pydoc/tiny_llama' needs no data.") from None


# --- files ----------------------------------------------------------------------------------------------------


@cache
def _wikitext2(path: Path, stamp: int) -> dict[str, str]:
    try:
        with tarfile.open(path) as archive:
            return {name: archive.extractfile(f"wikitext-2/wiki.{name}.tokens").read().decode() for name in SPLITS}
    except (tarfile.TarError, KeyError, OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Replace it by an intact copy.") from None


@cache
def _c4(path: Path, stamp: int) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}. Replace it by an intact copy.") from None


@cache
def _pydoc() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # some versions of the file hold escapes that are none
        from pydoc_data.topics import topics
    return [topics[name] for name in sorted(topics)]


# --- downloads ------------------------------------------------------------------------------------------------


def _download_wikitext2(datasets: Any) -> bytes:
    """The three files as they were published: the hub has their lines, and an empty row for a line of one space."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=1) as archive:
        for name, source in SPLITS.items():
            rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-v1", split=source)["text"]
            text = "".join(row or " \n" for row in rows).encode()
            if (md5 := hashlib.md5(text, usedforsecurity=False).hexdigest()) != WIKITEXT_MD5[name]:
                raise ValueError(f"its {name} text is not the published one (MD5 {md5}, due is {WIKITEXT_MD5[name]})")
            entry = tarfile.TarInfo(f"wikitext-2/wiki.{name}.tokens")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return buffer.getvalue()


def _download_c4(datasets: Any) -> bytes:
    """The first documents, without the rest of the set."""
    rows = datasets.load_dataset("allenai/c4", "en", split="train", streaming=True)
    lines = [json.dumps({"text": row["text"]}) for row in islice(rows, DOCUMENTS)]
    return gzip.compress("\n".join(lines).encode() + b"\n")
