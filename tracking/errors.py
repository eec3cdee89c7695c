"""Errors that are written for the person who reads them: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake a person can mend. Front doors print the message alone, never a traceback."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed word, or ``""`` when none is near."""
    near = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(what: str, given: str, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that does not exist."""
    allowed = sorted(allowed)
    return UserError(f"Unknown {what} {given!r}.{did_you_mean(given, allowed)} Known: {', '.join(allowed) or 'none'}.")
