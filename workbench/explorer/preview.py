"""The line that says what the run on the form will cost, before it is made.

A process of its own sets the run up and makes its first step: the kernel stays free, and a form that changes meanwhile simply ends that
process. While something trains it waits, because a step beside it would disturb the clock of the one and the estimate of the other.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w

from workbench.cost import Cost
from workbench.explorer.listed import Request

QUIET_S = 0.6  # without a change of the form before anything is begun
LIMIT_S = 120.0  # for imports, set-up and step; beyond, it is not said
HURRY_S = 2.0  # that a step nobody wants any more may still take: a new process takes longer
IDLE_S = 120.0  # without a question, after which the process is let go


class Preview:
    """``html`` shows the cost of what :meth:`ask` was told last, from :meth:`begin` on. ``busy`` says whether something trains."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self.html = w.HTML()
        self.html.add_class("wb-cost")
        self._busy = busy
        self._changed = threading.Condition()
        self._wanted: tuple[Request, int] | None = None
        self._shown: tuple[Request, int] | None = None
        self._asked = 0.0
        self._begun = False
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen | None = None
        self._number = self._pricing = 0
        self._priced: tuple[Request, int] | None = None  # what ``_pricing`` is the number of
        self._hurried = False

    def begin(self) -> None:
        """The panel is on a page now: from here on every valid form is priced."""
        self._begun = True
        self.look()

    def ask(self, requests: Sequence[Request]) -> None:
        """The form has changed; an empty list is a form with an error."""
        with self._changed:
            self._wanted = (requests[0], len(requests)) if requests else None
            self._asked = time.monotonic()
            if self._wanted is None or self._wanted != self._shown:
                # never empty: what stands below would move at each change of the form
                self._say("The cost is not known: the form has an error." if self._wanted is None else "The cost is being worked out …")
                self._shown = None
                if self._pricing and self._priced != self._wanted:
                    hurry = threading.Timer(HURRY_S, self._hurry, [self._pricing])
                    hurry.daemon = True
                    hurry.start()
            self._changed.notify_all()
        self.look()

    def look(self) -> None:
        """Begin what is to be done; cheap, and called whenever the runs change."""
        with self._changed:
            if self._begun and self._thread is None and self._wanted is not None and self._wanted != self._shown:
                self._thread = threading.Thread(target=self._work, name="workbench explorer preview", daemon=True)
                self._thread.start()

    def wait(self, timeout: float) -> None:
        """Block until the form on screen is priced."""
        end = time.monotonic() + timeout
        while self._wanted != self._shown:
            if time.monotonic() > end:
                raise TimeoutError(f"the cost is not known after {timeout} s")
            time.sleep(0.02)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._changed:
            self._wanted, self._shown, self._begun = None, None, False
            self._end_child()
            self._changed.notify_all()

    # --- the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        idle = time.monotonic()
        while True:
            with self._changed:
                wanted = self._wanted
                quiet = time.monotonic() - self._asked >= QUIET_S
                if wanted is None or wanted == self._shown:
                    if not self._begun or time.monotonic() - idle > IDLE_S:
                        self._end_child()
                        self._thread = None
                        return
                    self._changed.wait(5.0)
                    continue
                if not quiet or self._busy():
                    if quiet:
                        self._say("The cost of this form is worked out when nothing trains.")
                    self._changed.wait(0.2)
                    continue
            try:
                self._price(wanted)
            except Exception as error:  # an answer that cannot be read, say: the next form may be priced
                self._settle(wanted, f"The cost is not known: {type(error).__name__}: {error}")
            idle = time.monotonic()

    def _price(self, wanted: tuple[Request, int]) -> None:
        """Ask the process and show its answers as long as they are still wanted."""
        request, count = wanted
        begun = time.monotonic()
        self._say("The cost is being worked out …")
        try:
            child = self._ask_child(request)
        except OSError as error:
            self._settle(wanted, f"The cost is not known: {error}")
            return
        clock = threading.Timer(LIMIT_S, child.kill)
        clock.daemon = True
        clock.start()
        with self._changed:
            self._pricing, self._priced, self._hurried = self._number, wanted, False
        try:
            for line in child.stdout:
                answer = json.loads(line)
                if answer["id"] != self._number:
                    continue
                text = in_words(Cost(**answer["cost"]), count) if "cost" in answer else f"The cost is not known: {answer['error']}"
                if answer["last"]:
                    self._settle(wanted, text)
                    return
                if wanted == self._wanted:
                    self._say(f"{text} …")
        finally:
            clock.cancel()
            self._pricing = 0
        self._end_child()
        if not self._hurried:  # where it was, and is wanted again, it is begun anew
            slow = f"a first step takes longer than {LIMIT_S:g} s"
            ended = f"the process that made a first step ended with {_code(child.returncode)}"
            self._settle(wanted, f"The cost is not known: {slow if time.monotonic() - begun >= LIMIT_S else ended}.")

    def _settle(self, wanted: tuple[Request, int], text: str) -> None:
        with self._changed:
            if wanted == self._wanted:
                self._shown = wanted
                self._say(text)

    def _ask_child(self, request: Request) -> subprocess.Popen:
        with self._changed:
            if self._child is None or self._child.poll() is not None:
                path = os.pathsep.join(os.path.abspath(p) for p in sys.path)  # it finds what this process finds
                self._child = subprocess.Popen([sys.executable, "-m", "workbench.cost"], stdin=subprocess.PIPE,
                                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                                               env=os.environ | {"PYTHONPATH": path})
            self._number += 1
            run = {"method": request.method, "task": request.task, "params": request.params, "task_params": request.task_params,
                   "seed": request.seed, "device": request.device}
            self._child.stdin.write(json.dumps({"id": self._number, "run": run}) + "\n")
            self._child.stdin.flush()
            return self._child

    def _hurry(self, number: int) -> None:
        """End the process if it is still at work on question ``number``."""
        with self._changed:
            if self._pricing == number and self._priced != self._wanted:
                self._hurried = True
                self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with contextlib.suppress(OSError):
                child.stdin.close()
            child.wait()

    def _say(self, text: str) -> None:
        shown = f'<div aria-live="polite">{html.escape(text)}</div>' if text else ""
        if self.html.value != shown:
            self.html.value = shown


def _code(returncode: int | None) -> str:
    """How a process ended; one that asks for more memory than there is gets signal 9."""
    if returncode is None or returncode >= 0:
        return f"code {returncode}"
    return f"signal {-returncode}{', as one that is out of memory does' if returncode == -9 else ''}"


def in_words(cost: Cost, count: int = 1) -> str:
    """The cost of ``count`` such runs in one line; what is not known is left out."""
    parts = []
    if cost.parameters is not None:
        parts.append(f"{cost.parameters:,} parameters")
    if cost.state_bytes is not None:
        parts.append(f"{amount(cost.state_bytes, 'B')} of state")
    if cost.run_s is not None:
        parts.append(f"about {duration(count * cost.run_s)}")
    elif cost.step_s is not None:
        parts.append(f"{duration(cost.step_s)} a step")
    if cost.flops is not None:
        parts.append(f"{amount(count * cost.flops, 'FLOP')} of products")
    if cost.step_bytes is not None:
        whole = f", {amount(count * cost.run_bytes, 'B')} in all" if cost.run_bytes is not None else ""
        parts.append(f"{amount(cost.step_bytes, 'B')} sent a step{whole}")
    if cost.model_j is not None:
        parts.append(f"{amount(count * cost.model_j, 'J')} modelled ({cost.model})")
    lead = f"Cost of these {count} runs" if count > 1 else "Cost of this run"
    return f"{lead}, from one step: {'; '.join(parts)}." if parts else "Nothing is known of the cost of this run."


def amount(value: float, unit: str) -> str:
    """A quantity with the prefix that leaves one to three digits before the point."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    small: Any = next(((f, p) for f, p in ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p")) if value >= f), None)
    return f"{value / small[0]:.3g} {small[1]}{unit}" if small and unit == "J" else f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.2g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.2g} days"
