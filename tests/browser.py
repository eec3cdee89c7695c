"""A real JupyterLab server and a real browser for tests: nothing is downloaded, nothing outside a temporary folder is touched.

Screenshots go to the folder that the environment variable ``WORKBENCH_ARTIFACTS`` names, to be looked at afterwards; without it, to
pytest's temporary folder. Where a test fails, the page as it then was is among them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Path of the system's Chromium."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def why_not(*modules: str) -> str | None:
    """Why a browser test cannot run here, as a reason for skipping; ``None`` when it can."""
    missing = [name for name in ("playwright", *modules) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if chromium() else f"no Chromium on this machine ({', '.join(CHROMIUM)})"


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def server(command: Sequence[str], ready_url: str, log: Path, env: Mapping[str, str], timeout_s: float = 60) -> Iterator[None]:
    """Run ``command`` until the end of the block, from the moment that ``ready_url`` answers. Its output goes to ``log``."""
    with open(log, "wb") as output:
        process = subprocess.Popen([*command], stdout=output, stderr=subprocess.STDOUT, env={**env}, cwd=log.parent,
                                   start_new_session=True)
        try:
            end = time.monotonic() + timeout_s
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    urllib.request.urlopen(ready_url, timeout=2).close()
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not answer at {ready_url}:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # its kernels or workers, too
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    root: Path

    def address(self, notebook: str) -> str:
        """Where to open a notebook, in a workspace as if never used."""
        return f"{self.url}/lab/workspaces/fresh/tree/{notebook}?reset&token={self.token}"

    def write(self, name: str, *cells: str) -> None:
        """Write a notebook of code cells into the root folder."""
        made = [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
                for i, source in enumerate(cells)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (self.root / name).write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))

    def stop_kernels(self) -> None:
        """Shut all kernels down, as a person would before leaving."""
        self._each_kernel("", "DELETE")

    def interrupt_kernels(self) -> None:
        """What the stop button of a notebook does."""
        self._each_kernel("/interrupt", "POST")

    def _each_kernel(self, verb: str, method: str) -> None:
        headers = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/kernels", headers=headers), timeout=10) as reply:
            kernels = json.load(reply)
        for kernel in kernels:
            request = urllib.request.Request(f"{self.url}/api/kernels/{kernel['id']}{verb}", headers=headers, method=method, data=b"")
            urllib.request.urlopen(request, timeout=20).close()


@contextlib.contextmanager
def jupyter_lab(folder: Path, env: Mapping[str, str] | None = None, theme: str = "JupyterLab Light") -> Iterator[Lab]:
    """A JupyterLab on 127.0.0.1 with a token, whose configuration, data, runtime files and home lie under ``folder``."""
    names = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    places = {name: folder / name.lower() for name in names}
    root = folder / "root"
    for place in (*places.values(), root):
        place.mkdir(parents=True, exist_ok=True)
    settings = places["JUPYTER_CONFIG_DIR"] / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly",
               "--LabApp.expose_app_in_browser=True"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a container
        command.append("--allow-root")
    variables = {**os.environ, **{name: str(place) for name, place in places.items()}, "PYTHONPATH": str(ROOT), **(env or {})}
    lab = Lab(f"http://127.0.0.1:{port}", token, root)
    with server(command, f"{lab.url}/api", folder / "lab.log", variables):
        try:
            yield lab
        finally:
            with contextlib.suppress(OSError):
                lab.stop_kernels()


@contextlib.contextmanager
def kept_on_failure(page: Page, path: Path) -> Iterator[None]:
    """Leave a screenshot at ``path`` where the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            page.screenshot(path=path)
        raise


@contextlib.contextmanager
def browser_page(width: int = 1280, height: int = 1600) -> Iterator[Page]:
    """An empty page of the system's Chromium. It reaches this machine only."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()


def artifacts(fallback: Path) -> Path:
    """The folder in which screenshots are kept: ``$WORKBENCH_ARTIFACTS``, made if it is not there, else ``fallback``."""
    folder = Path(os.environ.get("WORKBENCH_ARTIFACTS") or fallback).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    """Open a notebook and wait until its kernel can take a cell: one that is run earlier is lost without a word."""
    page.goto(lab.address(name))
    page.get_by_text("| Idle").wait_for(timeout=60_000)


def change_theme(page: Page, theme: str) -> None:
    """Switch JupyterLab's theme, as its Settings menu does."""
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)


def run_cell(page: Page, index: int) -> None:
    """Run the code cell at ``index``, as Shift+Enter does, and see that the kernel has taken it."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    before = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("([cell, before]) => cell.querySelector('.jp-InputPrompt').innerText !== before",
                           arg=[cell.element_handle(), before])
