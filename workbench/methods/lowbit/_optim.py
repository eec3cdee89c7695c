"""What optimisers of quantised weights share: parameter groups with levels, and torch's own SGD or Adam inside.

A parameter group whose ``weights`` is ``None`` is trained plainly. The others are quantised by the subclass, which either
keeps the parameter itself as the latent weight, or stores the latent weight in its state and writes what the forward pass
is to use into the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from workbench.methods.lowbit._levels import LEVELS, nearest_level, sawb_scale, sign


class LowBitOptimizer(torch.optim.Optimizer):
    """Base of the optimisers of quantised weights.

    Args:
        params: parameters or groups; a group's ``weights`` names its level set (``None``: trained plainly).
        lr: learning rate.
        base: update rule of the inner step, ``"sgd"`` (with ``momentum``) or ``"adam"`` (with ``betas``, ``adam_eps``).
        weights: level set of groups that name none.
        scale: ``"unit"`` puts the levels at their integer values, ``"sawb"`` scales them by layer.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, base: Literal["sgd", "adam"] = "adam", momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999), adam_eps: float = 1e-8, weight_decay: float = 0.0,
        weights: str | None = "binary", scale: Literal["unit", "sawb"] = "unit", **defaults: Any,
    ) -> None:
        if base not in ("sgd", "adam"):
            raise ValueError(f"base = {base!r}; allowed: 'sgd', 'adam'.")
        if weights is not None and weights not in LEVELS:
            raise ValueError(f"weights = {weights!r}; allowed: {', '.join(LEVELS)}.")
        super().__init__(params, dict(lr=lr, base=base, momentum=momentum, betas=betas, adam_eps=adam_eps,
                                      weight_decay=weight_decay, weights=weights, scale=scale, **defaults))

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what the first forward pass is to see is written into its parameters at once."""
        super().add_param_group(param_group)
        if self.param_groups[-1]["weights"] is not None:
            self._begin(self.param_groups[-1])

    def _begin(self, group: dict[str, Any]) -> None:
        """Check and prepare a new group of quantised parameters, where a method needs that."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["weights"] is None:
                self._descend(group, params, params, [p.grad for p in params])
            else:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        """Update quantised parameters. Subclasses implement this."""
        raise NotImplementedError

    def _descend(self, group: dict[str, Any], owners: Sequence[Tensor], targets: list[Tensor], grads: list[Tensor]) -> None:
        """Move ``targets`` in place by the inner SGD or Adam; moments are kept in the state of ``owners``."""
        states = [self.state[p] for p in owners]
        if group["base"] == "sgd":
            buffers = [s.get("momentum_buffer") for s in states]
            sgd(targets, grads, buffers, weight_decay=group["weight_decay"], momentum=group["momentum"],
                lr=group["lr"], dampening=0.0, nesterov=False, maximize=False, foreach=True)
            for s, b in zip(states, buffers, strict=True):
                if b is not None:
                    s["momentum_buffer"] = b
            return
        for s, t in zip(states, targets, strict=True):
            if "exp_avg" not in s:
                s.update(step=torch.zeros(()), exp_avg=torch.zeros_like(t), exp_avg_sq=torch.zeros_like(t))
        adam(targets, grads, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
             [s["step"] for s in states], foreach=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
             lr=group["lr"], weight_decay=group["weight_decay"], eps=group["adam_eps"], maximize=False)

    def latent(self, p: nn.Parameter) -> Tensor:
        """The real-valued weight behind ``p``: kept in the state, or ``p`` itself."""
        return self.state[p].get("latent", p.detach())

    @torch.no_grad()
    def quantise(self, w: Tensor, group: dict[str, Any]) -> Tensor:
        """What is deployed for the latent weight ``w``: its nearest level, times the layer's scale."""
        if group["scale"] == "unit" and group["weights"] == "binary":
            return sign(w)
        levels = torch.tensor(LEVELS[group["weights"]], dtype=w.dtype, device=w.device)
        if group["scale"] == "unit":
            return nearest_level(w, levels)
        s = sawb_scale(w, group["weights"])
        return nearest_level(w / s, levels) * s

    def deployed(self) -> dict[nn.Parameter, Tensor]:
        """Quantised value of every quantised parameter."""
        return {p: self.quantise(self.latent(p), group)
                for group in self.param_groups if group["weights"] is not None for p in group["params"]}
