"""The links of many parties: drawn from a named distribution with a seed, or read from a file."""

from __future__ import annotations

import csv
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tracking.errors import UserError, unknown
from tracking.links.link import Direction, Link, number, whole
from tracking.links.presets import preset

_STREAM = 0x6C696E6B  # keeps these draws apart from others that are keyed by (seed, client)
REQUIRED = ("latency_s", "bandwidth_up", "bandwidth_down")
OPTIONAL = ("loss", "rto_s")


class Links(Sequence[Link]):
    """One link a client, in the clients' order."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        if not self._links:
            raise UserError("Links: give at least one link.")

    def __getitem__(self, client: int) -> Link:
        return self._links[client]

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Links) and self._links == other._links

    def __hash__(self) -> int:
        return hash(self._links)

    def seconds(self, n_bytes: ArrayLike, direction: Direction) -> np.ndarray:
        """Expected seconds of a message each, shape (clients,); ``n_bytes`` is one size or one a client."""
        sizes = np.broadcast_to(n_bytes, len(self))
        return np.array([link.seconds(size, direction) for link, size in zip(self, sizes.tolist(), strict=True)])

    @classmethod
    def draw(cls, n: int, distribution: str = "fixed", *, seed: int = 0, **options: Any) -> Links:
        """Links of ``n`` clients. Client i's depends on the seed and i alone, however many there are.

        ====================  =================================================================================================
        ``"fixed"``           ``link`` for all
        ``"uniform"``         latency between those of ``low`` and ``high``, and bandwidth (both directions by one draw) too
        ``"lognormal"``       ``median`` with its bandwidths times ``exp(sigma z)``, its latency times ``exp(sigma_latency z')``
        ``"mixture"``         one of several presets, by ``weights`` (preset to weight; they need not sum to one)
        ====================  =================================================================================================

        Links are :class:`Link` or the name of a preset. Raises UserError for an unknown distribution or option.
        """
        n, seed = whole("Links.draw", "n", n, 1), whole("Links.draw", "seed", seed)
        if distribution not in _DISTRIBUTIONS:
            raise unknown("distribution of links", distribution, _DISTRIBUTIONS)
        prepare = _DISTRIBUTIONS[distribution]
        known = inspect.signature(prepare).parameters
        for option in options:
            if option not in known:
                raise unknown(f"option of distribution {distribution!r}", option, known)
        if missing := [name for name, p in known.items() if p.default is p.empty and name not in options]:
            raise UserError(f"Links.draw: distribution {distribution!r} needs {', '.join(missing)}. Its options: {', '.join(known)}.")
        one = prepare(**options)
        return cls([one(np.random.default_rng([_STREAM, seed, client])) for client in range(n)])

    @classmethod
    def from_csv(cls, path: str | Path) -> Links:
        """Read one client a row, in order. Columns: ``latency_s, bandwidth_up, bandwidth_down`` (s, B/s, B/s), maybe ``loss, rto_s``.

        Raises UserError that names the file, the line and the column for whatever is wrong.
        """
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file, skipinitialspace=True)
                header = [name.strip() for name in next(rows, [])]
                _check_header(path, header)
                return cls([_read_row(path, rows.line_num, header, row) for row in rows if row])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"Cannot read links from {path}: {error}.") from None


def _check_header(path: str | Path, header: list[str]) -> None:
    for name in header:
        if name not in (*REQUIRED, *OPTIONAL):
            raise unknown(f"column in {path}, line 1:", name, (*REQUIRED, *OPTIONAL))
    if missing := [name for name in REQUIRED if name not in header]:
        raise UserError(f"{path}, line 1: columns missing: {', '.join(missing)}. Needed: {', '.join(REQUIRED)}; "
                        f"allowed: {', '.join(OPTIONAL)}.")
    if len(set(header)) < len(header):
        raise UserError(f"{path}, line 1: a column is named twice: {', '.join(header)}.")


def _read_row(path: str | Path, line: int, header: list[str], row: list[str]) -> Link:
    if len(row) != len(header):
        raise UserError(f"{path}, line {line}: {len(row)} cells for {len(header)} columns.")
    values = {}
    for name, cell in zip(header, row, strict=True):
        try:
            if cell.strip() or name in REQUIRED:  # an empty optional cell is the default
                values[name] = float(cell)
        except ValueError:
            raise UserError(f"{path}, line {line}, column {name}: {cell!r} is not a number.") from None
    try:
        return Link(**values)
    except UserError as error:
        raise UserError(f"{path}, line {line}: {error}") from None


def _link(given: Link | str) -> Link:
    return given if isinstance(given, Link) else preset(given)


def _fixed(link):
    link = _link(link)
    return lambda rng: link


def _uniform(low, high):
    low, high = _link(low), _link(high)
    for field in ("loss", "rto_s", "framing"):
        if getattr(low, field) != getattr(high, field):
            raise UserError(f"Links.draw: low and high must have the same {field}, not {getattr(low, field)} and {getattr(high, field)}.")

    def one(rng):
        wide, late = rng.random(2)
        between = lambda field, u: (1 - u) * getattr(low, field) + u * getattr(high, field)  # noqa: E731
        return dataclasses.replace(low, latency_s=between("latency_s", late), bandwidth_up=between("bandwidth_up", wide),
                                   bandwidth_down=between("bandwidth_down", wide))
    return one


def _lognormal(median, sigma, sigma_latency=0.0):
    median = _link(median)
    sigma = number("Links.draw", "sigma", sigma, 0, 10)
    sigma_latency = number("Links.draw", "sigma_latency", sigma_latency, 0, 10)

    def one(rng):
        wide, late = np.exp(rng.standard_normal(2) * (sigma, sigma_latency))
        return dataclasses.replace(median, latency_s=median.latency_s * float(late), bandwidth_up=median.bandwidth_up * float(wide),
                                   bandwidth_down=median.bandwidth_down * float(wide))
    return one


def _mixture(weights):
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"Links.draw: weights = {weights!r} is refused. Give presets with weights, such as {{'lte': 2, 'wifi': 1}}.")
    names = sorted(weights)  # the same draw whatever the order they were written in
    links = [preset(name) for name in names]
    shares = np.cumsum([number("Links.draw", f"weight of {name}", weights[name], 0, 1e300) for name in names])
    if shares[-1] == 0:
        raise UserError("Links.draw: every weight is zero.")
    return lambda rng: links[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]


_DISTRIBUTIONS = {"fixed": _fixed, "uniform": _uniform, "lognormal": _lognormal, "mixture": _mixture}
