"""Logistic regression towards weights on a cube's corner: the convex toy of arXiv:2211.03741, section 5.1."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from workbench.datasets.models import initialise
from workbench.datasets.vectors import VectorTask
from workbench.method import Context, derive_seed
from workbench.params import Field
from workbench.task import SupervisedParams


def paper_scale(mean_loss: float, batch_size: int, train_size: int = 6000) -> float:
    """The paper's loss of a batch, its SUM divided by the size of the training set, from our mean.

    A learning rate converts alike: the paper's ``lr`` acts on the mean loss as ``lr * batch_size / train_size``.
    """
    return mean_loss * batch_size / train_size


class LogisticParams(SupervisedParams):
    """The paper's sizes; two dimensions instead of its ten, so that a trajectory can be drawn."""

    train_size: int = Field(6000, ge=2, le=1_000_000, description="training samples generated")
    test_size: int = Field(1000, ge=1, le=1_000_000, description="test samples generated")
    dim: int = Field(2, ge=1, le=1000, description="number of weights; the paper has 10")
    w_scale: float = Field(1.0, gt=0, le=100, description="true weights are +-w_scale; 0.8 puts them off the levels")
    data_seed: int = Field(0, ge=0, description="seed of the data, apart from the seed of the run")


class Logistic2d(VectorTask):
    """Binary labels drawn with probability sigmoid(x.w*), w* a corner of the cube, x uniform in [-1, 1]^dim.

    One linear layer without bias. The loss is the mean over the batch; :func:`paper_scale` converts it to the paper's figures.
    """

    dataset = "logistic2d"
    models = ()
    title = "Convex logistic regression"
    kind = "classification"
    embedded = True

    Params = LogisticParams
    params: LogisticParams

    def generate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Also sets ``w_star``, the true weights ``(dim,)``."""
        self.w_star = self.params.w_scale * self._rng("weights").choice([-1.0, 1.0], size=self.params.dim)
        return (*self._draw(self.params.train_size, "train"), *self._draw(self.params.test_size, "test"))

    def _draw(self, size: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng(split)
        x = rng.uniform(-1, 1, size=(size, self.params.dim))
        return x, rng.random(size) < 1 / (1 + np.exp(-x @ self.w_star))

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.params.data_seed, "logistic2d", purpose))

    def build_model(self, ctx: Context) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return initialise(nn.Linear(self.params.dim, 1, bias=False), ctx.generator("init", cpu=True)).to(ctx.device)
