"""Lending a run's own generator to libraries that draw from the global ones."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_borrowed = threading.RLock()


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """Within the block, the global generators of torch, NumPy and Python draw from ``generator``; afterwards they are
    as before.

    For layers and samplers of other libraries, which take no generator (dropout, random walks, negative sampling).
    ``generator`` moves on by what was drawn, so it belongs in a method's State. Blocks in other threads wait for this
    one.
    """
    with _borrowed:
        cuda = generator.device.type == "cuda"
        ours = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(generator.device) if cuda else None,
            np.random.get_state(),
            random.getstate(),
        )
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        try:
            np.random.seed(seed)
            random.seed(seed)
            if cuda:
                torch.cuda.set_rng_state(generator.get_state(), generator.device)
                torch.default_generator.manual_seed(seed)
            else:
                torch.set_rng_state(generator.get_state())
            yield
            generator.set_state(torch.cuda.get_rng_state(generator.device) if cuda else torch.get_rng_state())
        finally:
            torch.set_rng_state(ours[0])
            if cuda:
                torch.cuda.set_rng_state(ours[1], generator.device)
            np.random.set_state(ours[2])
            random.setstate(ours[3])
