"""A process that runs one job after the other: they come as JSON lines on standard input, outcomes go as lines to standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tracking.errors import UserError
from workbench.runs import RunFailed, run


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a run prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(outcome(json.loads(line))) + "\n")


def outcome(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; what ended, or what kept it from that."""
    try:
        ended = run(**job, progress=False)
    except (UserError, RunFailed) as error:
        return {"error": str(error)}
    return {"key": ended.key, "status": ended.status, "reason": ended.reason, "cached": ended.cached, "url": ended.url}


if __name__ == "__main__":
    main()
