"""What there is to see of the modules inside a decoupled run: who works when, and who waits.

Virtual time depends on costs, paces and message sizes and never on weights, so the line is run once more, without any learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from workbench.decoupled import Channel, EventLine, Line
from workbench.decoupled.costs import evaluating
from workbench.decoupled.messages import Message
from workbench.method import View

if TYPE_CHECKING:
    from workbench.task import SupervisedTask

SHOWN = 8
"""Batches of a time line: more are too narrow to be told apart."""
MOST = 60
"""Steps of a time line for each module, where one is much faster than another."""
NOTHING: Message = (b"", b"", 0, b"")


class Span(NamedTuple):
    """A piece of work of a module, counted from 0, in virtual time."""

    what: str
    module: int
    begin: float
    end: float


def module_views(spans: Sequence[Span], waits: Sequence[float], note: str) -> list[View]:
    """The time line, and for each module the share of the time so far in which it waited; either is left out where it is empty."""
    found = []
    if spans:
        kinds = {what: [s for s in spans if s.what == what] for what in dict.fromkeys(s.what for s in spans)}
        groups = {what: ([s.module + 1 for s in own], [s.begin for s in own], [s.end for s in own]) for what, own in kinds.items()}
        found.append(View("Time line of the modules", "spans", groups, x="virtual time [s]", y="module", note=note))
    if waits:
        bars = {f"module {j}": min(max(share, 0.0), 1.0) for j, share in enumerate(waits, 1)}
        found.append(View("Waiting of the modules", "bars", bars, y="share of the time so far [fraction]"))
    return found


def outputs(bodies: Sequence[nn.Module], task: SupervisedTask, size: int) -> list[Tensor]:
    """What all modules but the last put out for a batch of ``size``: of the right shapes, and of no meaning."""
    x, _ = task.batch(torch.arange(min(size, task.train_count)))
    found = []
    for body in bodies[:-1]:
        with evaluating(body):
            x = body(x)
        found.append(x)
    return found


def messages(channels: Sequence[Channel], between: Sequence[Tensor]) -> list[Message]:
    """The next message of every channel, with what it computed standing for any other; it is billed where the channel bills."""
    return [channel.send(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), False)
            for channel, x in zip(channels, between, strict=True)]


def turns(line: Line, what: str, channels: Sequence[Channel], between: Sequence[Tensor], count: int, scale: float) -> list[Span]:
    """The steps of a fresh ``line`` up to the ``count``-th of the first module and the second of all, ``scale`` virtual seconds to its
    unit of time."""
    spans: list[Span] = []
    if isinstance(line, EventLine):
        line.spans = []

    def work(j: int, _: object) -> Message:
        return messages(channels[j:j + 1], between[j:j + 1])[0] if j < len(between) else NOTHING

    while (line.turns[0] < count or min(line.turns) < 2) and sum(line.turns) < MOST * line.modules:
        j = line.turn(work)
        begin, end = line.spans[-1][1:] if isinstance(line, EventLine) else (line.now - line.tick, line.now)
        spans.append(Span(what, j, scale * begin, scale * end))
    return spans
