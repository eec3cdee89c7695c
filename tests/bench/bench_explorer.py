"""The explorer with a run of 100,000 reports, and with 50 runs side by side: time to draw, time and bytes of an update.

``peer`` is the same with every point drawn. Times are the kernel's; a browser adds its own, which follows the points that are sent.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

REPORTS, RUNS, EACH, REPEATS = 100_000, 50, 2_000, 9


def main() -> list[dict[str, Any]]:
    """Rows ``{"name", "ours", "peer", "unit", "ratio", "n", "target", "met"}``."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"WORKBENCH_HOME": f"{folder}/home"}):
        from tests.explorer_wire import made_run

        one = [made_run(Path(folder) / "one", 1, REPORTS)]
        many = [made_run(Path(folder) / "many", n, EACH) for n in range(1, RUNS + 1)]
        rows = []
        for name, folders in ((f"one run of {REPORTS:,} reports", one), (f"{RUNS} runs of {EACH:,} reports", many)):
            ours, peer = _measure(folders, 2000), _measure(folders, 10**9)
            for what, unit, target in (("read and drawn", "s", 5.0), ("redrawn along another axis", "ms", 500.0),
                                       ("update by one report", "ms", 100.0), ("sent for the update", "kB", 100.0),
                                       ("sent for the redrawing", "kB", 1000.0)):
                rows.append({"name": f"explorer, {name}: {what}; peer: every point", "ours": ours[what], "peer": peer[what], "unit": unit,
                             "ratio": ours[what] / peer[what], "n": REPEATS, "target": f"<= {target:g}", "met": ours[what] <= target})
    return rows


def _measure(folders: list[Any], max_points: int) -> dict[str, float]:
    """Figures by what they are of; medians of repeats."""
    from tests.explorer_wire import shown, wire
    from workbench.explorer import curves
    from workbench.explorer.board import Board
    from workbench.explorer.session import Session

    before, curves.ALL_POINTS = curves.ALL_POINTS, max(curves.ALL_POINTS, max_points)
    try:
        with wire() as sent:
            session = Session()
            board = Board(session, max_points)
            began = time.perf_counter()
            runs = shown(session, folders)
            board.refresh()
            found = {"read and drawn": time.perf_counter() - began}
            sent.take()
            axes = ["clock/wall_s", "comm/up_bytes"]
            times = [_ms(lambda i=i: setattr(board.axis, "value", axes[i % 2])) for i in range(REPEATS)]
            found["redrawn along another axis"] = statistics.median(times)
            found["sent for the redrawing"] = sum(sent.take().values()) / REPEATS / 1000

            def grow(step: int) -> None:
                runs[0].rows.append({"step": step, "eval/loss": 0.5, "clock/wall_s": 1.0 * step, "comm/up_bytes": 1e9 + step})
                runs[0].version += 1
                board.refresh()

            found["update by one report"] = statistics.median([_ms(lambda i=i: grow(10**6 + i)) for i in range(REPEATS)])
            found["sent for the update"] = sum(sent.take().values()) / REPEATS / 1000
    finally:
        curves.ALL_POINTS = before
    return found


def _ms(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)
