"""What optimisers of +-1 weights share: which parameters they take, the count of flips, and an exact state dictionary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracking.errors import UserError, unknown

GROUP_KEYS = {"params", "param_names", "initial_lr", "name"}
"""What a parameter group may hold beside the options of its optimiser."""


class LayerReport(NamedTuple):
    """What the last step did to one Boolean tensor."""

    name: str
    size: int
    """Number of weights."""
    flips: int
    """Weights that the last step turned."""
    total_flips: int
    """Weights turned since the start, repetitions counted."""
    beta: float
    """Share of weights that the last step left unchanged; with plasticity, the factor on the accumulator in the next."""

    @property
    def flip_rate(self) -> float:
        """Share of weights that the last step turned."""
        return self.flips / self.size


class FlipOptimizer(torch.optim.Optimizer):
    """Base of the optimisers of +-1 weights.

    A subclass implements :meth:`_turn`. The state of a tensor holds ``flips`` and ``total_flips`` (0-d, int64, on its device), so a step
    never waits for a GPU.
    """

    accumulators: tuple[str, ...] = ()
    """Names of the state's tensors that are as large as the weights."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], generator: torch.Generator | None) -> None:
        self.generator = generator
        super().__init__(params, defaults)

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of Boolean parameters; raises :class:`tracking.errors.UserError` for anything else."""
        strange = sorted(set(param_group) - GROUP_KEYS - set(self.defaults))
        if strange:
            raise UserError(f"{type(self).__name__} takes no {', '.join(strange)}: weights are +-1, so there is nothing to decay, and no "
                            f"moment but the accumulator. A group may set {', '.join(sorted(self.defaults))}.")
        check_options({**self.defaults, **param_group})
        params = param_group["params"]
        param_group["params"] = params = [params] if isinstance(params, Tensor) else list(params)
        tensors = [p[1] if isinstance(p, tuple) else p for p in params]
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, p in enumerate(tensors):
            what = f"Parameter {i} of the group, of shape {tuple(p.shape)} and {p.dtype},"
            if id(p) in known:
                raise UserError(f"{what} is given to {type(self).__name__} twice. Weights that two layers share are one parameter, whose "
                                "votes add up: pass it once.")
            known.add(id(p))
            if not p.is_floating_point() or p.is_sparse or not bool((p.detach().abs() == 1).all()):
                raise UserError(f"{what} is not a dense floating-point tensor of +1 and -1 alone. Give real-valued parameters to another "
                                "optimiser: split_parameters(model) tells the two apart.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a weight signal in ``.grad``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                if w.grad.is_sparse:
                    raise UserError(f"{type(self).__name__} needs dense weight signals; that of the parameter of shape {tuple(w.shape)} is "
                                    "sparse.")
                state = self.state[w]
                if not state:
                    state.update({name: torch.zeros((), dtype=torch.int64, device=w.device) for name in ("flips", "total_flips")})
                    self._begin(w, state, group)
                state["flips"].copy_(self._turn(w, w.grad, state, group))
                state["total_flips"].add_(state["flips"])
        return loss

    def _begin(self, w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Put the accumulators of ``w`` into its fresh state."""
        raise NotImplementedError

    def _turn(self, w: Tensor, q: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Update ``w`` in place by the weight signal ``q``; return the number of flips, a 0-d tensor."""
        raise NotImplementedError

    def _uniform(self, w: Tensor) -> Tensor:
        """Draws in [0, 1), one a weight; from a generator of our own with seed 0 where none was given, the same on every replica."""
        if self.generator is None:
            self.generator = torch.Generator(w.device).manual_seed(0)
        return torch.rand(w.shape, generator=self.generator, device=w.device)

    # --- what happened --------------------------------------------------------------------------------------

    def layers(self) -> list[LayerReport]:
        """The last step, tensor by tensor; parameters that have had no step are absent. Waits for the device."""
        reports = []
        for group in self.param_groups:
            names = group.get("param_names") or [None] * len(group["params"])
            for name, p in zip(names, group["params"], strict=True):
                if state := self.state.get(p):
                    flips, total = int(state["flips"]), int(state["total_flips"])
                    reports.append(LayerReport(name or f"boolean{len(reports)}", p.numel(), flips, total, 1 - flips / p.numel()))
        return reports

    def report(self) -> dict[str, float]:
        """``flips``, ``flip_rate`` and the smallest ``beta`` of the last step, over all tensors; empty before the first."""
        layers = self.layers()
        if not layers:
            return {}
        flips = sum(r.flips for r in layers)
        return {"flips": flips, "flip_rate": flips / sum(r.size for r in layers), "beta": min(r.beta for r in layers)}

    # --- checkpoint -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser's, and the state of the generator, if one is in use."""
        state = super().state_dict()
        if self.generator is not None:
            state["generator"] = {"device": str(self.generator.device), "state": self.generator.get_state()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Bring back weights' accumulators, counts and draws, bit for bit."""
        generator = state_dict.get("generator")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "generator"})
        saved = state_dict["state"]
        ids = (i for group in state_dict["param_groups"] for i in group["params"])
        for p, i in zip((p for group in self.param_groups for p in group["params"]), ids, strict=True):
            # torch casts floating-point state to the parameter's dtype, and integers with it: accumulators keep their own
            for name, value in saved.get(i, {}).items():
                self.state[p][name] = value.to(p.device, copy=True) if isinstance(value, Tensor) else value
        if generator is not None:
            if self.generator is None:
                self.generator = torch.Generator(generator["device"])
            self.generator.set_state(generator["state"].cpu())


def check_options(group: dict[str, Any]) -> None:
    """Refuse what an optimiser of +-1 weights cannot use, in words."""
    def require(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"{name} = {group[name]!r}; allowed: {allowed}.")

    require("lr", _number(group["lr"]) and group["lr"] >= 0, "a number >= 0 (votes count lr each)")
    require("threshold", _number(group["threshold"]) and group["threshold"] > 0, "a number > 0")
    if group["clip"] is not None:
        require("clip", _number(group["clip"]) and group["clip"] >= group["threshold"],
                f"None, or at least threshold = {group['threshold']}: below it no weight ever turns")
    if "beta" in group:
        beta = group["beta"]
        require("beta", beta == "plasticity" or (_number(beta) and 0 <= beta <= 1), "'plasticity', or a number in [0, 1]")
    if "accumulator" in group and group["accumulator"] not in ("float32", "int16"):
        raise unknown("accumulator", group["accumulator"], ("float32", "int16"))


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
