"""Executed notebooks: run through papermill, and written as a page that opens without a network."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracking.address import passwords
from tracking.folder import write_atomic


def run_notebook(notebook: Path, output: Path, given: Mapping[str, Any]) -> str:
    """Execute; returns what went wrong in a line, or an empty text. What the kernel itself prints goes to ``kernel.log``.

    An address with a password reaches the kernel by its environment, because Papermill writes parameters into the notebook.
    """
    import papermill

    given, secret = dict(given), {}
    if passwords(given.get("tracking_uri", "")):
        secret["MLFLOW_TRACKING_URI"] = given.pop("tracking_uri")
    with _kernel_log(output.with_name("kernel.log")), _environment(secret):
        try:
            papermill.execute_notebook(str(notebook), str(output), parameters=given, kernel_name="python3",
                                       cwd=str(notebook.parent), progress_bar={"desc": notebook.stem, "unit": "cell"})
        except papermill.exceptions.PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
    return ""


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that child processes get, and this one only for so long."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kernel_log(path: Path) -> Iterator[None]:
    """Give child processes a file for their standard error, while this process keeps writing to the terminal."""
    old, here = os.dup(2), sys.stderr
    with open(path, "wb") as log, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = here
            os.dup2(old, 2)
            os.close(old)


def to_html(notebook: Path) -> Path:
    """The executed notebook as a page that fetches nothing; figures live, plotly.js inlined once."""
    import nbformat
    import plotly.io
    from nbconvert import HTMLExporter

    from tracking.report import CONFIG
    from workbench.docs.page import offline

    document = nbformat.read(notebook, as_version=4)
    script = True
    for cell in document.cells:
        for item in cell.get("outputs", ()):
            figure = item.get("data", {}).get("application/vnd.plotly.v1+json")
            if figure:
                drawn = {k: figure[k] for k in ("data", "layout")}
                item["data"] = {"text/html": plotly.io.to_html(drawn, full_html=False, include_plotlyjs=script, config=CONFIG)}
                script = False
    body, _ = HTMLExporter().from_notebook_node(document)
    page = notebook.with_suffix(".html")
    write_atomic(page, offline(body))
    return page
