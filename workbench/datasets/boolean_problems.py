"""Smooth functions on the corners of a cube, with known constants: where the theory of Boolean optimisation can be measured.

Each is a finite sum over generated samples with weights in {-1, +1}^d whose gradient, noise and smoothness are
computable, as the theorem of L. Leconte, "Boolean Logic as an Error feedback mechanism", arXiv:2401.16418, asks for.
The problems and their sizes are ours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from workbench.datasets._finite_sums import FiniteSum, LinearSum, TanhSum
from workbench.method import Context, derive_seed
from workbench.params import Field, Params
from workbench.task import Task


class BooleanProblemParams(Params):
    """The data of a problem."""

    train_size: int = Field(512, ge=2, le=100_000, description="samples n of the finite sum")
    test_size: int = Field(512, ge=1, le=100_000, description="further samples, for the test loss and accuracy")
    inputs: int = Field(20, ge=1, le=10_000, description="features of a sample")
    correlation: float = Field(
        0.5, ge=0, lt=1, description="correlation of neighbouring features (AR(1)); 0: independent"
    )
    w_scale: float = Field(
        0.5, gt=0, le=100, description="true weights are +-w_scale; 1 puts them on a corner, so that it is stationary"
    )
    noise: float = Field(
        0.5,
        ge=0,
        le=100,
        description="standard deviation of the noise in the responses, or in the logits of the labels",
    )
    regulariser: float = Field(0.0, ge=0, le=100, description="factor lambda of the nonconvex sum of w^2 / (1 + w^2)")
    data_seed: int = Field(0, ge=0, description="seed of the data, apart from the seed of the run")


class Corner(nn.Module):
    """A point ``w`` ``(d,)`` as a network: samples in, outputs ``s_i(w)`` out."""

    def __init__(self, problem: FiniteSum, w: Tensor) -> None:
        super().__init__()
        self.problem, self.w = problem, nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.problem.outputs(self.w, x)


class BooleanProblem(Task):
    """Base of the problems. After :meth:`setup` ``problem`` is the function and ``w_star`` ``(d,)`` the weights that made the data.

    All in float64 on the device: features ``(n, inputs)``, responses ``(n,)``, which are -1 and +1 for the losses of
    labels.
    """

    kind = "minimisation"
    embedded = True
    num_classes = 2

    Params = BooleanProblemParams
    params: BooleanProblemParams
    problem: FiniteSum
    w_star: Tensor

    def make(self, x: Tensor, y: Tensor) -> FiniteSum:
        """The function of these data."""
        raise NotImplementedError

    def setup(self, ctx: Context) -> None:
        p = self.params
        draw = np.random.default_rng(derive_seed(p.data_seed, self.dataset, "weights"))
        # the size of the weights is that of a function of any samples
        dim = self.make(torch.zeros(1, p.inputs, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).dim
        self.w_star = torch.from_numpy(p.w_scale * draw.choice([-1.0, 1.0], size=dim)).to(ctx.device)
        self.train_x, self.train_y = self._draw(p.train_size, "train", ctx)
        self.test_x, self.test_y = self._draw(p.test_size, "test", ctx)
        self.problem = self.make(self.train_x, self.train_y)
        self.sample_shape = (p.inputs,)

    def _draw(self, size: int, split: str, ctx: Context) -> tuple[Tensor, Tensor]:
        p = self.params
        rng = np.random.default_rng(derive_seed(p.data_seed, self.dataset, split))
        x = rng.standard_normal((size, p.inputs))
        for j in range(1, p.inputs):
            x[:, j] = p.correlation * x[:, j - 1] + (1 - p.correlation**2) ** 0.5 * x[:, j]
        features = torch.from_numpy(x).to(ctx.device)
        problem = self.make(features, torch.ones(size, dtype=torch.float64, device=ctx.device))
        response = problem.outputs(self.w_star, features) + p.noise * torch.from_numpy(rng.standard_normal(size)).to(
            ctx.device
        )
        return features, response if problem.loss == "quadratic" else torch.where(response > 0, 1.0, -1.0).double()

    def start(self, ctx: Context) -> Tensor:
        """``w_0`` of a run: a corner drawn from its seed, every corner alike, ``(d,)``."""
        draw = torch.rand(self.problem.dim, generator=ctx.generator("init", cpu=True))
        return torch.where(draw < 0.5, -1.0, 1.0).double().to(ctx.device)

    def build_model(self, ctx: Context) -> nn.Module:
        """The starting corner as a network."""
        return Corner(self.problem, self.start(ctx))

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Features and responses of samples ``index`` of any shape."""
        return self.train_x[index], self.train_y[index]

    def loss(self, outputs: Tensor, responses: Tensor) -> Tensor:
        """Mean loss of the samples, without the regulariser."""
        return self.problem.phi(outputs, responses).mean()

    def correct(self, outputs: Tensor, responses: Tensor) -> Tensor:
        """Whether the sign of each response is predicted; an output of exactly zero counts as negative."""
        return (outputs > 0) == (responses > 0)

    def provenance(self) -> dict[str, str]:
        return {
            "dataset": self.dataset,
            "train_size": str(len(self.train_y)),
            "test_size": str(len(self.test_y)),
            "source": f"generated, numpy {np.__version__}",
        }


class BooleanLinear(BooleanProblem):
    """One output linear in +-1 weights: least squares, logistic regression, or the bounded and nonconvex sigmoid loss."""

    dataset = "boolean_linear"
    models = ("quadratic", "logistic", "sigmoid")
    title = "Linear model with Boolean weights"
    kind = "minimisation"
    embedded = True

    def make(self, x: Tensor, y: Tensor) -> FiniteSum:
        return LinearSum(x, y, self.model_name, self.params.regulariser)


class BooleanTanhParams(BooleanProblemParams):
    """The data and the width of the network."""

    inputs: int = Field(9, ge=1, le=10_000, description="features of a sample")
    hidden: int = Field(4, ge=1, le=1000, description="hidden units; there are hidden * (inputs + 1) weights")
    noise: float = Field(0.1, ge=0, le=100, description="standard deviation of the noise in the responses")


class BooleanTanh(BooleanProblem):
    """Least squares by a two-layer tanh network, all of whose weights are -1 or +1, on the responses of such a network."""

    dataset = "boolean_tanh"
    models = ()
    title = "Two-layer tanh network with Boolean weights"
    kind = "minimisation"
    embedded = True

    Params = BooleanTanhParams
    params: BooleanTanhParams

    def make(self, x: Tensor, y: Tensor) -> FiniteSum:
        return TanhSum(x, y, self.params.hidden, "quadratic", self.params.regulariser)
