"""The format of MLflow's saved views: the only module that knows it.

MLflow keeps a named arrangement of the runs page in a tag of the experiment, ``mlflow.sharedViewState.<id>``, and opens it where the
link's ``viewStateShareKey`` names it. That is how its own Share button works; it is no documented interface, so :data:`KNOWN` lists the
versions on whose server a browser has shown these views, and :mod:`tracking.views.publishing` refers people on other ones to the report.

What is shown is in JSON files beside this one: ``name``, ``about``, ``group_by`` (parameters, or tags ``workbench.…``), and ``charts``,
each with ``section``, ``y``, and ``x`` (``"step"`` or a metric) or ``scatter`` (a metric on the horizontal axis, last values); or else,
for a table, ``columns`` (parameters, tags ``workbench.…``, metrics) and ``sort`` (metrics, of which the first that is reported counts).
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.metrics import metric

KNOWN = ("3.17",)
"""Versions (major.minor) of MLflow whose pages read this format."""
TAG = "mlflow.sharedViewState."
MAX_TAG = 20_000  # characters of an experiment's tag
MOST_COLUMNS = 2  # with three, MLflow's own number, a chart is too narrow for its axis
CARD_HEIGHT = 320  # pixels
LETTER_WIDTH = 8  # pixels, of a column's head
NAME_WIDTH, GROUP_WIDTH = 150, 300  # pixels: a group begins with what the name of a run has, and says more
FOLDER = Path(__file__).parent
VIEWS = tuple(sorted(p.stem for p in FOLDER.glob("*.json")))
"""Ids of the views that come with the project."""


ONLY_RUNS = "params.`method` LIKE '%'"
"""A search that finds runs and leaves out the parents of studies, which have no curves."""


def is_metric(name: str) -> bool:
    """Whether a column shows a metric; else it shows a parameter or a tag."""
    return "/" in name


def is_tag(name: str) -> bool:
    """Whether what is grouped by, or shown in a column, is a tag and no parameter."""
    return name.startswith("workbench.")


def _column(name: str) -> str:
    """MLflow's name of a column."""
    kind = "metrics" if is_metric(name) else "tags" if is_tag(name) else "params"
    return f"{kind}.`{name}`"


@dataclass(frozen=True)
class Chart:
    """One card: ``y`` along ``x`` as lines, or the last values of both as points."""

    section: str
    y: str
    x: str = "step"
    points: bool = False

    def card(self, section: str, uuid: str) -> dict[str, Any]:
        """MLflow's description of the card."""
        common = {"uuid": uuid, "metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
        if self.points:
            return {**common, "type": "SCATTER", "xaxis": {"key": self.x, "type": "METRIC"}, "yaxis": {"key": self.y, "type": "METRIC"}}
        axis = {"xAxisKey": "step"} if self.x == "step" else {"xAxisKey": "metric", "selectedXAxisMetricKey": self.x}
        return {**common, **axis, "type": "LINE", "metricKey": self.y, "selectedMetricKeys": [self.y], "scaleType": "linear",
                "xAxisScaleType": "linear", "lineSmoothness": 0, "useGlobalXaxisKey": False, "useGlobalLineSmoothing": False}


@dataclass(frozen=True)
class View:
    """A named arrangement of charts."""

    id: str
    name: str
    about: str
    group_by: tuple[str, ...]
    charts: tuple[Chart, ...]
    columns: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    key: str = ""
    """Name of the view in links. It is that of the file's whole content, so a link lives on when more runs report more metrics."""

    def __post_init__(self) -> None:
        if not self.key:
            text = json.dumps([self.name, self.group_by, [vars(c) for c in self.charts], self.columns, self.sort])
            object.__setattr__(self, "key", f"workbench-{self.id}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")

    @property
    def tag(self) -> str:
        return TAG + self.key

    def metrics(self) -> set[str]:
        """Every metric that is shown."""
        return ({name for c in self.charts for name in (c.x, c.y)} | set(filter(is_metric, self.columns))) - {"step"}

    def only(self, reported: set[str]) -> View | None:
        """The view without charts and columns that would be empty, because nobody has reported their metrics; ``None`` if none is left."""
        charts = tuple(c for c in self.charts if {c.x, c.y} - {"step"} <= reported)
        columns = tuple(c for c in self.columns if not is_metric(c) or c in reported)
        if not charts and not any(map(is_metric, columns)):
            return None
        return replace(self, charts=charts, columns=columns, sort=tuple(name for name in self.sort if name in reported)[:1])

    def value(self, time_ms: int, reported: set[str] = frozenset()) -> str:
        """The tag's value. Metrics in ``reported`` that no chart shows get no card of their own.

        Raises :class:`UserError` when it is longer than a tag may be.
        """
        # runs stay single: along a metric MLflow 3.17 pairs a group's n-th values, whatever their steps, and a group gets a colour of
        # MLflow's own, which another group may have, too, and no run has
        state = {"searchFilter": ONLY_RUNS, "groupBy": self._grouping(), "useGroupedValuesInCharts": False,
                 **self._order(), **(self._cards(reported) if self.charts else self._table())}
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
        text = json.dumps({"name": self.name, "createdAt": time_ms, "updatedAt": time_ms, "state": packed})
        if len(text) > MAX_TAG:
            raise UserError(f"View {self.id!r} takes {len(text)} characters; MLflow allows {MAX_TAG}. Give it fewer charts.")
        return text

    def _cards(self, reported: set[str]) -> dict[str, Any]:
        sections = {name: f"{self.key}-{number}" for number, name in enumerate(dict.fromkeys(c.section for c in self.charts), 1)}
        cards = [c.card(sections[c.section], f"{self.key}-card-{number}") for number, c in enumerate(self.charts, 1)]
        # MLflow adds a card for every metric without one, unless there is a deleted one
        silent = sorted(reported - {c.y for c in self.charts if not c.points})
        cards += [{"uuid": f"{self.key}-off-{number}", "type": "LINE", "metricSectionId": next(iter(sections.values())), "deleted": True,
                   "isGenerated": True, "metricKey": name} for number, name in enumerate(silent, 1)]
        sizes = Counter(c.section for c in self.charts)
        listed = [{"uuid": uuid, "name": name, "display": True, "isReordered": False, "columns": min(sizes[name], MOST_COLUMNS),
                   "cardHeight": CARD_HEIGHT} for name, uuid in sections.items()]
        return {"compareRunCharts": cards, "compareRunSections": listed,
                "isAccordionReordered": True,  # else the sections are sorted by the alphabet
                "runsHiddenMode": "SHOW_ALL", "hideEmptyCharts": True}

    def _table(self) -> dict[str, Any]:
        columns = [*map(_column, self.columns)]
        # an order that is not given is that of the alphabet, and far from the name stands what matters most
        return {"selectedColumns": columns, "columnOrder": ["attributes.`Run Name`", *columns],
                "columnWidths": {"attributes.`Run Name`": NAME_WIDTH,
                                 **{column: GROUP_WIDTH if is_tag(name) else 40 + LETTER_WIDTH * len(name)
                                    for column, name in zip(columns, self.columns, strict=True)}}}

    def _order(self) -> dict[str, Any]:
        if not self.sort:
            return {"orderByKey": "attributes.start_time", "orderByAsc": False}
        return {"orderByKey": f"metrics.`{self.sort[0]}`", "orderByAsc": metric(self.sort[0]).better == "lower"}

    def _grouping(self) -> dict[str, Any] | None:
        if not self.group_by:
            return None
        keys = [{"mode": "tag" if is_tag(name) else "param", "groupByData": name} for name in self.group_by]
        return {"aggregateFunction": "average", "groupByKeys": keys}


def load(id: str) -> View:
    """Read a view that comes with the project."""
    from tracking.errors import unknown

    if id not in VIEWS:
        raise unknown("view", id, VIEWS)
    return parse(id, json.loads((FOLDER / f"{id}.json").read_text()))


def parse(id: str, data: Mapping[str, Any]) -> View:
    """Check the content of a view's file. Raises :class:`UserError` for unknown fields and undeclared metrics."""
    extra = set(data) - {"name", "about", "group_by", "charts", "columns", "sort"}
    missing = {"name", "columns" if "columns" in data else "charts"} - set(data)
    if {"columns", "charts"} <= set(data):
        raise UserError(f"View {id!r} is refused: it has charts or columns, not both.")
    if extra or missing:
        raise UserError(f"View {id!r} is refused: unknown fields {sorted(extra)}, missing {sorted(missing)}.")
    charts = []
    for name in filter(is_metric, [*data.get("columns", ()), *data.get("sort", ())]):
        metric(name)
    for number, item in enumerate(data.get("charts", ()), 1):
        if set(item) - {"section", "x", "y", "scatter"} or not {"section", "y"} <= set(item) or {"x", "scatter"} <= set(item):
            raise UserError(f"View {id!r}, chart {number} is refused: {dict(item)}. It has section, y, and x or scatter.")
        chart = Chart(item["section"], item["y"], item.get("scatter", item.get("x", "step")), "scatter" in item)
        for name in {chart.x, chart.y} - {"step"}:
            metric(name)
        charts.append(chart)
    return View(id, data["name"], data.get("about", ""), tuple(data.get("group_by", ())), tuple(charts),
                tuple(data.get("columns", ())), tuple(data.get("sort", ())))


def known_metrics(value: str) -> set[str]:
    """The metrics that a tag's value was written for: shown in a card, or silenced by one; or shown in a column."""
    state = read_back(value)
    found = {card[name]["key"] for card in state.get("compareRunCharts", ()) for name in ("xaxis", "yaxis") if name in card}
    found |= {card[name] for card in state.get("compareRunCharts", ()) for name in ("metricKey", "selectedXAxisMetricKey") if name in card}
    return found | {c.removeprefix("metrics.`")[:-1] for c in state.get("selectedColumns", ()) if c.startswith("metrics.")}


def read_back(value: str) -> dict[str, Any]:
    """The state that a tag's value holds, packed or not."""
    state = json.loads(value)["state"]
    if state.startswith("deflate;"):
        state = zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))).decode()
    return json.loads(state)
