"""What a compressed model costs: bytes in memory and on disk, seconds a matrix, tokens a second; and a look at what it writes."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.llm import compress, generate
from workbench.llm.linear import compressed_layers, dense
from workbench.method import Context
from workbench.spec import resolve
from workbench.studies.reallm.settings import Scale

if TYPE_CHECKING:
    import pandas

MEGABYTE = 1e6


def cost_table(task: Any, scale: Scale, names: tuple[str, ...], bits: int, *, tokens: int = 16, prompt: str = "The",
               device: str = "cpu") -> pandas.DataFrame:
    """A row a method: bits a weight, megabytes in memory and on disk, seconds a matrix, tokens a second in three ways, and a continuation.

    ``task``: as :func:`prepared` gives it. Its model is left as it is. Tokens a second are of greedy generation, one sequence, measured
    once, so they are rough: ``decoded each time`` multiplies by what is stored; ``kept decoded`` holds the decoded matrices in memory.
    ``device``: where matrices are compressed; tokens are generated on the CPU.
    """
    import pandas

    reference = task.reference()
    whole = sum(p.nbytes for p in reference.parameters()) / MEGABYTE
    speed, words = _speed(reference, task.tokenizer, prompt, tokens)
    rows: list[dict[str, Any]] = [{"method": "float32", "total bits": 32.0, "in memory [MB]": whole, "kept decoded [tokens/s]": speed,
                                   "continuation": words}]
    for name in names:
        rows.append(_row(task, scale, name, bits, tokens, prompt, device))
    return pandas.DataFrame(rows)


def _row(task: Any, scale: Scale, name: str, bits: int, tokens: int, prompt: str, device: str) -> dict[str, Any]:
    job = resolve(**scale.run(name, bits), device=device)
    ctx = Context(torch.device("cpu"), 0)
    quantiser = job.method.quantiser(task, ctx)
    ids = None
    if quantiser.needs:
        p = job.method.params
        ids = task.calibration(p.sequences, p.length or task.window, ctx.generator("calibration", cpu=True))
    compressed = compress(copy.deepcopy(task.reference()), quantiser, calibration=ids, device=job.device)
    payload = sum(compressed.bits().values()) // 8
    with tempfile.TemporaryDirectory() as folder:
        files = compressed.save(Path(folder) / "model")
        disk = sum(f.stat().st_size for f in files.glob("*.safetensors"))
    slow, words = _speed(compressed.model, task.tokenizer, prompt, tokens)
    with dense(compressed.model):
        fast, _ = _speed(compressed.model, task.tokenizer, prompt, tokens)
    seconds = [r.seconds for r in compressed.reports.values()]
    count = sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in compressed_layers(compressed.model).values())
    return {"method": f"{name}, {bits} bits", "total bits": compressed.bpw(), "matrices [MB]": payload / MEGABYTE,
            "matrices, fp16 [MB]": 2 * count / MEGABYTE, "in memory [MB]": compressed.size_bytes() / MEGABYTE,
            "on disk [MB]": disk / MEGABYTE, "seconds a matrix": sum(seconds) / len(seconds),
            "decoded each time [tokens/s]": slow, "kept decoded [tokens/s]": fast, "continuation": words}


def _speed(model: Any, tokenizer: Any, prompt: str, tokens: int) -> tuple[float, str]:
    """Tokens a second and the text, after one token to warm up."""
    generate(model, tokenizer, prompt, 1)
    start = time.perf_counter()
    words = generate(model, tokenizer, prompt, tokens)
    return tokens / (time.perf_counter() - start), words


def stored_bits(task: Any, scale: Scale, names: tuple[str, ...], bits: int) -> pandas.DataFrame:
    """Bits by term of one matrix in each format, and the bytes that safetensors writes of its payload times eight."""
    import pandas
    from safetensors.torch import save

    from workbench.llm.architecture import layout_of
    from workbench.llm.matrix import quantise

    model, ctx = task.reference(), Context(torch.device("cpu"), 0)
    name = layout_of(model).matrices[-1]
    weight = model.get_submodule(name).weight.detach().float()
    rows = []
    for method in names:
        job = resolve(**scale.run(method, bits), device="cpu")
        quantiser = job.method.quantiser(task, ctx)
        packed = quantise(name, weight, quantiser, _white(weight.shape[1]), 0)
        blob = save({k: t.contiguous() for k, t in packed.tensors.items()})
        rows.append({"method": method, "format": packed.format, **packed.bits(), "sum": sum(packed.bits().values()),
                     "stored": 8 * (len(blob) - 8 - int.from_bytes(blob[:8], "little")), "bits a weight": packed.bpw()})
    return pandas.DataFrame(rows)


def _white(q: int) -> Any:
    """Statistics of inputs without correlation: bits do not depend on them."""
    from workbench.llm.calibration import LayerStatistics

    return LayerStatistics(1, 2 * torch.eye(q), torch.ones(q), torch.eye(q), None)
