"""Two moons: two interleaved half circles, a network of nine weights (arXiv:2211.03741, section 5.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from workbench.datasets.models import initialise
from workbench.datasets.vectors import VectorTask
from workbench.method import Context, derive_seed
from workbench.params import Field
from workbench.task import SupervisedParams


def moons(n: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` noise-free points ``(n, 2)`` and their labels: ``n // 2`` on the upper half circle (0), the rest on the lower (1)."""
    upper, lower = np.linspace(0, np.pi, n // 2), np.linspace(0, np.pi, n - n // 2)
    points = np.concatenate([np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1 - np.cos(lower), 0.5 - np.sin(lower)], 1)])
    return points, np.repeat([0, 1], [n // 2, n - n // 2])


class TwoMoonsParams(SupervisedParams):
    """The paper's sizes."""

    train_size: int = Field(2000, ge=4, le=1_000_000, description="training samples generated")
    test_size: int = Field(200, ge=4, le=1_000_000, description="test samples generated")
    noise: float = Field(0.1, ge=0, le=10, description="standard deviation of the Gaussian noise added to each coordinate")
    data_seed: int = Field(0, ge=0, description="seed of the data, apart from the seed of the run")


class TwoMoons(VectorTask):
    """Tell two half circles apart with 2-3-1 units: 9 weights, so all 512 binary networks can be tried.

    Features are standardised with the training set's mean and standard deviation (divisor n). The paper's tabulated "loss x 1e-3" is the
    mean test loss divided by the 200 test samples once more; losses here are plain means in nats.
    """

    dataset = "two_moons"
    models = ()
    title = "Two moons, 9 weights"
    kind = "classification"
    embedded = True

    Params = TwoMoonsParams
    params: TwoMoonsParams

    def generate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        (train_x, train_y), (test_x, test_y) = (
            self._draw(size, split) for size, split in ((self.params.train_size, "train"), (self.params.test_size, "test")))
        mean, std = train_x.mean(0), train_x.std(0)
        return (train_x - mean) / std, train_y, (test_x - mean) / std, test_y

    def _draw(self, size: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        # a seed of its own for each split: train and test noise are independent
        rng = np.random.default_rng(derive_seed(self.params.data_seed, "two_moons", split))
        points, labels = moons(size)
        order = rng.permutation(size)
        return points[order] + rng.normal(scale=self.params.noise, size=(size, 2)), labels[order]

    def build_model(self, ctx: Context) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(
                nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3, eps=1e-4, momentum=0.15, affine=False), nn.ReLU(),
                nn.Linear(3, 1, bias=False), nn.BatchNorm1d(1, eps=1e-4, momentum=0.15, affine=False))
            return initialise(model, ctx.generator("init", cpu=True)).to(ctx.device)
