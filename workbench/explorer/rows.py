"""The reports of a run, by column: a run of a hundred thousand of them must be appended to, searched and drawn in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracking.metrics import METRICS


class Rows(Sequence):
    """A growing list of reports, each a mapping of metric (and ``step``) to a number, kept as one array a metric.

    One thread appends while others read: a reader may see a report that is half written, and the whole of it at its next look.
    """

    def __init__(self, reports: Iterable[Mapping[str, float]] = ()) -> None:
        self._columns: dict[str, np.ndarray] = {}
        self._count, self._room = 0, 64
        self.last: dict[str, float] = {}
        """Last value of every metric."""
        for report in reports:
            self.append(report)

    def append(self, report: Mapping[str, float]) -> None:
        """Add a report."""
        if self._count == self._room:
            self._room *= 2
            for name, old in self._columns.items():
                self._columns[name] = np.concatenate([old, np.full(len(old), np.nan)])
        for name, value in report.items():
            if name not in self._columns:
                self._columns[name] = np.full(self._room, np.nan)
            self._columns[name][self._count] = value
        self.last.update(report)
        self._count += 1

    @property
    def names(self) -> set[str]:
        """Everything that some report had."""
        return set(self._columns)

    def column(self, name: str) -> np.ndarray:
        """Values of one metric, NaN where a report lacks it; empty where none has it. A view, not to be written to."""
        kept = self._columns.get(name)
        return np.empty(0) if kept is None else kept[:self._count]

    def best(self, name: str) -> float | None:
        """Best value that a metric ever had; ``None`` where it was not reported or has no better direction."""
        better, values = METRICS[name].better if name in METRICS else None, self.column(name)
        if better is None or not np.isfinite(values).any():
            return None
        return float(np.nanmax(values) if better == "higher" else np.nanmin(values))

    def last_with(self, name: str) -> dict[str, float] | None:
        """The last report that had ``name``."""
        at = np.flatnonzero(np.isfinite(self.column(name)))
        return self[int(at[-1])] if at.size else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        at = range(self._count)[index]
        return {name: float(values[at]) for name, values in [*self._columns.items()] if values[at] == values[at]}

    def __iter__(self) -> Iterator[dict[str, float]]:
        return (self[i] for i in range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None
