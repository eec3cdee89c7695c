"""How far a run has come: a bar where tqdm is installed, a line every five seconds where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.engine import Report


def progress_bar(name: str) -> Callable[[Report | None], None]:
    """Returns what is to be called with each report, and with ``None`` at the end."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        last = [time.monotonic()]

        def lines(report: Report | None) -> None:
            if report and time.monotonic() - last[0] > 5:
                last[0] = time.monotonic()
                print(f"{name}: {report.progress.done}/{report.progress.total}", flush=True)
        return lines
    bar = tqdm(desc=name, unit="step", leave=False, mininterval=0.3)

    def draw(report: Report | None) -> None:
        if report is None:
            bar.close()
            return
        bar.total = report.progress.total
        shown = {n.split("/")[1]: f"{v:.4g}" for n, v in report.metrics.items() if n in ("train/loss", "eval/accuracy")}
        if "accuracy" in shown or not bar.postfix:
            bar.set_postfix(shown, refresh=False)
        bar.update(report.progress.done - bar.n)
    return draw
