"""A compressed language model as a whole: seconds and memory to compress one, and tokens a second to run it.

SmolLM2-135M is streamed from its folder by a process of its own, whose highest resident memory, libraries and all, is set against the
bytes of the fp16 model. Products and tokens take turns with their peers; figures are medians of wall time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.bench_packed import turns
from workbench.data_models import find
from workbench.llm.linear import CompressedLinear, replace
from workbench.llm.packed import decoder_of
from workbench.methods.compression.rtn import RTN

MODEL = "smollm2-135m"
SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
"""Matrices of a block of SmolLM2-135M."""
BLOCKS = 8
"""Blocks gone through in turn: 113 MB of float32 weights, more than a processor keeps."""
TOKENS = 6

COMPRESS = """
import sys, time, json
import torch
from pathlib import Path
from workbench.llm import compress
from workbench.llm.reallm import ReALLM
begin = time.perf_counter()
done = compress(sys.argv[1], ReALLM(), folder=sys.argv[2])
seconds = time.perf_counter() - begin
peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak": peak, "bpw": done.bpw(), "bytes": done.size_bytes()}))
"""


def main() -> list[dict]:
    """Rows of the table."""
    with torch.no_grad():
        rows = list(products())
    folder = find(MODEL)
    if folder is None:
        return [*rows, {"name": f"{MODEL} compressed", "skipped": f"{MODEL} is not at hand: `workbench data fetch {MODEL}`"}]
    with torch.no_grad():
        rows += tokens(folder)
    return [*rows, *whole(folder)]


def products() -> Iterable[dict]:
    """One token through all matrices: fused product against decoding the matrix and multiplying."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=generator) for _ in range(BLOCKS) for shape in SHAPES]
    inputs = {q: torch.randn(1, q, generator=generator) for q in (576, 1536)}
    for bits in (2, 3, 4):
        layers = [CompressedLinear(RTN(bits, 64)(w)) for w in weights]

        def fused(layers: list[CompressedLinear] = layers) -> None:
            for layer in layers:
                layer(inputs[layer.in_features])

        def decoded(layers: list[CompressedLinear] = layers) -> None:
            for layer in layers:
                F.linear(inputs[layer.in_features], decoder_of(layer.format)(layer.packed))

        def dense() -> None:
            for w in weights:
                F.linear(inputs[w.shape[1]], w)

        name = f"one token through {BLOCKS} blocks of SmolLM2-135M's shapes at {bits} bits, fused product"
        ours, peer = turns(fused, decoded, 5)
        yield {"name": f"{name}, against decoding and multiplying", "ours": 1e3 * ours, "peer": 1e3 * peer, "unit": "ms",
               "ratio": peer / ours, "n": 5, "target": ">= 1", "met": peer >= ours}
        ours, peer = turns(fused, dense, 5)
        yield {"name": f"{name}, against float32 weights", "ours": 1e3 * ours, "peer": 1e3 * peer, "unit": "ms",
               "ratio": peer / ours, "n": 5}


def tokens(folder: Path) -> Iterable[dict]:
    """Greedy tokens a second of the whole model, its matrices at some bits, against float32."""
    from transformers import AutoModelForCausalLM

    plain, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval() for _ in range(2))
    blocks = ours.get_submodule("model.layers")
    for bits in (2, 4):
        for name, module in list(blocks.named_modules()):
            if isinstance(module, nn.Linear):
                replace(blocks, name, RTN(bits, 64)(plain.get_submodule(f"model.layers.{name}").weight))
        times = turns(lambda: decode(ours), lambda: decode(plain), 3)
        mine, theirs = (TOKENS / t for t in times)
        yield {"name": f"{MODEL} at {bits} bits by rounding to nearest, tokens after one another, against float32",
               "ours": mine, "peer": theirs, "unit": "tokens/s", "ratio": mine / theirs, "n": 3}


def decode(model: nn.Module) -> None:
    """Some tokens, one at a time, with a cache of keys and values."""
    given, past = torch.tensor([[1, 2, 3]]), None
    for _ in range(TOKENS):
        out = model(given, past_key_values=past, use_cache=True)
        given, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


def whole(folder: Path) -> Iterable[dict]:
    """Compress the model from its folder into another, by ReALLM's identity path at two bits."""
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", COMPRESS, str(folder), place], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        found["process"] = time.perf_counter() - begin
    half = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    name = f"{MODEL} streamed and compressed to 2 bits by ReALLM's identity path ({found['bpw']:.2f} bits a weight)"
    yield {"name": name, "ours": found["seconds"], "peer": 300.0, "unit": "s", "ratio": 300 / found["seconds"], "n": 1,
           "target": "<= 300 s", "met": found["seconds"] <= 300}
    yield {"name": f"{name}, highest resident memory against the fp16 model's bytes", "ours": found["peak"], "peer": half, "unit": "B",
           "ratio": found["peak"] / half, "n": 1, "target": "<= 2.5", "met": found["peak"] <= 2.5 * half}
    yield {"name": f"{name}, bytes of the compressed model against fp16", "ours": found["bytes"], "peer": half, "unit": "B",
           "ratio": half / found["bytes"], "n": 1}


if __name__ == "__main__":
    from tests.bench.__main__ import describe

    for line in main():
        print(describe(line))
