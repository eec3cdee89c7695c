"""A compressed model: it runs, reports its bits, is saved and loaded."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from tracking.folder import write_atomic
from workbench.llm.architecture import Layout, tied_names
from workbench.llm.linear import CompressedLinear, compressed_layers, replace
from workbench.llm.matrix import MatrixReport
from workbench.llm.packed import TERMS
from workbench.llm.storage import (
    MANIFEST,
    MARK,
    facts_of,
    file_sha256,
    libraries,
    packed_from,
    read_manifest,
    read_tensors,
    write_manifest,
    write_tensors,
)

if TYPE_CHECKING:
    from tracking.report import Table

CONFIG, OUTSIDE = "config.json", "outside.safetensors"
COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
          "merges.txt", "added_tokens.json", "chat_template.jinja")


@dataclass(repr=False)
class Compressed:
    """A model whose matrices are compressed, with what became of each."""

    model: nn.Module
    layout: Layout
    reports: dict[str, MatrixReport] = field(default_factory=dict)
    origin: Path | None = None
    """Folder the model came from, whose tokenizer is saved along."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Compressed({type(self.model).__name__}: {len(self.layers())} matrices at {self.bpw():.3f} bits a weight)"

    def layers(self) -> dict[str, CompressedLinear]:
        """The compressed layers by name."""
        return compressed_layers(self.model)

    def bits(self) -> dict[str, int]:
        """Bits by term over all compressed matrices, as they are stored now."""
        found: dict[str, int] = {}
        for layer in self.layers().values():
            for term, bits in layer.packed.bits().items():
                found[term] = found.get(term, 0) + bits
        return {term: found[term] for term in TERMS if term in found}

    def bpw(self) -> float:
        """Bits a weight of the compressed matrices, all terms."""
        return sum(self.bits().values()) / self._weights()

    def code_bpw(self) -> float:
        """Bits a weight of the compressed matrices without low rank and magnitudes."""
        return sum(layer.packed.code_bpw() * layer.in_features * layer.out_features for layer in self.layers().values()) / self._weights()

    def _weights(self) -> int:
        return sum(layer.in_features * layer.out_features for layer in self.layers().values())

    def kept(self) -> list[dict[str, Any]]:
        """What is not compressed, one row a tensor, with its ``bits`` and, for a tied one, the other names it goes
        by."""
        payload = set(self.layers())
        tied = {names[0]: names[1:] for names in tied_names(self.model)}
        return [{"tensor": name, "shape": tuple(p.shape), "numbers": p.numel(), "bits": 8 * p.nbytes,
                 "tied_with": ", ".join(tied.get(name, ()))}
                for name, p in self.model.named_parameters() if name.rpartition(".")[0].removesuffix(".master") not in payload]

    def size_bytes(self) -> int:
        """Bytes of all tensors as they are stored: compressed matrices and what is kept."""
        return (sum(self.bits().values()) + sum(row["bits"] for row in self.kept())) // 8

    def relative_error(self) -> float:
        """Root mean square of the matrices' relative Frobenius errors, each weighted by its number of weights."""
        rows = [r for r in self.reports.values() if not math.isnan(r.error)]
        count = sum(r.shape[0] * r.shape[1] for r in rows)
        return math.sqrt(sum(r.error**2 * r.shape[0] * r.shape[1] for r in rows) / count) if count else math.nan

    def report(self) -> Table:
        """A row a matrix: shape, format, bits term by term, code and total bits a weight, errors, seconds. What is
        kept is in the caption."""
        import pandas

        from tracking.report import Table

        table = pandas.DataFrame([r.row() for r in self.reports.values()])
        kept = self.kept()
        tied = [f"{row['tensor']} (also {row['tied_with']})" for row in kept if row["tied_with"]]
        return Table(table, f"{len(self.reports)} matrices at {self.bpw():.3f} bits a weight, {self.code_bpw():.3f} "
                            f"of them code. Kept as they "
                     f"are: {sum(row['numbers'] for row in kept):,} numbers in "
                     f"{sum(row['bits'] for row in kept) // 8:,} bytes"
                     f"{', among them the tied ' + '; '.join(tied) if tied else ''}.")

    def save(self, folder: str | Path, tokenizer: Any = None) -> Path:
        """Write all that :func:`load` needs. The tokenizer is the one given, else that of the model's own folder,
        where there is one."""
        folder = Path(folder)
        if (folder / MANIFEST).exists() or (folder / "partial").exists():
            raise UserError(f"{folder} holds a compressed model already. Name another folder, or remove it.")
        files = {file_of(i): write_block(folder, self.model, self.layout, i) for i in range(len(self.layout.names))}
        finish_folder(folder, self, files, {})
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder


def file_of(index: int) -> str:
    """Name of a block's file."""
    return f"block-{index:05d}.safetensors"


def write_block(folder: Path, model: nn.Module, layout: Layout, index: int, facts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write one block: the payload of its compressed matrices, and its other tensors as they are. Returns checksum and
    bytes."""
    block, prefix = layout.blocks(model)[index], f"{layout.prefix}.{index}"
    tensors: dict[str, Tensor] = {}
    matrices = {}
    for name, layer in compressed_layers(block).items():
        packed = layer.packed
        matrices[f"{prefix}.{name}"] = facts_of(packed)
        tensors |= {f"{prefix}.{name}{MARK}{key}": t for key, t in packed.tensors.items()}
    tensors |= {f"{prefix}.{name}": t for name, t in _others(block).items()}
    return write_tensors(folder / file_of(index), tensors, {"matrices": json.dumps(matrices), **(facts or {})})


def _others(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers that belong to no compressed payload; biases of compressed layers are among
    them."""
    inside = compressed_layers(module)
    return {name: t for name, t in module.state_dict().items()
            if not any(name.startswith(f"{layer}.packed_") or name.startswith(f"{layer}.master.") for layer in inside)}


def finish_folder(folder: Path, compressed: Compressed, files: Mapping[str, Mapping[str, Any]], recipe: Mapping[str, Any]) -> None:
    """Write what stands outside the blocks, the configuration, the tokenizer's files and last of all the manifest."""
    model, prefix = compressed.model, f"{compressed.layout.prefix}."
    twins = {name for names in tied_names(model) for name in names[1:]}
    outside = {name: t for name, t in model.state_dict().items() if not name.startswith(prefix) and name not in twins}
    files = dict(files) | {OUTSIDE: write_tensors(folder / OUTSIDE, outside, {})}
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # that of a file the model was read from
    text = json.dumps(config, indent=1, sort_keys=True, default=str)
    write_atomic(folder / CONFIG, text)
    for name in COPIED:
        if compressed.origin is not None and (compressed.origin / name).is_file():
            shutil.copyfile(compressed.origin / name, folder / name)
    write_manifest(folder, {"files": files, "config": hashlib.sha256(text.encode()).hexdigest(),
                            "recipe": recipe, "prefix": compressed.layout.prefix, "matrices": compressed.layout.names,
                            "reports": {name: asdict(r) for name, r in compressed.reports.items()}})


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Compressed:
    """A model that was saved by :meth:`Compressed.save` or by ``compress(..., folder=...)``, checked file by file.

    Args:
        dtype: of what is not compressed, and of what compressed matrices are decoded to; ``None``: as saved.

    Raises :class:`tracking.errors.UserError` for a folder that is unfinished, incomplete or damaged.
    """
    from workbench.llm.source import skeleton

    folder = Path(folder)
    manifest = read_manifest(folder)
    libraries("transformers", "accelerate")
    _check_config(folder, manifest)
    model = skeleton(folder)
    layout = Layout(manifest["prefix"], tuple(tuple(names) for names in manifest["matrices"]))
    for file, facts in manifest["files"].items():
        tensors, head = read_tensors(folder / file, facts["sha256"])
        _fill(model, tensors, json.loads(head.get("matrices", "{}")), dtype)
    model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.is_meta]
    if empty:
        raise UserError(f"{folder} lacks {', '.join(empty[:5])}: the compressed model is not whole. Compress again.")
    reports = {name: MatrixReport(**(r | {"shape": tuple(r["shape"])})) for name, r in manifest["reports"].items()}
    return Compressed(model.to(device), layout, reports, folder)


def _check_config(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A configuration that was altered makes another model of the same weights."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} lacks {CONFIG}: the compressed model is not whole. Take an intact copy, or compress again.")
    if file_sha256(path) != manifest["config"]:
        raise UserError(f"{path} is damaged: its checksum does not fit the manifest's. Take an intact copy, or compress again.")


def payload_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one matrix among those of its block's file."""
    return {key.partition(MARK)[2]: t for key, t in tensors.items() if key.startswith(name + MARK)}


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], matrices: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Put the tensors of one file into a model without weights."""
    cast = {name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in tensors.items() if MARK not in name}
    for name, facts in matrices.items():
        layer = replace(model, name, packed_from(facts, payload_of(name, tensors)))
        layer.dtype = dtype or next((t.dtype for t in cast.values() if t.is_floating_point()), torch.float32)
    for name, tensor in cast.items():
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor
