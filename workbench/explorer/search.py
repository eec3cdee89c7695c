"""Search over methods and tasks, by what their files say of themselves: nothing is imported for it."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from tracking.errors import did_you_mean
from workbench import registry


class Hit(NamedTuple):
    """A method or a task that fits, with what a person needs for choosing it."""

    what: Literal["method", "task"]
    id: str
    title: str
    line: str
    """What it is, in one line."""
    paper: str
    """Link to the paper, or an empty string."""

    @property
    def label(self) -> str:
        """One line of a list."""
        name = self.title if self.title == self.id else f"{self.title} ({self.id})"
        return f"{self.what}: {name}. {self.line}" if self.what == "method" else f"{self.what}: {self.id}. {self.line}"


def find(query: str, limit: int = 30) -> list[Hit]:
    """Methods and tasks in which every word of ``query`` occurs, best first; all of them for an empty query.

    A word in the id or the title counts more than one in the description, and one that begins a word more than one inside.
    """
    words = [w for w in re.split(r"[\s,]+", query.lower()) if w]
    scored = []
    for position, (hit, text) in enumerate(_all()):
        scores = [_score(word, hit, text) for word in words]
        if all(scores):
            scored.append((-sum(scores), position, hit))
    return [hit for *_, hit in sorted(scored)][:limit]


def nearest(query: str) -> str:
    """A hint for a query without hits: the id that is spelt most like it, or nothing."""
    return did_you_mean(query, [*registry.methods(), *registry.tasks()]).strip()


def _all() -> list[tuple[Hit, str]]:
    rows = []
    for e in registry.methods().values():
        rows.append((Hit("method", e.id, e.title, e.summary, e.paper_url), f"{e.family} {e.paper}"))
    for id, e in registry.tasks().items():
        kind = e.literals.get("kind", "classification")
        rows.append((Hit("task", id, e.title, e.summary or e.title, ""), f"{kind} {'embedded' if e.literals.get('embedded') else ''}"))
    return rows


def _score(word: str, hit: Hit, text: str) -> int:
    if word in (hit.id.lower(), hit.title.lower()):
        return 100
    for worth, where in ((20, hit.id), (20, hit.title), (5, text), (3, hit.line)):
        if re.search(rf"(?<![a-z0-9]){re.escape(word)}", where.lower()):
            return worth
    return int(word in f"{hit.id} {hit.title} {hit.line} {text}".lower())
