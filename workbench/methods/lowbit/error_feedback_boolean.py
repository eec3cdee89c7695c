"""Boolean optimisation in its error-feedback form on a smooth problem: the algorithm of the convergence theorem, and its practical form.

L. Leconte, "Boolean Logic as an Error feedback mechanism", arXiv:2401.16418; Nguyen et al., NeurIPS 2024,
arXiv:2405.16339, Alg. 3 and appendix A.2. The optimiser for networks is
:class:`workbench.boolean.ErrorFeedbackBoolean`; here many trajectories go at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pydantic
import torch
from torch import Tensor

from workbench.boolean.error_feedback import q0, q1
from workbench.methods.lowbit._descent import Descent, DescentParams, Draw, Memory, Moved, Rule, Tally
from workbench.params import Field


@dataclass(frozen=True)
class BooleanRule(Rule):
    """``m = beta e + eta g;  Delta = Q1(m, w);  w <- Q0(w - Delta);  e <- m - Delta`` for points ``(r, d)``.

    ``eta`` is a number, or ``(r, 1)`` with one for each trajectory. ``beta`` is 1, or with ``plasticity`` the share of
    a trajectory's weights that its last step left unchanged. ``clip`` bounds ``|m|`` before the test (assumption A.5);
    0: none. ``stochastic``: unbiased ``Q0`` (A.6), which turns a weight that passed with probability ``|m|/2``; else
    ``Q0`` is the sign.
    """

    eta: float | Tensor
    stochastic: bool = True
    plasticity: bool = False
    clip: float = 0.0

    def begin(self, w: Tensor) -> Memory:
        return {"e": torch.zeros_like(w), "beta": torch.ones_like(w[:, :1])}

    def advance(self, w: Tensor, memory: Memory, signal: Tensor, draw: Draw) -> tuple[Tensor, Moved]:
        m = memory["e"] * memory["beta"] + self.eta * signal
        if self.clip:
            m = m.clamp(-self.clip, self.clip)
        spent = q1(m, w)
        u = w - spent
        turned = q0(u, w, draw() if self.stochastic else None)
        memory["e"] = m - spent
        if self.plasticity:
            memory["beta"] = (turned == w).to(w.dtype).mean(-1, keepdim=True)
        return turned, Moved(m, spent, u)


class ErrorFeedbackBooleanParams(DescentParams):
    """The rule's variants. The theorem is about stochastic rounding without plasticity."""

    rounding: Literal["stochastic", "deterministic"] = Field(
        "stochastic",
        description="a weight whose accumulator passes 1 turns with probability |m|/2 (the theorem), or always (the practice)",
    )
    plasticity: bool = Field(
        False, description="the accumulator is multiplied by the share of weights left unchanged (the practice)"
    )
    clip: float = Field(
        2.0, ge=0, le=1e6, description="bound of |m|, 1 or more (2 is the most that unbiased rounding allows); 0 = none"
    )

    @pydantic.field_validator("clip")
    @classmethod
    def _passes(cls, clip: float) -> float:
        if 0 < clip < 1:
            raise ValueError("below 1 no weight ever turns; give 0 for no bound, or 1 or more")
        return clip


class ErrorFeedbackBoolean(Descent):
    """Boolean weights turn when accumulated gradients pass 1; what is not spent is kept as an error (BOLD's analysis)."""

    id = "error_feedback_boolean"
    title = "Boolean optimiser as error feedback"
    family = "lowbit"
    paper = "arXiv:2401.16418"
    kinds = ("minimisation",)
    example = {"task": "boolean_linear/logistic", "params": {"steps": 1500}}

    Params = ErrorFeedbackBooleanParams
    params: ErrorFeedbackBooleanParams

    def rule(self) -> BooleanRule:
        p = self.params
        return BooleanRule(p.eta, p.rounding == "stochastic", p.plasticity, p.clip)

    def figures(self, tally: Tally) -> dict[str, float]:
        found = {
            "train/flips": tally.flips.item(),
            "train/accumulator_bound": tally.m_max.item() / self.params.eta,
            "train/idle": tally.idle.item() / tally.steps,
            "train/residual_norm2": tally.e2.item() / tally.steps,
            "train/rounding_norm2": tally.h2.item() / tally.steps,
        }
        if tally.spent.item():  # a contraction, and a share of those that passed, exist once a weight has passed
            found |= {"train/contraction": tally.gamma.item(), "train/biased": (tally.biased / tally.spent).item()}
        return found
