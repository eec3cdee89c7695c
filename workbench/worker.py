"""One run in a process of its own: the job comes as JSON on standard input, the outcome goes as one JSON line to standard output."""

from __future__ import annotations

import json
import sys

from tracking.errors import UserError
from workbench.runs import RunFailed, run


def main() -> None:
    job = json.load(sys.stdin)
    try:
        ended = run(**job, progress=False)
        answer = {"key": ended.key, "status": ended.status, "reason": ended.reason, "cached": ended.cached, "url": ended.url}
    except (UserError, RunFailed) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
