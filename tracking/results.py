"""Figures worth keeping: one JSON file a study and hardware, with the recipe of every number in it.

README tables and notebooks read them from here; nothing is typed by hand.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, did_you_mean, unknown
from tracking.folder import write_atomic
from tracking.metrics import METRICS

if TYPE_CHECKING:
    import pandas

ROOT = Path(__file__).parent / "results"
REQUIRED = ("quantity", "method", "metric", "mean", "n", "profile")
OPTIONAL = ("half_width", "unit", "values")
PROVENANCE = ("commit", "date", "versions")
PROFILES = ("smoke", "quick", "full")


def keep(study: str, hardware: str, rows: Iterable[Mapping[str, Any]], provenance: Mapping[str, Any], *, level: float = 0.95,
         root: str | os.PathLike[str] | None = None) -> Path:
    """Write ``<root>/<study>/<hardware-slug>.json``, replacing it as a whole, and return its path.

    Args:
        study: short name of letters, digits, ``-`` and ``_``.
        hardware: full name, such as ``"NVIDIA H100 80GB HBM3"``.
        rows: each with ``quantity`` (what it is, in words), ``method``, ``metric``, ``mean``, ``n`` (independent runs), ``profile``
            (smoke, quick or full), for ``n`` of two or more ``half_width`` or else the ``values`` themselves (a compute node has no SciPy;
            :func:`kept` then works the interval out), and ``unit`` where the metric is not a declared one.
        provenance: at least ``commit``, ``date`` and ``versions`` (package to version); more is kept as it is.
        level: confidence level of the half-widths (Student t).

    Raises :class:`UserError` naming the row and the fault; then nothing is written.
    """
    folder = _folder(study, root)
    if not (isinstance(hardware, str) and slug(hardware)):
        raise UserError(f"hardware = {hardware!r} is refused. Give the name of the hardware, such as 'NVIDIA H100 80GB HBM3'.")
    if missing := [name for name in PROVENANCE if not provenance.get(name)]:
        raise UserError(f"Provenance lacks {', '.join(missing)}. Needed: {', '.join(PROVENANCE)}.")
    if not isinstance(provenance["versions"], Mapping):
        raise UserError(f"Provenance: versions = {provenance['versions']!r} is refused. Give a mapping of package to version.")
    if not 0 < level < 1:
        raise UserError(f"level = {level!r} is refused. Allowed: number, 0 < x < 1.")
    checked = [_check(row, number) for number, row in enumerate(rows, 1)]
    if not checked:
        raise UserError("There is no row to keep.")
    record = {"study": study, "hardware": hardware, "provenance": dict(provenance), "interval": {"kind": "Student t", "level": level},
              "rows": checked}
    path = folder / f"{slug(hardware)}.json"
    if path.is_file() and (other := json.loads(path.read_bytes())["hardware"]) != hardware:
        raise UserError(f"{path} holds the figures of {other!r}, whose short name is the same. Give {hardware!r} a name that differs.")
    write_atomic(path, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def kept(study: str, *, root: str | os.PathLike[str] | None = None) -> pandas.DataFrame:
    """All kept rows of a study, over its hardware, with ``hardware``, ``commit``, ``date`` and ``level``; empty when there are none."""
    import pandas

    rows = []
    for path in sorted(_folder(study, root).glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            common = {"hardware": record["hardware"], "commit": record["provenance"]["commit"], "date": record["provenance"]["date"],
                      "level": record["interval"]["level"]}
            rows += [{**_with_interval(row, common["level"]), **common} for row in record["rows"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a file of kept results ({type(error).__name__}: {error}). Restore it, or delete it.") from None
    return pandas.DataFrame(rows, columns=[*REQUIRED, *OPTIONAL, "hardware", "commit", "date", "level"])


def shown(study: str, *, root: str | os.PathLike[str] | None = None) -> pandas.DataFrame:
    """The kept figures for a person: a row a quantity and hardware, a column a metric that has a better direction; empty without any.

    Metrics of training and of the machine are left to :func:`kept`.
    """
    import pandas

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for r in kept(study, root=root).to_dict("records"):
        declared = METRICS.get(r["metric"])
        if declared is None or declared.better is None or r["metric"].startswith(("train/", "clock/")):
            continue
        row = rows.setdefault((r["quantity"], r["hardware"]), {"what": r["quantity"], "n": r["n"], "hardware": r["hardware"],
                                                               "commit": r["commit"][:9], "date": r["date"]})
        spread = f" ± {r['half_width']:.2g}" if r["n"] > 1 else ""
        row[declared.label] = f"{r['mean']:.5g}{spread}"
    frame = pandas.DataFrame(rows.values())
    facts = ["what", "n", "hardware", "commit", "date"]
    return frame[["what", *(c for c in frame if c not in facts), *facts[1:]]] if len(frame) else frame


def _with_interval(row: Mapping[str, Any], level: float) -> dict[str, Any]:
    from tracking.statistics import interval

    if row["n"] < 2 or "half_width" in row:
        return dict(row)
    return {**row, "half_width": interval(row["values"], level).half_width}


def _check(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row in canonical order with its unit; absent values are left out."""
    where = f"Row {number}"
    row = {k: v for k, v in row.items() if v is not None and not (k == "half_width" and isinstance(v, float) and math.isnan(v))}
    for name in row:
        if name not in (*REQUIRED, *OPTIONAL):
            raise UserError(f"{where} has no field {name!r}.{did_you_mean(name, (*REQUIRED, *OPTIONAL))} "
                            f"Known: {', '.join((*REQUIRED, *OPTIONAL))}.")
    if missing := [name for name in REQUIRED if name not in row]:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    for name in ("quantity", "method", "metric", "profile"):
        if not (isinstance(row[name], str) and row[name]):
            raise UserError(f"{where}: {name} = {row[name]!r} is refused. Allowed: text.")
    if row["profile"] not in PROFILES:
        raise unknown("profile", row["profile"], PROFILES)
    n = _number(row["n"], where, "n")
    if not n.is_integer() or n < 1:
        raise UserError(f"{where}: n = {row['n']!r} is refused. Allowed: whole number, 1 <= x.")
    row |= {"n": int(n), "mean": _number(row["mean"], where, "mean"), "unit": _unit(row, where)}
    if "values" in row:
        row["values"] = [_number(v, where, "values") for v in row["values"]]
        if len(row["values"]) != n or not math.isclose(math.fsum(row["values"]) / n, row["mean"], rel_tol=1e-9, abs_tol=1e-12):
            raise UserError(f"{where}: values = {row['values']!r} do not have the mean {row['mean']!r} of n = {n:g}.")
    if ("half_width" in row or "values" in row) < (n > 1) or ("half_width" in row) > (n > 1):
        fault = "one run has no interval; leave half_width out." if n == 1 else f"a mean over n = {n:g} needs its half_width, or values."
        raise UserError(f"{where}: {fault}")
    if "half_width" in row:
        row["half_width"] = _number(row["half_width"], where, "half_width")
        if row["half_width"] < 0:
            raise UserError(f"{where}: half_width = {row['half_width']!r} is refused. Allowed: number, 0 <= x.")
    return {name: row[name] for name in (*REQUIRED, *OPTIONAL) if name in row}


def _unit(row: Mapping[str, Any], where: str) -> str:
    known = METRICS.get(row["metric"])
    if known is None and "unit" not in row:
        raise UserError(f"{where}: {unknown('metric', row['metric'], METRICS)} A quantity of its own needs a unit in the row.")
    if known is not None and row.get("unit", known.unit) != known.unit:
        raise UserError(f"{where}: {row['metric']} is in {known.unit or 'no unit'}, not in {row['unit']!r}.")
    return known.unit if known is not None else str(row["unit"])


def _number(value: Any, where: str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str)) or not math.isfinite(number):
        raise UserError(f"{where}: {name} = {value!r} is refused. Allowed: finite number.")
    return number


def _folder(study: str, root: str | os.PathLike[str] | None) -> Path:
    if not (isinstance(study, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", study)):
        raise UserError(f"study = {study!r} is refused. Allowed: letters, digits, - and _.")
    return (ROOT if root is None else Path(root)) / study


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
