"""The replay buffer between two modules: who is overwritten, who is read, and how often and how late.

Belilovsky, Leconte, Caccia, Eickenberg & Oyallon, arXiv:2106.06401, with the rules of the official simulation (of arXiv:1901.08164).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from tracking.errors import UserError, unknown

Recency = Literal["newest", "official_off_by_one"]


@dataclass
class ReplayBuffer:
    """A ring of ``capacity`` (M) items. All fields are plain data: they are the buffer's whole memory.

    ``write`` overwrites the oldest item. ``read`` takes, among the items read least often, the newest: reuse is penalised
    before age. An item stays until it is overwritten.

    Args:
        capacity: M, at least 1.
        recency: ``newest``, or ``official_off_by_one``: where the ring is full, the oldest item counts as the newest (the official
            code compares ``>`` with the write pointer where ``>=`` is meant).
        max_reads: an item is read so often at most; 0: no limit.
    """

    capacity: int
    recency: Recency = "newest"
    max_reads: int = 0
    items: list[Any] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    """How often each item was read."""
    written: list[int] = field(default_factory=list)
    """Number of each item, counted from 0 in order of writing."""
    total_written: int = 0
    total_reads: int = 0
    repeated: int = 0
    """Reads of an item that had been read before."""
    lost: int = 0
    """Items overwritten before anyone read them."""
    ages: dict[int, int] = field(default_factory=dict)
    """Reads by age: how many newer items had been written by then."""

    def __post_init__(self) -> None:
        if self.recency not in get_args(Recency):
            raise unknown("rule of recency", self.recency, get_args(Recency))
        if self.capacity < 1 or self.max_reads < 0:
            raise UserError(f"A buffer of capacity {self.capacity} with at most {self.max_reads} reads an item is refused. "
                            "Allowed: a capacity from 1 on; reads from 1 on, or 0 for no limit.")

    def __len__(self) -> int:
        return len(self.items)

    def write(self, item: Any) -> None:
        """Store ``item`` in the place of the oldest one, once all places are taken."""
        place = self.total_written % self.capacity
        if place == len(self.items):
            self.items.append(item)
            self.reads.append(0)
            self.written.append(self.total_written)
        else:
            self.lost += self.reads[place] == 0
            self.items[place], self.reads[place], self.written[place] = item, 0, self.total_written
        self.total_written += 1

    def read(self) -> Any | None:
        """The item whose turn it is; ``None`` when there is none, or none that may be read again."""
        if not self.items or (self.max_reads and min(self.reads) >= self.max_reads):
            return None
        fewest = min(self.reads)
        place = next(i for i in self._newest_first() if self.reads[i] == fewest)
        self.repeated += fewest > 0
        self.total_reads += 1
        age = self.total_written - 1 - self.written[place]
        self.ages[age] = self.ages.get(age, 0) + 1
        self.reads[place] += 1
        return self.items[place]

    def _newest_first(self) -> Iterator[int]:
        """Places in order of recency, by the rule; the one at the write pointer holds the oldest item where the ring is full."""
        held = len(self.items)
        mistaken = self.recency == "official_off_by_one" and held == self.capacity
        start = self.total_written if mistaken else self.total_written - 1
        return ((start - k) % held for k in range(held))

    @property
    def nbytes(self) -> int:
        """Bytes of the items held: of tensors and byte strings, however nested in tuples, on whatever device."""
        return sum(map(_size, self.items))

    @property
    def reuse(self) -> float | None:
        """Share of reads that hit an item read before."""
        return self.repeated / self.total_reads if self.total_reads else None

    @property
    def age(self) -> float | None:
        """Mean age of what was read, in newer items."""
        return sum(a * n for a, n in self.ages.items()) / self.total_reads if self.total_reads else None

    @property
    def unread(self) -> float | None:
        """Share of the overwritten items that nobody had read."""
        overwritten = self.total_written - len(self.items)
        return self.lost / overwritten if overwritten else None


def pooled(buffers: list[ReplayBuffer]) -> dict[str, float]:
    """``reuse``, ``age`` and ``unread`` over all reads (and overwritten items) of all ``buffers``; what is undefined is left out."""
    reads = sum(b.total_reads for b in buffers)
    overwritten = sum(b.total_written - len(b) for b in buffers)
    ages = sum((Counter(b.ages) for b in buffers), Counter())
    figures = {}
    if reads:
        figures = {"reuse": sum(b.repeated for b in buffers) / reads, "age": sum(a * n for a, n in ages.items()) / reads}
    return figures | ({"unread": sum(b.lost for b in buffers) / overwritten} if overwritten else {})


def _size(item: Any) -> int:
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, (tuple, list)):
        return sum(map(_size, item))
    return len(item) if isinstance(item, (bytes, memoryview)) else 0
