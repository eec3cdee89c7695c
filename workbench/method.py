"""The contract of a Method: a typed parameter model, ``init``, ``step``, ``evaluate`` and ``progress``.

An algorithm never logs, times, plots, stops or saves: it yields plain dictionaries and its State is explicit. The
engine does the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from tracking.ledger import Ledger
from workbench.params import Params

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tracking.energy_model import PrecisionPlan
    from workbench.task import Task


class Progress(NamedTuple):
    """How far a run is: ``done`` of ``total`` reporting units. ``done`` becomes MLflow's integer step."""

    done: int
    total: int


@dataclass
class Context:
    """What the engine lends to an algorithm."""

    device: torch.device
    seed: int
    ledger: Ledger = field(default_factory=Ledger)
    poll: Callable[[], None] = lambda: None
    """Call between batches of long evaluations: raises when the run is to stop, so that Stop is prompt."""

    def generator(self, purpose: str, *, cpu: bool = False) -> torch.Generator:
        """A seeded generator for one purpose (``"order"``, ``"init"``, ``"noise"`` …), on the run's device unless ``cpu``.

        Seeds are derived from (run seed, purpose), so two methods with one seed see the same data in the same order. Keep
        the generator in the State: it is part of what a run remembers. The global generators are not an algorithm's to use.
        """
        import torch

        return torch.Generator("cpu" if cpu else self.device).manual_seed(derive_seed(self.seed, purpose))


@dataclass(frozen=True)
class View:
    """Something to look at inside an algorithm, as plain arrays or lists: whoever shows it draws it.

    ``groups`` maps a name to its values: of a ``"histogram"`` the values themselves, of ``"points"`` and ``"lines"`` a pair (x, y) of equal
    lengths, of ``"bars"`` one number, of ``"spans"`` a triple (row, begin, end) of equal lengths, rows being whole numbers; of a
    ``"matrix"`` a two-dimensional array, rows from the top; several are drawn beside each other in one scale of colours.
    """

    title: str
    kind: Literal["histogram", "points", "lines", "bars", "spans", "matrix"]
    groups: Mapping[str, Any]
    x: str = ""
    """What the horizontal axis shows, with its unit in brackets."""
    y: str = ""
    z: str = ""
    """What the colours of a matrix show."""
    note: str = ""
    """What a reader must know, in a sentence or two."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for (seed, purpose): stable over machines and Python versions."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Method:
    """One algorithm under test, baselines included.

    Class attributes are read by the catalogue without importing the file, so they are literals. The first line of
    the docstring is the one-line description a person reads.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str] = ""
    """Reference: ``arXiv:2211.03741``, a DOI, or empty for folklore."""
    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    """Kinds of task it can run (``Task.kind``)."""
    example: ClassVar[dict[str, Any]] = {"task": "digits/mlp", "params": {}}
    """A run of seconds in which the method visibly learns: the contract test, the GPU check and the explorer start from it."""

    published: ClassVar[dict[str, Any]] = {}
    """The authors' own setting: ``source`` says where it stands, ``params`` what of it differs from the declared defaults, and ``task``
    and ``task_params`` what it was run on, where that is a task here. Empty where none is known for certain."""

    Params: ClassVar[type[Params]] = Params

    def __init__(self, params: Params) -> None:
        self.params = params

    @classmethod
    def refuses(cls, task: Task, params: Params) -> str | None:
        """Why this method cannot run on ``task``, as a sentence; ``None`` when it can."""
        if task.kind in cls.kinds:
            return None
        return f"Method {cls.id!r} runs on tasks of kind {', '.join(cls.kinds)}; {task.id!r} is of kind {task.kind}."

    def init(self, task: Task, ctx: Context) -> Any:
        """Build the State: one dataclass that names all that the algorithm remembers."""
        raise NotImplementedError

    def shell(self, task: Task, ctx: Context) -> Any:
        """A State that a saved one is put into, to be looked at: whatever can only be loaded in place is there.

        Override this where :meth:`init` computes for long what a saved State brings along.
        """
        return self.init(task, ctx)

    def step(self, state: Any, task: Task, ctx: Context) -> dict[str, float]:
        """Advance by one reporting unit (aim: under a second at the quick profile), changing ``state``; return metrics."""
        raise NotImplementedError

    def evaluate(self, state: Any, task: Task, ctx: Context) -> dict[str, float]:
        """Quality of what would be deployed now. Leaves ``state`` as it is; its time is not billed."""
        raise NotImplementedError

    def modelled(self, state: Any, task: Task) -> tuple[nn.Module, Any, PrecisionPlan] | None:
        """What the energy model needs: the network, an input of one batch (or its shape), and the formats of every operand in training.

        ``None``: no energy is modelled for this method. Joules count per sample of ``train/samples``.
        """
        return None

    def views(self, state: Any, task: Task) -> list[View]:
        """What there is to see inside ``state`` now. Called when a person asks, between two steps; leaves ``state`` as it is."""
        return []

    def evaluation_due(self, state: Any) -> bool:
        """Whether the engine evaluates after the step just made. The last step is always evaluated."""
        return True

    def progress(self, state: Any) -> Progress:
        """How far the run is; it ends when ``done >= total``."""
        raise NotImplementedError
