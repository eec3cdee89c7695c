"""Compress a causal language model matrix by matrix, one decoder block in memory at a time, and go on where an earlier
call was cut off."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from tracking.folder import write_atomic
from tracking.memory import give_back
from workbench.llm.architecture import device_of, layout_of
from workbench.llm.calibration import LayerStatistics, Stream, fisher
from workbench.llm.compressed import Compressed, file_of, finish_folder, payload_of, write_block
from workbench.llm.linear import replace
from workbench.llm.matrix import MatrixReport, check_quantiser, describe, judge, plan_of, quantise
from workbench.llm.named import method
from workbench.llm.packed import Packed
from workbench.llm.source import Folder, Memory, source_of
from workbench.llm.storage import MANIFEST, checksum, facts_of, file_sha256, packed_from, read_manifest, read_tensors, write_tensors
from workbench.llm.tuning import BlockTuning, tune_block

TRIALS = "trials.json"
Progress = Callable[[int, int, MatrixReport | None], None]
"""Called after each matrix with how many are done, how many there are, and what became of this one; ``None`` while a budget is planned."""


def compress(model: nn.Module | str | Path, quantiser: Callable[..., Packed] | str, *, calibration: Tensor | None = None,
             folder: str | Path | None = None, layers: Iterable[int] | None = None, targets: Iterable[str] | None = None,
             budget: float | None = None, tuning: BlockTuning | None = None, progress: Progress | None = None, seed: int = 0,
             dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Compressed:
    """Compress the linear layers of the decoder blocks.

    Embeddings, norms and the head stay as they are, tied or not; :meth:`Compressed.kept` lists them.

    Args:
        model: a Hugging Face causal language model (or one of the same layout), which is changed in place and left in evaluation
            mode; or a folder or hub id, whose safetensors are then read one block at a time.
        quantiser: what compresses one matrix, see :class:`workbench.llm.matrix.Quantiser`; or the name of a method, which is then
            taken with its defaults (:func:`workbench.llm.named.method` takes settings).
        calibration: token ids (sequences, length). Needed by a quantiser that asks for statistics, and by ``tuning``;
            otherwise it only adds the activation-weighted errors to the report. The inputs of a block come through the
            compressed blocks before it.
        folder: each finished matrix is written there, and the whole model at the end. The same call again goes on
            after the last matrix that was finished, to a bit-identical end (same device and number of threads).
        layers: indices of the blocks to compress; ``None``: all.
        targets: last parts of the names of the layers to compress, such as ``q_proj``; ``None``: all linear layers of
            the blocks.
        budget: bits a weight to keep to, all terms, over all matrices, for a quantiser that plans: ``plan(matrices, budget)`` gives
            a quantiser for each name. One that also takes ``trials``, a mapping from names to JSON, goes on where it was cut off.
        tuning: tune the low-rank parts and magnitudes of each block, once its matrices are compressed, to the outputs
            of the block as it was.
        progress: called after each matrix (see :data:`Progress`); with a budget, all matrices are gone through twice.
        seed: of all that is drawn; each matrix has a generator of its own.
        dtype: of the weights read from a folder; ``None``: as they lie there.
        device: where blocks are compressed, such as ``cuda``. A block is moved there and, compressed, to where it was; of
            the model only the present block and the calibration's hidden states take room there. ``None``: where the model is.
    """
    quantiser = method(quantiser) if isinstance(quantiser, str) else quantiser
    source = source_of(model)
    if isinstance(source, Folder):
        source.dtype = dtype
    elif dtype is not None:
        raise UserError("`dtype` is for models that are read from a folder; cast the model before you give it.")
    source.layout = layout_of(source.model, targets, layers)
    source.model.eval()  # what is dropped at random in training would enter the statistics
    if not source.layout.matrices:
        raise UserError("Nothing is left to compress: `layers` or `targets` leave out every matrix.")
    needs = check_quantiser(quantiser)
    if calibration is None and (needs or tuning is not None):
        raise UserError(f"{type(quantiser).__name__ if needs else 'Block-wise tuning'} needs calibration: give token "
                        f"ids (sequences, length), "
                        "taken from a text that is not tested on.")
    if "fisher" in needs and isinstance(source, Folder):
        raise UserError(f"{type(quantiser).__name__} needs gradients of the whole model: load it and give the model "
                        f"itself, not its folder.")
    work = _Work(source, quantiser, calibration, tuning, seed, progress, Path(folder) if folder is not None else None,
                 None if device is None else torch.device(device))
    with torch.no_grad():
        return work.run(budget)


@dataclass
class _Work:
    """One call of :func:`compress`."""

    source: Memory | Folder
    quantiser: Callable[..., Packed]
    calibration: Tensor | None
    tuning: BlockTuning | None
    seed: int
    progress: Progress | None
    folder: Path | None
    device: torch.device | None
    reports: dict[str, MatrixReport] = field(default_factory=dict)
    plan: Mapping[str, Callable[..., Packed]] = field(default_factory=dict)

    def run(self, budget: float | None) -> Compressed:
        source, layout = self.source, self.source.layout
        recipe = {}
        if self.folder is not None:
            recipe = self.recipe(budget)
            self._open_folder(recipe)
        mark = {"recipe": json.dumps(recipe, sort_keys=True)}
        if budget is not None and not (self.folder and all((self.folder / file_of(i)).is_file() for i in range(len(layout.names)))):
            self._plan(budget, recipe)
        squares = {}
        if "fisher" in self.quantiser.needs:
            with torch.enable_grad():
                squares = fisher(source.model, layout.matrices, self.calibration)
        stream = self._stream()
        files: dict[str, Any] = {}
        for index, names in enumerate(layout.names):
            files[file_of(index)] = self._block(index, names, stream, squares, mark)
        model = source.finish()
        compressed = Compressed(model, layout, self.reports, source.folder)
        if self.folder is not None:
            finish_folder(self.folder, compressed, files, recipe)
            shutil.rmtree(self.folder / "partial", ignore_errors=True)
        return compressed

    def _stream(self) -> Stream | None:
        if self.calibration is None:
            return None
        with self.source.entrance() as model:
            stream = Stream.at_entrance(model, self.source.layout, self.calibration)
        return stream if self.device is None else stream.to(self.device)

    def _block(self, index: int, names: tuple[str, ...], stream: Stream | None, squares: dict[str, Tensor],
               mark: Mapping[str, str]) -> dict[str, Any]:
        """Compress one block, or take it from its file; move the stream behind it."""
        block = self.source.open(index)
        home, prefix = device_of(block), f"{self.source.layout.prefix}.{index}."
        file = self.folder and self.folder / file_of(index)
        finished = bool(file) and file.is_file()
        if finished:
            self._take(file, block, prefix)
        else:
            self._move(block)
            target = torch.cat(list(stream.run(block))) if self.tuning is not None and names else None
            self._matrices(block, prefix, names, stream, squares, mark)
            self._move(block)  # matrices that came from their files
            if target is not None:
                with torch.enable_grad():
                    tune_block(stream, block, target, self.tuning, self.seed, index)
        if stream is not None:
            self._move(block)
            if any(self.source.layout.names[index + 1:]):  # behind the last matrix nobody looks at the stream
                stream.advance(block)
        if self.device is not None:
            block.to(home)
        if finished:
            return {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        reports = json.dumps([asdict(self.reports[n]) for n in names])
        return write_block(self.folder, self.source.model, self.source.layout, index, mark | {"reports": reports}) if self.folder else {}

    def _move(self, block: nn.Module) -> None:
        if self.device is not None:
            block.to(self.device)

    def _matrices(self, block: nn.Module, prefix: str, names: tuple[str, ...], stream: Stream | None, squares: dict[str, Tensor],
                  mark: Mapping[str, str]) -> None:
        """Compress the matrices of a block that no file holds yet, and put compressed layers in their places."""
        linears = {name: block.get_submodule(name.removeprefix(prefix)) for name in names}
        found: dict[str, tuple[Packed, MatrixReport]] = {name: kept for name in names if (kept := self._partial(name))}
        stats: dict[str, LayerStatistics] = {}
        if stream is not None and len(found) < len(names):
            stats = stream.statistics(block, linears, self.seed)
        for name, linear in linears.items():
            started = time.perf_counter()
            weight = linear.weight
            if name not in found:
                mine = stats.get(name)
                if name in squares:
                    mine.fisher = squares[name].to(weight.device)
                packed = quantise(name, weight, self.plan.get(name, self.quantiser), mine, self.seed)
                report = judge(name, weight, packed, mine)
                report.seconds = time.perf_counter() - started
                found[name] = packed, report
                self._keep(name, packed, report, mark)
                if isinstance(self.source, Folder):
                    give_back()  # a quantiser leaves many small allocations behind, which the C library would keep
            packed, self.reports[name] = found[name]
            replace(block, name.removeprefix(prefix), packed)
            if self.progress is not None:
                self.progress(len(self.reports), len(self.source.layout.matrices), self.reports[name])

    def _plan(self, budget: float, recipe: Mapping[str, Any]) -> None:
        """Let the quantiser choose for each matrix under the budget; it sees the matrices one after another."""
        def matrices() -> Iterable[tuple[str, Tensor]]:
            done = 0
            for index, names in enumerate(self.source.layout.names):
                block = self.source.open(index)
                for name in names:
                    if self.progress is not None and done:
                        self.progress(done, len(self.source.layout.matrices), None)
                    done += 1
                    weight = block.get_submodule(name.removeprefix(f"{self.source.layout.prefix}.{index}.")).weight
                    yield name, weight.detach().to(self.device or weight.device, torch.float32)
                self.source.close(index)

        # what was tried on a matrix is kept like the matrix itself: a plan takes longer than the compression that it is for
        trials = {} if self.folder is None else _TrialFile(self.folder / "partial" / TRIALS, recipe)
        self.plan = plan_of(self.quantiser, matrices(), budget, trials)

    # --- the folder -------------------------------------------------------------------------------------------

    def recipe(self, budget: float | None) -> dict[str, Any]:
        """All that the result depends on."""
        tuning = asdict(self.tuning) if self.tuning is not None else None
        return {"quantiser": describe(self.quantiser), "seed": self.seed, "matrices": checksum_of_names(self.source.layout.matrices),
                "budget": budget, "tuning": tuning, "source": self.source.fingerprint(),
                "calibration": None if self.calibration is None else checksum({"ids": self.calibration})}

    def _open_folder(self, recipe: dict[str, Any]) -> None:
        """Make the folder, or check that what lies in it was begun by the same call."""
        if (self.folder / MANIFEST).is_file():
            _same(recipe, read_manifest(self.folder)["recipe"], self.folder)
        (self.folder / "partial").mkdir(parents=True, exist_ok=True)
        for path in [*self.folder.glob(".*.safetensors.*"), *(self.folder / "partial").glob(".*")]:
            path.unlink()  # what a killed process was writing
        files = [*self.folder.glob("block-*.safetensors"), *(self.folder / "partial").glob("*.safetensors")]
        if files:
            _same(recipe, json.loads(read_tensors(files[0])[1].get("recipe", "{}")), self.folder)

    def _partial(self, name: str) -> tuple[Packed, MatrixReport] | None:
        path = self.folder and self.folder / "partial" / f"{name}.safetensors"
        if not path or not path.is_file():
            return None
        tensors, head = _whole(path)
        return packed_from(json.loads(head["facts"]), tensors), _report(json.loads(head["report"]))

    def _keep(self, name: str, packed: Packed, report: MatrixReport, mark: Mapping[str, str]) -> None:
        if self.folder is not None:
            write_tensors(self.folder / "partial" / f"{name}.safetensors", packed.tensors, {
                "facts": json.dumps(facts_of(packed)), "report": json.dumps(asdict(report)), **mark})

    def _take(self, file: Path, block: nn.Module, prefix: str) -> None:
        """Put a finished block's matrices in their places."""
        tensors, head = _whole(file)
        self.reports |= {r["name"]: _report(r) for r in json.loads(head["reports"])}
        for name, facts in json.loads(head["matrices"]).items():
            replace(block, name.removeprefix(prefix), packed_from(facts, payload_of(name, tensors)))


class _TrialFile(dict[str, Any]):
    """A mapping that is written to its file at each new entry. What it holds does not depend on the budget."""

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        self.path, self.recipe = path, json.loads(json.dumps({key: value for key, value in recipe.items() if key != "budget"}))
        try:
            found = json.loads(path.read_text()) if path.is_file() else {"recipe": self.recipe, "trials": {}}
        except ValueError:
            raise UserError(f"{path} is damaged. Remove it and call compress() again.") from None
        _same(self.recipe, found["recipe"], path)
        super().__init__(found["trials"])

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        write_atomic(self.path, json.dumps({"recipe": self.recipe, "trials": self}))


def checksum_of_names(names: list[str]) -> str:
    """A short hash of names in order."""
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file that no manifest lists yet, checked against the checksum in its own header."""
    tensors, head = read_tensors(path)
    if checksum(tensors) != head.get("checksum"):
        raise UserError(f"{path} is damaged: its checksum does not fit. Remove it and call compress() again.")
    return tensors, head


def _report(facts: Mapping[str, Any]) -> MatrixReport:
    return MatrixReport(**{**facts, "shape": tuple(facts["shape"])})


def _same(recipe: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with what another call began, naming what differs."""
    recipe = json.loads(json.dumps(recipe))
    other = sorted(key for key in {*recipe, *found} if recipe.get(key) != found.get(key))
    if other:
        raise UserError(f"{folder} holds a compression with another {', '.join(other)}. Name another folder, or "
                        f"remove it.")
