"""What the verbs of the command line share: options that people type, and tables that they read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tracking.errors import UserError


def add_setting(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method; repeatable")
    sub.add_argument("--task-set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the task; repeatable")
    sub.add_argument("--device", help="cpu, cuda or cuda:<n> (default: cuda where there is one)")
    sub.add_argument("--threads", type=int, help="CPU threads (default: all)")


def add_run_options(sub: argparse.ArgumentParser) -> None:
    add_setting(sub)
    sub.add_argument("--budget", action="append", default=[], metavar="METRIC=CAP",
                     help="end when a cumulative metric reaches this; repeatable")
    sub.add_argument("--tracking", help="MLflow address, or off (default: $MLFLOW_TRACKING_URI, else the project's SQLite file)")
    sub.add_argument("--experiment", default="workbench")


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} {text!r} is refused. Write NAME=VALUE.")
        found[name] = value
    return found


def setting(args: argparse.Namespace, method: str, task: str) -> dict[str, Any]:
    """What ``run``, ``preview`` and ``sweep`` share, as keyword arguments of ``workbench.run``."""
    from workbench import registry
    from workbench.params import from_text

    typed = pairs(args.set, "--set")
    return {
        "params": from_text(registry.load_method(method).Params, typed) if typed else {},
        "task_params": from_text(registry.load_task(task).Params, pairs(args.task_set, "--task-set")) if args.task_set else {},
        "device": args.device, "threads": args.threads,
    }


def run_arguments(args: argparse.Namespace, method: str, task: str) -> dict[str, Any]:
    """What ``run`` and ``sweep`` share, as keyword arguments of ``workbench.run``."""
    budget = {k: number(v, f"--budget {k}") for k, v in pairs(args.budget, "--budget").items()}
    return {**setting(args, method, task), "budget": budget, "tracking": args.tracking, "experiment": args.experiment}


def number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what} = {text!r} is refused. Allowed: number.") from None


def print_links(links: dict[str, str]) -> None:
    for name, link in links.items():
        print(f"MLflow  {name}: {link}")


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str] | None) -> None:
    """Print rows as an aligned table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        print("nothing")
        return
    columns = columns or list(rows[0])
    texts = [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    for line in ([*columns], ["-" * w for w in widths], *texts):
        print("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip())
