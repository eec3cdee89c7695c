"""Compression of causal language models: a format for compressed matrices, and what compresses, saves, loads and
judges a model.

Works without the bench; transformers, safetensors and peft are imported where needed. ::

    from workbench.llm import compress, load, method, perplexity

    small = compress("folder/of/a/model", method("reallm", bits=2, rank=8), folder="compressed")  # goes on where it was cut off
    print(small.report())
    print(perplexity(small, tokenizer, text))
    small = load("compressed")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Packed": "workbench.llm.packed", "FORMATS": "workbench.llm.packed", "decoder": "workbench.llm.packed",
    "pack_bits": "workbench.llm.packed", "unpack_bits": "workbench.llm.packed",
    "LayerStatistics": "workbench.llm.calibration", "calibration_windows": "workbench.llm.calibration",
    "compress": "workbench.llm.compression", "Compressed": "workbench.llm.compressed", "load": "workbench.llm.compressed",
    "CompressedLinear": "workbench.llm.linear",
    "perplexity": "workbench.llm.evaluation", "generate": "workbench.llm.evaluation",
    "BlockTuning": "workbench.llm.tuning", "tune_model": "workbench.llm.tuning",
    "ReALLM": "workbench.llm.reallm", "VectorCode": "workbench.llm.reallm", "Autoencoder": "workbench.llm.reallm",
    "method": "workbench.llm.named",
    "Residual": "workbench.llm.low_rank", "to_peft": "workbench.llm.adapters", "from_peft": "workbench.llm.adapters",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench.llm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
