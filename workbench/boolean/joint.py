"""Boolean and real parameters of one network under one optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean.optimizer import BooleanOptimizer, split_parameters


class JointOptimizer(torch.optim.Optimizer):
    """Several optimisers behind the interface of one, e.g. ``JointOptimizer(boolean=BooleanOptimizer(...), real=Adam(...))``.

    ``param_groups`` are the very groups of the parts, each with its ``lr``, so a learning-rate scheduler drives all of them.
    ``state_dict`` holds one entry a part. A part is reached by its name in ``optimizers``.
    """

    def __init__(self, **optimizers: torch.optim.Optimizer) -> None:
        strange = [f"{name} ({type(o).__name__})" for name, o in optimizers.items() if not isinstance(o, torch.optim.Optimizer)]
        if strange or not optimizers:
            raise UserError(f"JointOptimizer takes optimisers by name, e.g. boolean=..., real=...; given: {', '.join(strange) or 'none'}.")
        self.optimizers = optimizers
        groups = [g for o in optimizers.values() for g in o.param_groups]
        params = [p for g in groups for p in g["params"]]
        if len({id(p) for p in params}) < len(params):
            raise UserError("A parameter is given to two of the joined optimisers, or twice to one: each may have but one.")
        super().__init__([{"params": g["params"]} for g in groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [g for o in self.optimizers.values() for g in o.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """State of every parameter, as its own optimiser holds it."""
        return {p: s for o in self.optimizers.values() for p, s in o.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """The base class begins with an empty state; ours lives in the parts."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: a group belongs to one of the parts."""
        if len(self.param_groups) >= sum(len(o.param_groups) for o in self.optimizers.values()):
            raise UserError("Which part is the new group for? Add it there, with optimizers[name].add_param_group, and join anew; "
                            f"the parts are {', '.join(self.optimizers)}.")
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        """One step of every part; the closure, if any, is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State dictionaries of the parts by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load every part; raises :class:`tracking.errors.UserError` when the names differ."""
        if set(state_dict) != set(self.optimizers):
            raise UserError(f"The state is of the parts {', '.join(state_dict)}; this optimiser joins {', '.join(self.optimizers)}.")
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self._join()  # loading gives the parts new groups


def joint_optimizer(model: nn.Module, lr: float, *, real_lr: float = 1e-3, real: Mapping[str, Any] | None = None,
                    **boolean: Any) -> JointOptimizer:
    """The paper's pair: :class:`BooleanOptimizer` at ``lr`` for Boolean parameters, Adam at ``real_lr`` for the others.

    ``boolean`` and ``real`` are further options of the two. A network without one of the kinds gets the other alone.
    """
    flipped, plain = split_parameters(model)
    parts: dict[str, torch.optim.Optimizer] = {}
    if flipped:
        parts["boolean"] = BooleanOptimizer(flipped, lr, **boolean)
    if plain:
        parts["real"] = torch.optim.Adam(plain, real_lr, **(real or {}))
    if not parts:
        raise UserError("The network has no parameter that requires a signal: there is nothing to train.")
    return JointOptimizer(**parts)
