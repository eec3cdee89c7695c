"""The case on which simulators of federated learning are timed: 100 clients, MNIST, 784-32-10, FedAvg, plain SGD.

A round sends the model to 20 of the 100 clients; each takes some gradient steps (20 or 1) on batches of 120 of its own
600 images (so that an epoch is 5 whole batches), and the server averages what comes back. What is counted are gradient
steps a second of wall-clock time, between the end of one round and the end of another: start-up is not in it, messages,
selection, averaging and whatever a simulator does in a round are. Many steps weigh the training, one weighs the rest.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CLIENTS, SELECTED, BATCH, RATE = 100, 20, 120, 0.1
SHARE = 600  # images a client
FOLDER = "FEDERATED_CASE"  # environment variable: where the images and labels lie


def network() -> nn.Module:
    """784-32-10, on vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def share(client: int) -> tuple[Tensor, Tensor]:
    """A client's normalised images ``(600, 784)`` and labels, straight from the page cache."""
    rows = slice(client * SHARE, (client + 1) * SHARE)
    folder = Path(os.environ[FOLDER])
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r")[rows] for name in "xy")
    return torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y))


@dataclass
class Stopwatch:
    """Ends of rounds, the first ones left out of the time."""

    warm_up: int
    seconds: float
    """How long to go on after the warm-up."""
    steps: int
    """Gradient steps of a client in a round."""
    rounds: int = 0
    began: float = 0.0
    now: float = 0.0

    def lap(self) -> bool:
        """A round is over; whether it was the last."""
        self.rounds, self.now = self.rounds + 1, time.perf_counter()
        if self.rounds == self.warm_up:
            self.began = self.now
        return self.rounds > self.warm_up and self.now - self.began >= self.seconds

    def rate(self) -> float:
        """Gradient steps a second."""
        return (self.rounds - self.warm_up) * SELECTED * self.steps / (self.now - self.began)


def report(**figures: object) -> None:
    """The last line of a peer's output."""
    print("\n" + json.dumps(figures), flush=True)
