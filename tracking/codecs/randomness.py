"""Where a randomised codec takes its randomness from: one 64-bit key a message.

All noise of one message is a Philox stream under the message's key, so it depends neither on the device nor on what
was sent before. Where sender and receiver share the noise, the key travels in the payload (8 bytes) and both sides
rebuild it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

SEED_BYTES = 8


class Keys:
    """Keys number ``counter``, ``counter + 1``, ... of the stream ``seed``: message i has the same noise whatever
    went before it.
    """

    def __init__(self, seed: int, counter: int = 0) -> None:
        self.seed, self.counter = int(seed), int(counter)

    def next(self) -> int:
        """The key of the next message."""
        text = f"{self.seed}/{self.counter}".encode()
        self.counter += 1
        return int.from_bytes(hashlib.blake2b(text, digest_size=SEED_BYTES).digest(), "little")

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "counter": self.counter}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.counter = state["seed"], state["counter"]


Source = Keys | torch.Generator | int | tuple[int, int]


class GeneratorKeys:
    """One draw a message from a generator that belongs to the run's state."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def next(self) -> int:
        """The key of the next message (63 bits: what an int64 draw holds)."""
        return int(torch.randint(2**63 - 1, (), generator=self.generator, device=self.generator.device))


def keys(source: Any) -> Keys | GeneratorKeys:
    """Keys from a ``torch.Generator``, a seed, a pair (seed, counter) or :class:`Keys` itself."""
    if isinstance(source, torch.Generator):
        return GeneratorKeys(source)
    if isinstance(source, Keys):
        return source
    if isinstance(source, int) and not isinstance(source, bool):
        return Keys(source)
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(v, int) for v in source):
        return Keys(*source)
    raise ValueError(f"rng = {source!r}; allowed: a torch.Generator, a seed, a pair (seed, counter) or Keys.")


def stream(key: int) -> np.random.Generator:
    """The noise of the message with this key."""
    return np.random.Generator(np.random.Philox(key=key))


def uniform(key: int, n: int) -> np.ndarray:
    """``n`` float32 numbers, uniform on [0, 1) in steps of 2^-24."""
    return stream(key).random(n, dtype=np.float32)


def subset(key: int, n: int, k: int) -> np.ndarray:
    """A uniform ``k``-subset of ``range(n)``, sorted: the places of the k smallest of n random 64-bit words."""
    if k >= n:
        return np.arange(n)
    words = np.random.Philox(key=key).random_raw(n)  # NumPy keeps raw streams fixed over versions
    return np.sort(np.argpartition(words, k)[:k]) if k else np.arange(0)
