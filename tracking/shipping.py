"""Shipping: brings what a run folder has to a store, every point once.

The journal is the queue and ``tracking.json`` the cursor: for each store the MLflow run, the number of journal lines it
has, and the batch under way. The cursor counts lines, not bytes: a resumed run cuts the journal back to its checkpoint
and reports the same lines again, with other times and other lengths.

A batch is announced in the cursor before it is sent. If its fate is unknown afterwards (the process was killed, the
connection broke), the store is asked for the batch's last point; since a store takes a batch whole or not at all, that
settles it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from tracking import notes
from tracking.address import public_uri, scrub
from tracking.errors import UserError
from tracking.folder import LIVE, RunFolder, held
from tracking.journal import read
from tracking.store import MAX_POINTS, Point, Store


class Shipper:
    """Ships one run folder to one store, in the caller's thread. Any method may raise what the store raises; repeat it.

    One shipper a folder and store at a time: :meth:`open` raises :class:`UserError` while another one is at work.
    """

    def __init__(self, folder: RunFolder, uri: str, store: Store | None = None) -> None:
        self.folder, self.uri = folder, uri
        self.run_id: str | None = None
        self.url: str | None = None
        self._lock = ExitStack()
        self._locked = False
        self._store = store
        self._where = public_uri(uri)  # the cursor file travels with the folder: no passwords in it
        self._journal: BinaryIO | None = None  # the file that the next two speak of; open, so its inode is not reused
        self._offset = 0  # bytes: the lines before it are dealt with
        self._line = 0  # their number
        self._counted = -1  # length of the journal when the store was last asked how much it has
        self._shown: str | None = None
        self._cursor: dict[str, Any] = dict(folder.read_cursors().get(self._where, {}))
        self._saved = True

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.uri)
        return self._store

    @property
    def lines(self) -> int:
        """Journal lines the store surely has."""
        return self._cursor.get("lines", 0)

    def open(self) -> None:
        """Find or create the MLflow run and settle the batch that was under way; does nothing when that is done."""
        if not self._locked:
            self._locked = self._lock.enter_context(held(self.folder.path / ".shipping.lock"))
            if not self._locked:
                self._lock.close()
                raise UserError(f"{self.folder.path} is being shipped by another process or thread.")
            self._cursor = dict(self.folder.read_cursors().get(self._where, {}))
        if self.run_id is None:
            run = self.folder.read_run()
            run_id, existed = self.store.ensure_run(run)
            if self._cursor.get("run_id") != run_id:  # no cursor, or that of a store that was begun anew
                self._cursor = {"run_id": run_id, "lines": 0} | ({"uncounted": True} if existed else {})
                self._save()
            self.url = self.store.run_url(run_id, run["experiment"])
            self.run_id = run_id
        self._settle()

    def ship(self) -> bool:
        """Send the next batch of whole lines; return whether the journal surely has more."""
        self.open()
        if not self._follow():
            return False
        if self._cursor.get("uncounted"):
            self._count()
        line, offset = self._line, self._offset
        points: list[Point] = []
        full = False
        for entry in read(self.folder.journal_path, offset):
            fresh = _points(entry) if line >= self.lines else []
            if points and len(points) + len(fresh) > MAX_POINTS:
                full = True
                break
            points += fresh
            line, offset = line + 1, entry.end
        if self._cut():  # just now: what was read may be neither the old nor the new journal
            return True
        if points:
            last = points[-1]
            self._cursor["intent"] = {"lines": line, "key": last.key, "step": last.step, "time_ms": last.time_ms}
            self._save()
            self.store.log_points(self.run_id, points)
            # written down by the next announcement or save(): one write a batch, and a crash before it asks the store
            del self._cursor["intent"]
            self._saved = False
        self._line, self._offset = line, offset
        if line > self.lines:
            self._cursor["lines"], self._saved = line, False
        return full

    def save(self) -> None:
        """Write the cursor if the file is behind."""
        if not self._saved:
            self._save()

    def show_status(self) -> None:
        """Tell the store that the run is running or paused, if that is news. The end is told by :meth:`finish`."""
        status = self.folder.read_status()
        if self.run_id is not None and status and status["status"] in LIVE and status["status"] != self._shown:
            self.store.finish(self.run_id, status["status"], status["reason"])
            self._shown = status["status"]
            if self._cursor.pop("told", None):  # resumed: it will end again
                self._save()

    def finish(self) -> None:
        """Send files and final status, if the run has ended and the store has not been told."""
        status = self.folder.read_status()
        if status is None or status["status"] in LIVE:
            return
        told = [status["status"], status["reason"], status["time"], self.lines]
        if self._cursor.get("told") == told:
            return
        self.open()
        run = self.folder.read_run()
        files = (self.folder.run_path, self.folder.journal_path, self.folder.error_path, self.folder.artifacts_path)
        self.store.add_tags(self.run_id, run.get("tags", {}))  # some are known only once it runs
        self.store.log_artifacts(self.run_id, [path for path in files if path.exists()])
        self._publish(run)
        after = notes.ended(run, status["status"], status["reason"], read(self.folder.journal_path), self._cursor["views"])
        self.store.rewrite_note(self.run_id, notes.begun(run), after)
        self.store.finish(self.run_id, status["status"], status["reason"], int(status["time"] * 1000))
        self._cursor["told"] = told
        self._save()

    def _publish(self, run: dict[str, Any]) -> None:
        """Let the saved views of the run's experiment show what it reported; their links are kept with the cursor.

        They are a convenience: what keeps them from being published is written there, too, and keeps nothing else from the store.
        """
        from tracking.views import publish_reported

        names = {key for entry in read(self.folder.journal_path) for key in entry.values}
        self._cursor["experiment_id"] = self.store.experiment(run["experiment"])
        try:
            published = publish_reported(self.store, run["experiment"], names)
            self._cursor["views"], note = published.links, published.note
        except Exception as problem:
            self._cursor["views"], note = {}, one_line(problem, self.uri)
        self._cursor["views_note"] = note

    def left(self) -> int:
        """Points of the journal that the store does not surely have."""
        return sum(len(_points(entry)) for number, entry in enumerate(read(self.folder.journal_path))
                   if number >= self.lines)

    def close(self) -> None:
        """Let another shipper have the folder."""
        self._leave()
        self._lock.close()
        self._locked = False

    def _settle(self) -> None:
        intent = self._cursor.get("intent")
        if intent is None:
            return
        if self.store.has_point(self.run_id, intent["key"], intent["step"], intent["time_ms"]):
            self._cursor["lines"] = intent["lines"]
        del self._cursor["intent"]
        self._save()

    def _cut(self) -> bool:
        """Whether the journal is another file than before: a resumed run has cut it back to its checkpoint."""
        try:
            return self._journal is None or not os.path.samestat(os.fstat(self._journal.fileno()),
                                                                 os.stat(self.folder.journal_path))
        except FileNotFoundError:
            return True

    def _follow(self) -> bool:
        """Begin again at the top of the journal if it is another file; False when there is no journal yet."""
        if self._cut():
            self._leave()
            try:
                self._journal = open(self.folder.journal_path, "rb")  # noqa: SIM115 (held until the next cut)
            except FileNotFoundError:
                return False
            self._offset = self._line = 0
        return True

    def _leave(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _count(self) -> None:
        """Ask the store how much of the journal it has: the run was found there, but not the cursor that says so.

        A journal that was cut back to a checkpoint may be shorter than what the store has, so this is repeated as it
        grows until the store lacks something.
        """
        reports = [(entry.step, [point.key for point in _points(entry)]) for entry in read(self.folder.journal_path)]
        if len(reports) == self._counted:
            return
        self._counted = len(reports)
        self._cursor["lines"], self._saved = self.store.count_reports(self.run_id, reports), False
        if self.lines < len(reports):
            del self._cursor["uncounted"]

    def _save(self) -> None:
        self.folder.write_cursors({**self.folder.read_cursors(), self._where: self._cursor})
        self._saved = True


@contextmanager
def reached(uri: str) -> Iterator[Store]:
    """The store at ``uri``; what it cannot do in the block raises :class:`UserError` in one line without its password."""
    try:
        yield Store(uri)
    except UserError:
        raise
    except Exception as problem:
        raise UserError(f"The store at {public_uri(uri)} cannot be used: {one_line(problem, uri)}") from None


def one_line(problem: Exception, uri: str) -> str:
    """A store's trouble for a message: the first line, not too long, without the address's password."""
    text = scrub(str(problem), uri).strip().partition("\n")[0] or type(problem).__name__
    return text if len(text) <= 240 else text[:240] + " …"


def _points(entry: Any) -> list[Point]:
    """The values a store can hold: infinities and NaN would flatten every plot, and the journal has them anyway."""
    return [Point(key, value, entry.time_ms, entry.step) for key, value in entry.values.items() if math.isfinite(value)]
