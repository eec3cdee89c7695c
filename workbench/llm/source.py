"""Where the weights come from: a model in memory, or a folder of safetensors shards that is opened one decoder block
at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.architecture import Layout, tied_names
from workbench.llm.storage import checksum, libraries

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
"""Types of safetensors that a model's weights have."""


class Memory:
    """A model that is in memory already. It is changed in place."""

    folder: Path | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layout: Layout

    def fingerprint(self) -> str:
        """Hash of all weights."""
        return checksum(dict(self.model.state_dict()))

    @contextmanager
    def entrance(self) -> Iterator[nn.Module]:
        """The model with what stands before the first block."""
        yield self.model

    def open(self, index: int) -> nn.Module:
        """Block ``index`` with its weights."""
        return self.layout.blocks(self.model)[index]

    def close(self, index: int) -> None:
        """Give a block's weights back, unchanged, where they can be had again."""

    def finish(self) -> nn.Module:
        """The model with all that is no block."""
        return self.model


class Folder:
    """A folder as ``save_pretrained`` writes it. The model is built without weights; those of a block are read when it
    is opened.

    Args:
        dtype: of the weights that are read; what is not compressed is kept in it, too. ``None``: as they lie in the
            shards.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        self.folder, self.dtype = folder, dtype
        self.shards = shards_of(folder)
        self.model = skeleton(folder)
        self.layout: Layout

    def fingerprint(self) -> str:
        """Hash of the configuration and of all shards."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(set(self.shards.values())):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @contextmanager
    def entrance(self) -> Iterator[nn.Module]:
        """The model with all but its blocks; they are given back at the end."""
        names = self._outside()
        self._read(self.model, names)
        try:
            yield self.model
        finally:
            for name in names:
                _put(self.model, name, None)
            self.model.tie_weights()

    def open(self, index: int) -> nn.Module:
        block = self.layout.blocks(self.model)[index]
        prefix = f"{self.layout.prefix}.{index}."
        self._read(self.model, [name for name, p in self.model.named_parameters() if name.startswith(prefix) and p.is_meta])
        return block

    def close(self, index: int) -> None:
        prefix = f"{self.layout.prefix}.{index}."
        for name, _ in list(self.model.named_parameters()):
            if name.startswith(prefix):
                _put(self.model, name, None)

    def finish(self) -> nn.Module:
        self._read(self.model, self._outside())
        self.model.tie_weights()
        return self.model

    def _outside(self) -> list[str]:
        """Parameters and stored buffers outside the blocks that have no weights yet; of tied ones those that lie in
        the shards."""
        tied = {name for names in tied_names(self.model) for name in names}
        return [name for name, p in self.model.named_parameters(remove_duplicate=False)
                if not name.startswith(f"{self.layout.prefix}.") and p.is_meta and (name in self.shards or name not in tied)]

    def _read(self, model: nn.Module, names: list[str]) -> None:
        for name, tensor in read_named(self.shards, names, self.folder):
            _put(model, name, tensor if self.dtype is None or not tensor.is_floating_point() else tensor.to(self.dtype))


def _put(model: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Give a parameter a value; ``None`` takes it away again, so that only its shape is left."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    there = module._parameters[leaf]
    if tensor is not None and tensor.shape != there.shape:
        raise UserError(f"{name} has shape {tuple(tensor.shape)} in the shards; the configuration says "
                        f"{tuple(there.shape)}.")
    module._parameters[leaf] = nn.Parameter(there.detach().to("meta") if tensor is None else tensor, requires_grad=False)


def read_named(shards: dict[str, Path], names: list[str], folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, one after another, read straight into their memory: a mapped file would count twice while it is copied."""
    missing = [name for name in names if name not in shards]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: its shards do not hold the model that "
                        "config.json describes.")
    for path in sorted({shards[name] for name in names}):
        head, begin = shard_header(path)
        with path.open("rb") as file:
            for name in names:
                if shards[name] == path:
                    yield name, _read_tensor(file, head.get(name), begin, path, name)


def _read_tensor(file: BinaryIO, entry: dict[str, Any] | None, begin: int, path: Path, name: str) -> Tensor:
    if entry is None or entry["dtype"] not in DTYPES:
        raise UserError(f"{path} cannot be read: {name} is {'not in it' if entry is None else 'of type ' + entry['dtype']}. "
                        "Save the model anew by save_pretrained().")
    tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    file.seek(begin + entry["data_offsets"][0])
    if file.readinto(memoryview(tensor.reshape(-1).view(torch.uint8).numpy())) != tensor.nbytes:
        raise UserError(f"{path} cannot be read: it ends within {name}. Take an intact copy.")
    return tensor


def shard_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file holds, by name, and where its tensors begin."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is damaged")
            return json.loads(file.read(length)), 8 + length
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Take an intact copy.") from None


def shards_of(folder: Path) -> dict[str, Path]:
    """File by tensor name, from the index or from the only file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no safetensors file. Save the model there by save_pretrained(), or give the "
                        f"model itself.")
    return {name: path for path in files for name in shard_header(path)[0] if name != "__metadata__"}


def skeleton(folder: Path) -> nn.Module:
    """The model that ``config.json`` describes, its parameters without memory, its computed buffers (rotary
    frequencies) real."""
    libraries("transformers", "accelerate")
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} does not describe a causal language model that transformers knows: "
                        f"{str(error).splitlines()[0]}") from None
    model.tie_weights()
    return model.eval()


def model_folder(name: str | Path) -> Path:
    """A local folder as it is, or the local copy of a Hugging Face hub id, downloaded where it is not there yet."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if isinstance(name, Path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"There is no folder {name}.")
    libraries("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except Exception as error:  # the client raises errors of several libraries
        raise UserError(f"{name!r} is neither a folder nor a model that could be fetched from the hub "
                        f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). "
                        "Without a network give a local folder.") from None


def source_of(model: Any) -> Memory | Folder:
    """A source of whatever a person gives: a model, a folder or a hub id."""
    if isinstance(model, nn.Module):
        return Memory(model)
    if isinstance(model, (str, Path)):
        return Folder(model_folder(model))
    raise UserError(f"compress() takes a model, a folder or a hub id, not a {type(model).__name__}.")
