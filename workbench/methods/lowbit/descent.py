"""Rules that Boolean optimisation is compared with, on smooth problems: SGD, EF-SignSGD, sign-projected SGD and Bop.

Their update rules alone, for many trajectories at once; for networks see the methods of this family that train on
labelled samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.methods.lowbit._descent import Descent, DescentParams, Draw, Memory, Rule
from workbench.params import Field


@dataclass(frozen=True)
class SGD(Rule):
    """``w <- w - eta g`` in R^d."""

    eta: float | Tensor
    binary = False

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, None]:
        return w - self.eta * signal, None


@dataclass(frozen=True)
class EFSignSGD(Rule):
    """``p = eta g + e;  w <- w - Delta;  e <- p - Delta``, ``Delta = (||p||_1 / d) sign(p)`` (Karimireddy et al., ICML 2019, Alg. 1)."""

    eta: float | Tensor
    binary = False

    def begin(self, w: Tensor) -> Memory:
        return {"e": torch.zeros_like(w)}

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, None]:
        p = self.eta * signal + memory["e"]
        delta = p.abs().mean(-1, keepdim=True) * p.sign()
        memory["e"] = p - delta
        return w - delta, None


@dataclass(frozen=True)
class SignProjected(Rule):
    """``v <- clamp(v - eta g(w), -1, 1);  w = sign(v)`` from ``v = w`` (BinaryConnect, Courbariaux et al., NeurIPS 2015); 0 goes to +1."""

    eta: float | Tensor

    def begin(self, w: Tensor) -> Memory:
        return {"v": w.clone()}

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, None]:
        memory["v"] = (memory["v"] - self.eta * signal).clamp(-1, 1)
        return torch.where(memory["v"] < 0, -1.0, 1.0).to(w.dtype), None


@dataclass(frozen=True)
class BopRule(Rule):
    """``m <- (1 - eta) m + eta g;  w <- -w where m w > tau`` (Helwegen et al., NeurIPS 2019, Alg. 1): no reset, an average for a sum."""

    eta: float | Tensor
    threshold: float | Tensor

    def begin(self, w: Tensor) -> Memory:
        return {"m": torch.zeros_like(w)}

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, None]:
        memory["m"] = memory["m"] + self.eta * (signal - memory["m"])
        return torch.where(memory["m"] * w > self.threshold, -w, w), None


# --- the methods ------------------------------------------------------------------------------------------


class DescentSGD(Descent):
    """Stochastic gradient descent with real weights, from a corner."""

    id = "descent_sgd"
    title = "SGD on R^d"
    family = "lowbit"
    paper = ""
    kinds = ("minimisation",)
    example = {"task": "boolean_linear/logistic", "params": {"steps": 1000}}

    def rule(self) -> SGD:
        return SGD(self.params.eta)


class DescentEFSignSGD(Descent):
    """Sign compression with error feedback, real weights: of the theorem's algorithm the case without rounding."""

    id = "descent_ef_signsgd"
    title = "EF-SignSGD on R^d"
    family = "lowbit"
    paper = "arXiv:1901.09847"
    kinds = ("minimisation",)
    example = {"task": "boolean_linear/logistic", "params": {"steps": 1000}}

    def rule(self) -> EFSignSGD:
        return EFSignSGD(self.params.eta)


class DescentSignProjected(Descent):
    """Latent weights descend, gradients are taken at their signs (the update of BinaryConnect)."""

    id = "descent_sign_projected"
    title = "Sign-projected SGD"
    family = "lowbit"
    paper = "arXiv:1511.00363"
    kinds = ("minimisation",)
    example = {"task": "boolean_linear/logistic", "params": {"steps": 1000}}

    def rule(self) -> SignProjected:
        return SignProjected(self.params.eta)


class DescentBop(Descent):
    """Weights flip where an exponential average of their gradient passes a threshold; no reset (the update of Bop)."""

    id = "descent_bop"
    title = "Bop on a smooth problem"
    family = "lowbit"
    paper = "arXiv:1906.02107"
    kinds = ("minimisation",)
    example = {"task": "boolean_linear/logistic", "params": {"steps": 1000, "eta": 0.05}}

    class Params(DescentParams):
        eta: float = Field(0.01, gt=0, le=1, description="adaptivity rate, weight of the newest gradient")
        threshold: float = Field(
            0.02, ge=0, le=1e6, description="size of the average at which a weight flips, in units of the gradient"
        )

    params: Params

    def rule(self) -> BopRule:
        return BopRule(self.params.eta, self.params.threshold)
