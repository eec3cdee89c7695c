"""Hardware of the energy model: memory levels, an array of multipliers, prices; each number with provenance and interval.

A file of ``hardware/`` describes one hardware; people load their own by its path. Prices of a process node are shared and
lie in ``hardware/prices/``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tracking.errors import UserError, did_you_mean, unknown

FOLDER = Path(__file__).parent / "hardware"
TAGS = ("source", "recollection", "our choice", "measured")
OPERANDS = ("a", "b", "o")
UNITS = {"pJ": 1e-12, "relative": 1.0}
PRICES = re.compile(r"((fp|int)\d+|bf16)_(add|mul)|logic|bool_pair")
EXTRAS = re.compile(r"scale|instruction|vector_bits|dram_bytes_per_s|((fp|bf|int)\d+|bool)_macs_per_s")


@dataclass(frozen=True)
class Constant:
    """One number: ``value`` in ``unit``, believed to lie in ``[low, high]``.

    ``node`` is the process or generation it belongs to, ``source`` where it is from, ``tag`` how well it is known:
    ``source`` (read there), ``recollection`` (from there, not read again), ``our choice`` or ``measured``.
    """

    value: float
    unit: str
    low: float
    high: float
    node: str
    source: str
    tag: str

    def at(self, value: float) -> Constant:
        """The same constant, known to be ``value``."""
        return dataclasses.replace(self, value=value, low=value, high=value)


@dataclass(frozen=True)
class Level:
    """A memory: energy per bit read from it and written to it, in pJ (or reference MACs).

    ``capacity_bits`` None is unlimited. ``operand`` None holds all three operands of a product, ``"a"``, ``"b"`` or
    ``"o"`` one of them, ``"ao"`` two. ``note`` says where the capacity is from.
    """

    name: str
    capacity_bits: int | None
    read: Constant
    write: Constant
    operand: str | None = None
    note: str = ""

    @property
    def operands(self) -> str:
        """Letters of the operands it holds."""
        return self.operand or "abo"


@dataclass(frozen=True)
class Hardware:
    """Memory levels from the outermost inwards, the array, and prices.

    ``array`` (Rm, Rn, Rk): how many multipliers share a fetched element of B, one of A, and a partial sum. ``macs``:
    prices by name (``fp32_mul``, ``int8_add``, ``logic``: one gate, ``bool_pair``: two Boolean factors and their
    counting). ``extras``: ``scale`` of all prices; ``instruction`` energy, shared by ``vector_bits``; for a roofline
    ``dram_bytes_per_s`` and ``<format>_macs_per_s``. ``unit`` "relative": energies count in reference MACs, not joules.
    """

    id: str
    title: str
    note: str
    levels: tuple[Level, ...]
    array: tuple[int, int, int]
    macs: Mapping[str, Constant] = field(hash=False)
    extras: Mapping[str, Constant] = field(default_factory=dict, hash=False)
    unit: str = "pJ"

    @property
    def joules(self) -> float:
        """Joules in one unit of energy; 1 where the unit is the reference MAC."""
        return UNITS[self.unit]

    @cached_property
    def stages(self) -> tuple[dict[str, Level], ...]:
        """For every stage, outermost first, the level of each operand.

        A stage is the shortest run of successive levels that holds all three operands.
        """
        found, stage = [], {}
        for level in self.levels:
            if set(level.operands) & set(stage):
                raise UserError(f"{self.id}: level {level.name!r} holds an operand that its stage has already. Order levels "
                                "from the outermost inwards, those of one stage together, each operand once.")
            stage |= dict.fromkeys(level.operands, level)
            if len(stage) == len(OPERANDS):
                found.append(stage)
                stage = {}
        if stage or len(found) < 2:
            raise UserError(f"{self.id}: levels = {[level.name for level in self.levels]} is refused. "
                            "Allowed: two or more whole stages, each with a memory for a, b and o.")
        return tuple(found)

    def constants(self) -> dict[str, Constant]:
        """All constants by name: ``L1.read``, ``mac.fp32_mul``, ``extra.scale``."""
        return {**{f"{level.name}.{way}": getattr(level, way) for level in self.levels for way in ("read", "write")},
                **{f"mac.{name}": constant for name, constant in self.macs.items()},
                **{f"extra.{name}": constant for name, constant in self.extras.items()}}

    def at(self, values: Mapping[str, float] | None = None) -> Hardware:
        """A copy in which some of :meth:`constants` have other values. Raises :class:`UserError` for another name."""
        new = self.constants()
        for name, value in (values or {}).items():
            if name not in new:
                raise unknown(f"constant of {self.id}", name, new)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{self.id}: {name} = {value!r} is refused. Allowed: number, 0 < x.")
            new[name] = new[name].at(float(value))
        levels = tuple(dataclasses.replace(level, **{way: new[f"{level.name}.{way}"] for way in ("read", "write")})
                       for level in self.levels)
        return dataclasses.replace(self, levels=levels, macs={name: new[f"mac.{name}"] for name in self.macs},
                                   extras={name: new[f"extra.{name}"] for name in self.extras})

    def sample(self, rng: np.random.Generator) -> Hardware:
        """A copy with every constant drawn from its interval, uniform in the logarithm: intervals are factors.

        Constants that err together share a quantile: both ways of a level, and the prices of a table (one process
        node). The latter also keeps wide arithmetic dearer than narrow in every draw.
        """
        quantiles: dict[str, float] = {}
        drawn = {}
        for name, constant in self.constants().items():
            group = name.partition(".")[0]
            quantile = quantiles.setdefault(name if group == "extra" or name == "mac.bool_pair" else group, rng.random())
            drawn[name] = constant.low * (constant.high / constant.low) ** quantile
        return self.at(drawn)


def hardware_ids() -> list[str]:
    """Ids of the hardware that comes with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def hardware(id: str | os.PathLike[str]) -> Hardware:
    """The hardware of this id, or of a file given by a path that ends in ``.json``. Raises :class:`UserError`."""
    name = os.fspath(id)
    if not name.endswith(".json"):
        return _shipped(name)
    if not Path(name).is_file():
        raise UserError(f"There is no file {name}. Give the path of a hardware file, or one of: {', '.join(hardware_ids())}.")
    return _read(Path(name))


@lru_cache
def _shipped(name: str) -> Hardware:
    if name not in hardware_ids():
        raise unknown("hardware", name, hardware_ids())
    return _read(FOLDER / f"{name}.json")


def _read(path: Path) -> Hardware:
    """Read and check a file. ``macs`` is a table of constants, or the name of one of ``hardware/prices/``."""
    record = _fields(_json(path), str(path), ("id", "title", "array", "levels", "macs"), ("note", "extras", "unit"))
    where, unit, array, macs = record["id"], record.get("unit", "pJ"), record["array"], record["macs"]
    if unit not in UNITS:
        raise unknown(f"unit of {where}", unit, UNITS)
    if not (isinstance(array, list) and len(array) == 3 and all(type(r) is int and r >= 1 for r in array)):
        raise UserError(f"{where}: array = {array!r} is refused. Allowed: three whole numbers, 1 <= x.")
    if not isinstance(record["levels"], list):
        raise UserError(f"{where}: levels = {record['levels']!r} is refused. Allowed: a list of levels, outermost first.")
    if isinstance(macs, str):
        tables = {table.stem: table for table in (FOLDER / "prices").glob("*.json")}
        if macs not in tables:
            raise unknown(f"price table of {where}", macs, tables)
        macs = _json(tables[macs])
    made = Hardware(record["id"], record["title"], record.get("note", ""), array=tuple(array), unit=unit,
                    levels=tuple(_level(level, where) for level in record["levels"]),
                    macs=_constants(macs, PRICES, "price", where),
                    extras=_constants(record.get("extras", {}), EXTRAS, "extra", where))
    names = [level.name for level in made.levels]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: levels = {names} is refused. Give each level a name of its own.")
    _check_prices(made)
    _ = made.stages  # raises when they are not whole
    return made


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None


def _check_prices(made: Hardware) -> None:
    """Two points or more for every operation, dearer with the width: what interpolation needs."""
    for family, operation in ((f, o) for f in ("fp", "int") for o in ("add", "mul")):
        points = sorted((int(name[len(family):-4]), constant.value) for name, constant in made.macs.items()
                        if name.startswith(family) and name.endswith(operation))
        if len(points) < 2 or points != sorted(points, key=lambda p: p[1]):
            raise UserError(f"{made.id}: prices {points} of {family}<bits>_{operation} are refused. "
                            "Needed: two widths or more, the wider the dearer.")
    if missing := {"logic", "bool_pair"} - set(made.macs):
        raise UserError(f"{made.id}: the price table lacks {', '.join(sorted(missing))}.")
    if "instruction" in made.extras and "vector_bits" not in made.extras:
        raise UserError(f"{made.id}: instruction needs vector_bits, among whose lanes it is shared.")


def _level(record: Any, where: str) -> Level:
    record = _fields(record, f"{where}: level", ("name", "capacity_bits"), ("access", "read", "write", "operand", "note"))
    name, capacity, operand = record["name"], record["capacity_bits"], record.get("operand")
    if capacity is not None and not (type(capacity) is int and capacity > 0):
        raise UserError(f"{where}: capacity_bits = {capacity!r} of {name} is refused. "
                        "Allowed: whole number, 1 <= x, or null for unlimited.")
    if operand is not None and not (isinstance(operand, str) and operand and set(operand) <= set(OPERANDS)):
        raise UserError(f"{where}: operand = {operand!r} of {name} is refused. Allowed: null for all, or letters of abo.")
    ways = {way: record[way] for way in ("access", "read", "write") if way in record}
    if set(ways) not in ({"access"}, {"read", "write"}):
        raise UserError(f"{where}: {name} has {', '.join(ways) or 'no price'}. Give access, or read and write.")
    read, write = (_constant(ways.get(way, ways.get("access")), f"{where}: {name}") for way in ("read", "write"))
    return Level(name, capacity, read, write, operand, record.get("note", ""))


def _constants(table: Any, allowed: re.Pattern[str], what: str, where: str) -> dict[str, Constant]:
    if not isinstance(table, dict):
        raise UserError(f"{where}: {table!r} is refused. Allowed: a table of constants by name.")
    for name in table:
        if not allowed.fullmatch(name):
            raise UserError(f"{where} has no {what} {name!r}. Allowed: {allowed.pattern} (a regular expression).")
    return {name: _constant(record, f"{where}: {name}") for name, record in table.items()}


def _constant(record: Any, where: str) -> Constant:
    record = _fields(record, where, tuple(f.name for f in dataclasses.fields(Constant)), ())
    low, value, high = (record[name] if type(record[name]) in (int, float) else math.nan for name in ("low", "value", "high"))
    if not 0 < low <= value <= high < math.inf:
        raise UserError(f"{where}: low, value, high = {low!r}, {value!r}, {high!r} is refused. "
                        "Allowed: numbers, 0 < low <= value <= high.")
    if record["tag"] not in TAGS:
        raise unknown(f"tag in {where}", record["tag"], TAGS)
    return Constant(**record)


def _fields(record: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    known = (*required, *optional)
    if not isinstance(record, dict):
        raise UserError(f"{where}: {record!r} is refused. Allowed: an object with {', '.join(known)}.")
    for name in record:
        if name not in known:
            raise UserError(f"{where} has no field {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    if missing := [name for name in required if name not in record]:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    return record
