"""What a server's rule is, for any federated loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Work(NamedTuple):
    """What is known of the ``m`` deliveries of a server step besides the models."""

    clients: Tensor
    """(m,) int64."""
    steps: Tensor
    """(m,) local gradient steps each did since it last received a model."""
    staleness: Tensor
    """(m,) server steps between the version it began from and this one, 0 for the newest."""


class Aggregator(Protocol):
    """The server's rule, usable in any federated loop. Its memory, if it has one, is in ``state_dict``."""

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        """The new server model ``(P,)``, a new tensor, from the old one, the models the clients began from and those
        they deliver, both ``(m, P)``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """Base of aggregators that remember nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
