"""Small random language models of several layouts, and what the tests of compression share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from workbench.llm.compressed import Compressed
from workbench.methods.compression.rtn import RTN


def llama(seed: int = 0, tied: bool = False, **sizes: int) -> nn.Module:
    """A random LLaMA of transformers: 2 layers, width 64, 256 ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 512} | sizes
    return seeded(LlamaForCausalLM, LlamaConfig(**facts, tie_word_embeddings=tied), seed)


def seeded(cls: type, config: object, seed: int) -> nn.Module:
    """A model of transformers with weights from a generator of its own, larger than the usual ones, so that its logits
    differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 2:
                    p.normal_(0, 0.15)
    return model.requires_grad_(False)


def token_ids(n: int = 6, length: int = 24, seed: int = 1, vocabulary: int = 256) -> Tensor:
    """Random ids (n, length)."""
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


def numpy_rtn(weight: np.ndarray, bits: int, group: int, symmetric: bool) -> np.ndarray:
    """Round to nearest by loops over rows and groups, scales in fp16: an independent twin."""
    out = np.empty_like(weight)
    for i, row in enumerate(weight):
        for start in range(0, len(row), group or len(row)):
            part = row[start:start + (group or len(row))]
            if symmetric:
                s = np.float32(np.float16(np.abs(part).max() / np.float32(2 ** (bits - 1) - 1)))
                low, high, z = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0
            else:
                least, most = min(part.min(), 0), max(part.max(), 0)
                s = np.float32(np.float16((most - least) / np.float32(2**bits - 1)))
                low, high = 0, 2**bits - 1
            s = max(s, np.float32(2.0**-24))
            if not symmetric:
                z = min(max(np.round(-least / s), 0), high)
            codes = np.clip(np.round(part / s + np.float32(z)), low, high)
            out[i, start:start + len(part)] = s * (codes - np.float32(z))
    return out


@dataclass(frozen=True)
class Noisy:
    """Rounds at random by what it is given to draw from, and weighs nothing: seeds and needs are visible in its
    result."""

    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight, stats=None, generator=None):
        noise = torch.rand(weight.shape, generator=generator) * stats.hessian.diagonal().sqrt()
        return RTN(3, 16)(weight + 0.01 * noise)


def payloads(compressed: Compressed) -> dict[str, dict[str, torch.Tensor]]:
    return {name: layer.packed.tensors for name, layer in compressed.layers().items()}


def same(one: Compressed, two: Compressed) -> bool:
    a, b = payloads(one), payloads(two)
    return a.keys() == b.keys() and all(a[n].keys() == b[n].keys() and all(torch.equal(t, b[n][k]) for k, t in a[n].items()) for n in a)
