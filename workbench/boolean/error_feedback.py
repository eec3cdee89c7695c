"""The Boolean optimiser as an error-feedback mechanism, the form that the convergence analysis treats.

Leconte, "Boolean Logic as an Error feedback mechanism", arXiv:2401.16418; BOLD (Nguyen et al., NeurIPS 2024,
arXiv:2405.16339), appendix A.2, Alg. 3. It has no plasticity factor: beta = 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from tracking.errors import unknown
from workbench.boolean._flip_optimizer import FlipOptimizer

Ties = Literal["flip", "half"]


def q1(m: Tensor, w: Tensor, threshold: float = 1.0, ties: Ties = "flip") -> Tensor:
    """The part of ``m`` that is spent: ``m`` where ``m w`` passes the threshold, else 0.

    At threshold 1 equal to the paper's ``w (relu(w m - 1) + sign(w m - 1)/2 + 1/2)`` but for rounding, and where ``w m = 1``
    exactly: there the formula spends half (``ties="half"``), the optimiser all (``"flip"``).
    """
    agreement = m * w
    spent = torch.where(agreement >= threshold, m, 0.0)
    return torch.where(agreement == threshold, spent / 2, spent) if ties == "half" else spent


def q0(u: Tensor, w: Tensor, draws: Tensor | None = None) -> Tensor:
    """Back to +-1: the sign of ``u``, where ``u = w - Delta``; at 0 the new side, ``-w``.

    With ``draws``, uniform in [0, 1) and of ``u``'s shape: +1 with probability ``(1 + u)/2``, so that ``E[Q0(u) | u] = u`` for
    ``|u| <= 1`` (assumption A6).
    """
    agreement = u * w
    return torch.where(agreement <= 0 if draws is None else draws < (1 - agreement) / 2, -w, w)


class ErrorFeedbackBoolean(FlipOptimizer):
    """Boolean training by error feedback (Alg. 3)::

        m = e + lr q;   Delta = Q1(m, w);   w <- Q0(w - Delta);   e <- m - Delta

    With deterministic ``Q0`` and ``ties="flip"`` it equals ``BooleanOptimizer(beta=1)`` bit for bit. ``state[p]`` holds ``m`` (of the
    last step), ``e``, ``flips`` and ``total_flips``, and with ``diagnostics`` these 0-d tensors of the last step, squared norms
    over the tensor: ``e_sq`` and ``m_sq``; ``h_sq``, of ``Q0(u) - u``; ``residue_sq``, of ``Q1(m, w) - m``; and ``m_max``, the
    largest ``|m|``.

    Args:
        stochastic: unbiased ``Q0`` (A6), which turns a weight that passed with probability ``|m|/2``.
        clip: bound of ``|m|``: ``lr * kappa`` enforces assumption A5, ``|m / lr| <= kappa``.
        ties: what ``m w = threshold`` does (:func:`q1`).
        params, lr, threshold, generator: as in :class:`workbench.boolean.BooleanOptimizer`.
    """

    accumulators = ("e",)

    def __init__(
        self, params: Iterable[Any], lr: float, threshold: float = 1.0, clip: float | None = None, stochastic: bool = False,
        ties: Ties = "flip", diagnostics: bool = False, generator: torch.Generator | None = None,
    ) -> None:
        if ties not in ("flip", "half"):
            raise unknown("ties", ties, ("flip", "half"))
        super().__init__(params, dict(lr=lr, threshold=threshold, clip=clip, stochastic=stochastic, ties=ties, diagnostics=diagnostics),
                         generator)

    def _begin(self, w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["e"] = torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))

    def _turn(self, w: Tensor, q: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        m = state["e"].add(q, alpha=group["lr"])
        if group["clip"] is not None:
            m.clamp_(-group["clip"], group["clip"])
        spent = q1(m, w, group["threshold"], group["ties"])
        u = w - spent / group["threshold"]  # in units of the threshold, so that a weight's side is +-1 for any
        turned = q0(u, w, self._uniform(w) if group["stochastic"] else None)
        state["m"], state["e"] = m, m - spent
        if group["diagnostics"]:
            state.update(m_sq=m.square().sum(), e_sq=state["e"].square().sum(), h_sq=(turned - u).square().sum(),
                         residue_sq=(spent - m).square().sum(), m_max=m.abs().amax())
        flips = (turned != w).sum()
        w.copy_(turned)
        return flips

    @property
    def e(self) -> list[Tensor]:
        """Error ``e`` of every tensor that has had a step, in the order of the groups."""
        return self._states("e")

    @property
    def m(self) -> list[Tensor]:
        """``m = e + lr q`` of the last step, before what was spent."""
        return self._states("m")

    @property
    def flips(self) -> list[Tensor]:
        """Flips of the last step, 0-d tensors."""
        return self._states("flips")

    def _states(self, name: str) -> list[Tensor]:
        return [self.state[p][name] for group in self.param_groups for p in group["params"] if self.state.get(p)]
