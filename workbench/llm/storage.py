"""Files of a compressed model: safetensors written in one piece, each with its checksum in a manifest.

A folder holds ``compression.json`` (the manifest), ``config.json``, one ``block-NNNNN.safetensors`` a decoder block and
``outside.safetensors`` (embeddings, last norm, head); while a compression is under way also ``partial/``, a file for
each finished matrix.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from tracking.errors import UserError
from tracking.folder import write_atomic
from workbench.llm.packed import Packed

MANIFEST = "compression.json"
VERSION = 2
MARK = "::"
"""Between a matrix's name and its tensor's in a block's file."""


def libraries(*names: str) -> None:
    """Raise a readable error when a library that language models need is not installed."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and language "
                        f"models need "
                        f"{'it' if len(missing) == 1 else 'them'}: pip install 'efficient-workbench[llm]'.")


@contextmanager
def quietly() -> Iterator[None]:
    """While it lasts, transformers draws no progress bars; what was set is set again afterwards."""
    from transformers.utils import logging

    try:
        gguf = import_module("transformers.modeling_gguf_pytorch_utils")
    except ImportError:  # private to transformers, so it may move
        gguf = None
    shown, direct = logging.is_progress_bar_enabled(), getattr(gguf, "tqdm", None)
    logging.disable_progress_bar()
    if direct is not None:
        gguf.tqdm = logging.tqdm  # its bar does not ask the switch
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if direct is not None:
            gguf.tqdm = direct


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, Any]:
    """Write a safetensors file in one piece; return its ``sha256`` and ``bytes``. ``facts`` go into its header, with a
    checksum of the tensors."""
    libraries("safetensors")
    from safetensors.torch import save_file

    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # straight from the tensors: no second copy of them in memory
    try:
        save_file(tensors, temporary, {"checksum": checksum(tensors), **facts})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        found = {"sha256": file_sha256(temporary), "bytes": temporary.stat().st_size}
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return found


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """A rename is durable only once the folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts of a file. A file that is missing, cut short or altered raises
    :class:`tracking.errors.UserError`."""
    libraries("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}. The compressed model is not whole; compress "
                        f"again.") from None
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{path} is damaged: its checksum is {found[:12]}…, the manifest says {sha256[:12]}…. Take an "
                        f"intact copy, "
                        "or remove the file and compress again.")
    try:
        return load(data), header(data).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and compress again.") from None


def header(data: bytes | memoryview) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8:8 + length]))


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def facts_of(packed: Packed) -> dict[str, Any]:
    """What of a matrix is not a tensor: JSON."""
    return {"format": packed.format, "shape": list(packed.shape), "meta": packed.meta}


def packed_from(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Packed:
    """The inverse of :func:`facts_of`."""
    return Packed(facts["format"], tuple(facts["shape"]), dict(tensors), dict(facts["meta"]))


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest, the last file of a folder: a folder without one is not finished. It carries a checksum of
    itself."""
    body = json.dumps({"version": VERSION, **content}, indent=1, sort_keys=True)
    write_atomic(folder / MANIFEST, json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": json.loads(body)},
                                               indent=1, sort_keys=True))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder; anything else raises :class:`tracking.errors.UserError`."""
    path = folder / MANIFEST
    if not path.is_file():
        partly = (folder / "partial").is_dir() or any(folder.glob("block-*.safetensors"))
        raise UserError(f"{folder} holds "
                        f"{'an unfinished compression; run compress() on it again to end it' if partly else 'no compressed model'}"
                        f" (there is no {MANIFEST}).")
    try:
        outer = json.loads(path.read_text())
        body = outer["body"]
        whole = hashlib.sha256(json.dumps(body, indent=1, sort_keys=True).encode()).hexdigest() == outer["sha256"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: its checksum does not fit. Take an intact copy, or compress again.")
    if body["version"] != VERSION:
        raise UserError(f"{path} is of version {body['version']}; this code reads version {VERSION}.")
    return body
