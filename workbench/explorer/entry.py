"""The verb ``workbench.explore``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tracking.address import passwords
from tracking.errors import UserError

if TYPE_CHECKING:
    from workbench.explorer.panel import Explorer

_panel: Explorer | None = None


def explore(tracking: str | None = None, max_points: int = 2000) -> Explorer | None:
    """The explorer of this kernel, to be displayed as the last value of a notebook cell.

    A kernel has one explorer: calling this again shows the same form, curves and runs once more, with the new settings.
    Nothing blocks: training has a thread of its own, and other cells run meanwhile.

    Args:
        tracking: MLflow address for the runs, ``"off"``, or ``None`` for the usual one (see ``workbench.run``). One with a password becomes
            the usual one of this kernel: what the explorer shows and copies does not hold it.
        max_points: points drawn a curve; longer ones are thinned, extremes kept.

    Returns:
        The explorer; its verbs (``choose, set, run, pause, resume, stop, runs, python, cli, papermill``) do in code what a
        hand does on screen. ``None``, with a line of text, where a notebook is executed in batch (papermill, nbconvert):
        a live widget would only add megabytes to it.
    """
    global _panel
    if isinstance(max_points, bool) or not isinstance(max_points, int) or max_points < 4:
        raise UserError(f"max_points = {max_points!r} is refused. Allowed: whole number, 4 <= x.")
    if in_batch():
        print("The explorer needs a person at a browser. This notebook is executed in batch: use workbench.run or workbench.sweep.")
        return None
    if tracking and passwords(tracking):
        os.environ["MLFLOW_TRACKING_URI"], tracking = tracking, None
    if _panel is None or _panel.closed:
        try:
            import anywidget  # noqa: F401  (plotly's live figure needs it and says so late)

            from workbench.explorer.panel import Explorer
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("workbench", "tracking"):
                raise
            raise UserError(f"The explorer needs {error.name}. Install the extra that people look at things with: "
                            "pip install 'efficient-workbench[lab]'.") from None
        _panel = Explorer(tracking=tracking, max_points=max_points)
    _panel.configure(tracking, max_points)
    return _panel


def in_batch() -> bool:
    """Whether this kernel executes a notebook with nobody there.

    Papermill and nbconvert leave no mark on the kernel, but their requests say that nobody can answer an ``input()``.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and getattr(kernel, "_allow_stdin", True) is False
