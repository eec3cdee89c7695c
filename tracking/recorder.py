"""The recorder: ships a run's journal to the store from a background thread, and brings back what a person asks there.

The run never waits for the store and never sees its troubles. The journal is the queue, so a dead server, a locked
database or a full disk on the store's side only make the store late; what is not there at the end is shipped by
:mod:`tracking.sync`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tracking.folder import RunFolder
from tracking.shipping import Shipper, one_line
from tracking.store import REMOTE_CONTROLS, public_uri

log = logging.getLogger(__name__)

CONTROL_POLL_S = 1.0
MAX_BACKOFF_S = 10.0


class Recorder:
    """Ships ``folder`` to the store at ``uri`` until :meth:`close`.

    The run may open and cut its journal before or after :meth:`start`. ``on_control`` is called in the recorder's
    thread with ``"stop"``, ``"pause"`` or ``"resume"`` when a person has written that word into the run's tag
    ``workbench.control``; the tag then reads ``stop (seen)``. ``interval_s`` is the pause between two looks at the
    journal, because a batch has a price of its own; however much there is to ship, the thread rests as long as it works
    while the run goes on.

    ``run_id`` and ``url`` are ``None`` until the store has the run. ``error`` is the last trouble in one line, ``None``
    when there is none now; it is logged as a warning once.
    """

    def __init__(self, folder: RunFolder, uri: str, on_control: Callable[[str], None] | None = None,
                 interval_s: float = 1.0) -> None:
        self.folder, self.uri, self.interval_s = folder, uri, interval_s
        self.error: str | None = None
        self._on_control = on_control
        self._shipper: Shipper | None = None
        self._thread = threading.Thread(target=self._work, name=f"recorder {folder.path.name}", daemon=True)
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._saying = threading.Lock()
        self._warned = self._done = False
        self._polled = -CONTROL_POLL_S
        self._unanswered: str | None = None

    @property
    def run_id(self) -> str | None:
        return self._shipper.run_id if self._shipper else None

    @property
    def url(self) -> str | None:
        return self._shipper.url if self._shipper else None

    def start(self) -> Recorder:
        """Begin; calling it again changes nothing."""
        if self._thread.ident is None:
            self._thread.start()
        return self

    def close(self, timeout_s: float = 10.0) -> int:
        """Ship the rest, the artifacts and the final status; return the number of points the store does not have.

        Write the final status first. Never raises, and returns after ``timeout_s`` seconds whatever the store does; an
        attempt that hangs then is left behind and sends and says nothing more.
        """
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._saying:
            self._abandoned.set()
        if self._done:
            return 0
        try:
            left = (self._shipper or Shipper(self.folder, self.uri)).left()
        except Exception as problem:
            self._trouble(problem)
            return 0
        if self.error is None:
            self.error = f"{public_uri(self.uri)} did not take everything within {timeout_s:g} s"
            log.warning("Tracking: %s; `workbench sync` ships the rest.", self.error)
        return left

    # -- the thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        backoff = 0.0
        try:
            while not self._abandoned.is_set():
                began = time.monotonic()
                closing = self._closing.is_set()
                try:
                    more = self._round(closing)
                    self.error, backoff = None, 0.0
                    if closing and not more:
                        self._done = True
                        return
                except Exception as problem:
                    with self._saying:
                        if self._abandoned.is_set():  # close() has said how it ended
                            return
                        self._trouble(problem)
                    backoff = min(MAX_BACKOFF_S, max(0.25, 2 * backoff))
                    # while closing, close() is waiting: try again soon, it sets the limit itself
                    (self._abandoned if closing else self._closing).wait(min(backoff, 1.0) if closing else backoff)
                    continue
                if not closing:
                    took = time.monotonic() - began
                    self._closing.wait(took if more else max(took, self.interval_s))
        finally:
            if self._shipper is not None:
                self._shipper.close()

    def _round(self, closing: bool) -> bool:
        """One batch, and what else is due; returns whether the journal may have more."""
        if self._shipper is None:
            self._shipper = Shipper(self.folder, self.uri)
        more = self._shipper.ship()
        if not more:
            self._shipper.save()
        if closing:
            if not more and not self._abandoned.is_set():
                self._shipper.finish()
        elif time.monotonic() - self._polled >= CONTROL_POLL_S:
            self._shipper.show_status()
            if self._on_control is not None:
                self._poll_control(self._shipper)
            self._polled = time.monotonic()
        return more

    def _poll_control(self, shipper: Shipper) -> None:
        word = shipper.store.control_tag(shipper.run_id)
        if word is None:
            self._unanswered = None
            return
        if word in REMOTE_CONTROLS and word != self._unanswered:  # the answer may fail, the word counts once
            self._unanswered = word
            self._on_control(word)
        shipper.store.answer_control(shipper.run_id, word)
        self._unanswered = None

    def _trouble(self, problem: Exception) -> None:
        self.error = one_line(problem, self.uri)
        if not self._warned:
            self._warned = True
            log.warning("Tracking is late, the run goes on and its journal has everything (%s).", self.error)
