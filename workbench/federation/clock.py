"""Virtual time of a client: how long a gradient step takes, which clients are slow, and when they are there.

The default speeds (means 2 and 16 units, one third slow) are those of the FAVAS experiments (Leconte, Nguyen &
Moulines, arXiv:2305.16099) as we recall them; placing the slow clients first is what the simulator of QuAFL does. One
unit of time is abstract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tracking.errors import UserError, unknown
from workbench.method import derive_seed

Law = Literal["exponential", "geometric", "fixed", "recorded"]

# Work that ends this close (relative) after a deadline is in time: sums of durations such as 0.1 are not exact in
# binary.
TIE = 1e-9


def stream(seed: int, purpose: str, client: int | None = None) -> np.random.Generator:
    """The random stream of one purpose, or of one client for one purpose: more clients change nobody else's."""
    key = (purpose,) if client is None else (purpose, client)
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "federated", *key)))


@dataclass(frozen=True, eq=False)
class Speeds:
    """Every client's law of the time of one gradient step.

    Attributes:
        mean: (n,) mean time of a step, in units of time; the rate (or success probability) is ``1 / mean``.
        law: ``exponential``, ``geometric`` (whole units, from 1 on), ``fixed``, or ``recorded``: drawn with
            replacement from the client's own measured durations.
        recorded: for ``recorded``, the measured durations of every client.
    """

    mean: np.ndarray
    law: Law = "exponential"
    recorded: tuple[np.ndarray, ...] | None = None

    def __post_init__(self) -> None:
        mean = np.atleast_1d(np.asarray(self.mean, float))
        object.__setattr__(self, "mean", mean)
        if self.law not in get_args(Law):
            raise unknown("law of step times", self.law, get_args(Law))
        if mean.ndim != 1 or not len(mean) or not np.isfinite(mean).all() or mean.min() <= 0:
            raise UserError("Speeds need one positive, finite mean for each client, in a list of at least one.")
        if self.law == "geometric" and mean.min() < 1:
            raise UserError(f"Geometric step times are whole units: the mean is at least 1; given {mean.min():g}. "
                            "Use a finer unit.")
        if (self.law == "recorded") != (self.recorded is not None):
            raise UserError("The law 'recorded', and no other, needs measured durations: use Speeds.from_file.")

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.mean)

    def draw(self, client: int, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Durations of steps, filled row by row: the same numbers in the same order however the draws are grouped."""
        mean = self.mean[client]
        if self.law == "exponential":
            return rng.exponential(mean, shape)
        if self.law == "geometric":
            return rng.geometric(1 / mean, shape).astype(float)
        if self.law == "fixed":
            return np.full(shape, mean)
        durations = self.recorded[client]
        return durations[(rng.random(shape) * len(durations)).astype(int)]

    @classmethod
    def two_classes(cls, n: int, *, slow_fraction: float = 1 / 3, fast: float = 2.0, slow: float = 16.0,
                    law: Law = "exponential", slow_first: bool = False, seed: int = 0) -> Speeds:
        """``ceil(slow_fraction n)`` clients, drawn at random, have mean ``slow``, the others ``fast``.

        ``slow_first`` takes the first indices, which ties speed to the classes wherever the data are dealt in order.
        """
        if n < 1 or not 0 <= slow_fraction <= 1:
            raise UserError("Two classes need n >= 1 clients and a slow fraction in [0, 1]; "
                            f"given n={n}, slow_fraction={slow_fraction:g}.")
        # the clients of the smallest keyed draws are slow, so that another n moves few of them
        rank = range(n) if slow_first else [stream(seed, "speed", i).random() for i in range(n)]
        mean = np.full(n, float(fast))
        mean[np.argsort(rank, kind="stable")[:math.ceil(slow_fraction * n * (1 - TIE))]] = slow
        return cls(mean, law)

    @classmethod
    def for_work(cls, tau: np.ndarray, K: int) -> Speeds:
        """Fixed step times such that ``K`` steps of client i take ``tau[i]`` units."""
        return cls(np.asarray(tau, float) / K, "fixed")

    @classmethod
    def linear(cls, n: int, X: float, K: int, longest: float = 1.0) -> Speeds:
        """FedFix's F-X (arXiv:2206.10189): times of ``K`` steps, evenly from ``longest`` to ``longest (1 - X/100)``."""
        if n < 1 or not 0 <= X < 100:
            raise UserError("Linear speeds need n >= 1 clients and 0 <= X < 100 (the fastest takes 1 - X/100); "
                            f"given n={n}, X={X:g}.")
        return cls.for_work(longest * np.linspace(1.0, 1 - X / 100, n), K)

    @classmethod
    def from_file(cls, path: str | Path) -> Speeds:
        """Measured durations: a CSV file with the columns ``client, duration``, or an npz file with such arrays.

        Clients are numbered from 0 without gaps; durations are positive. Raises ``UserError`` with the rule that is
        broken.
        """
        client, duration = _columns(Path(path))
        n = int(client.max()) + 1
        counts = np.bincount(client, minlength=n)
        if (counts == 0).any():
            raise UserError(f"{path}: client {np.argmin(counts)} of 0..{n - 1} has no row. Number them without gaps.")
        rows = np.split(duration[np.argsort(client, kind="stable")], counts.cumsum()[:-1])
        return cls(np.array([r.mean() for r in rows]), "recorded", tuple(rows))

    def facts(self) -> dict[str, Any]:
        """What a trace remembers of its step times."""
        return {"law": self.law, "mean": self.mean.tolist()}


def _columns(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give a CSV or npz file with the columns client, duration.")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    elif path.suffix == ".csv":
        import pandas as pd

        frame = pd.read_csv(path)
        data = {name.strip(): frame[name].to_numpy() for name in frame.columns}
    else:
        raise UserError(f"{path} is neither a .csv nor an .npz file.")
    if set(data) != {"client", "duration"}:
        raise UserError(f"{path} has the columns {', '.join(data) or 'none'}; needed are exactly client, duration.")
    client, duration = data["client"], data["duration"]
    if client.ndim != 1 or client.shape != duration.shape or not len(client):
        raise UserError(f"{path}: client and duration must be columns of one length, of at least one row.")
    if client.dtype.kind not in "iu" or client.min() < 0:
        raise UserError(f"{path}: the column client must hold whole numbers from 0 on.")
    if duration.dtype.kind not in "iuf" or not np.isfinite(duration).all() or duration.min() <= 0:
        raise UserError(f"{path}: the column duration must hold positive, finite numbers of units of time.")
    return client.astype(int), duration.astype(float)
