"""``python -m tracking.views experiment [experiment …]``: publish the saved views and print the links that open them."""

from __future__ import annotations

import argparse
import sys

from tracking.errors import UserError
from tracking.views import VIEWS, load, publish


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tracking.views", description="Publish the saved views into MLflow experiments.")
    parser.add_argument("experiments", nargs="+", help="names of experiments, such as workbench or a study's id")
    parser.add_argument("--tracking", help="MLflow address (default: $MLFLOW_TRACKING_URI, else the project's SQLite file)")
    parser.add_argument("--view", action="append", choices=VIEWS, help="only this view; repeatable")
    parser.add_argument("--report", default="", help="what to open instead where this version of MLflow is not known to read the views")
    args = parser.parse_args()
    try:
        for experiment in args.experiments:
            published = publish(experiment, tracking=args.tracking, views=[load(v) for v in args.view or VIEWS], report=args.report)
            print(f"{experiment}\n" + "\n".join(f"  {line}" for line in str(published).splitlines()))
    except UserError as error:
        print(f"views: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
