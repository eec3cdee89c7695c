"""What a federated training remembers between server steps, and what its parts hand to each other within one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.methods.federated._aggregator import Aggregator
from workbench.methods.federated._local import Job


@dataclass
class FederatedState:
    """All that the federation remembers between two server steps."""

    server: Tensor
    versions: dict[int, Tensor]
    """Server models as clients received them, by server step, that some delivery still to come began from."""
    own: dict[int, Tensor]
    """Models of clients that do not simply take over the server's, by client."""
    aggregator: Aggregator
    ahead: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """Models ``(k, P)`` that were trained together and are delivered one after the other, until all are."""
    ahead_loss: Tensor = field(default_factory=lambda: torch.empty(0))
    delivered: int = 0
    """How many of them are."""
    scales: tuple[float, ...] = ()
    """Steps between the levels of the quantised layers, from when they are fixed on (local = ``askewsgd``)."""
    step: int = 0
    samples: int = 0
    gradients: int = 0
    diverged: int = 0
    before: float = 0.0
    """Virtual time before the last report."""


class Tally(NamedTuple):
    """Sums over the contacts of a server step."""

    loss: float
    """Of mean losses, over the ``worked`` contacts that did a step."""
    worked: int
    distance: float
    """Of squared distances to the server's model, over all ``contacts``."""
    contacts: int


class Request(NamedTuple):
    """Local training that is due: the rows of ``stack`` ``(m, P)``, to be trained in place."""

    stack: Tensor
    samples: list[np.ndarray]
    """(steps_i, B) training samples a row."""
    lr: float | Tensor
    """One rate, or one a row ``(m,)``."""
    jobs: list[Job]
