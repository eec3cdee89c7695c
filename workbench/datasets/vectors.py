"""Toy tasks on generated vectors: binary labels, a network with one logit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.method import Context
from workbench.task import SupervisedTask


class VectorTask(SupervisedTask):
    """Base of the generated binary tasks. A subclass gives :meth:`generate` and ``build_model``."""

    def generate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``train_x, train_y, test_x, test_y``: features ``(n, d)`` and labels 0 and 1 ``(n,)``."""
        raise NotImplementedError

    def setup(self, ctx: Context) -> None:
        train_x, train_y, test_x, test_y = self.generate()
        self.train_x, self.test_x = (torch.from_numpy(x).float().to(ctx.device) for x in (train_x, test_x))
        self.train_y, self.test_y = (torch.from_numpy(y.astype(np.int64)).to(ctx.device) for y in (train_y, test_y))
        self.num_classes, self.sample_shape = 2, (train_x.shape[1],)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        index = index.to(self.train_y.device)
        return self.train_x.index_select(0, index), self.train_y.index_select(0, index)

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.test_x[start:stop], self.test_y[start:stop]

    def provenance(self) -> dict[str, str]:
        return super().provenance() | {"source": f"generated, numpy {np.__version__}"}
