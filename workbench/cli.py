"""The command line ``workbench``: the same verbs as the package. Listings import neither torch nor mlflow."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tracking.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 well, 1 a run failed or was stopped, 2 a mistake in what was typed."""
    if argv is None:
        _hide_secrets()
    args = build_parser().parse_args(argv)
    _make_paths_absolute()
    try:
        code = args.verb(args) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has gone, e.g. `| head`: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("workbench: interrupted", file=sys.stderr)
        return 1


def _hide_secrets() -> None:
    """Start again without the passwords of addresses on the command line, which everybody on a machine can read."""
    from tracking.address import hide_secrets

    hidden = hide_secrets(sys.orig_argv[1:])
    if hidden is not None:
        os.execve(sys.executable, [sys.executable, *hidden[0]], {**os.environ, **hidden[1]})


def _make_paths_absolute() -> None:
    """A relative path in the environment means the folder the command was typed in, also for a notebook kernel that starts in another."""
    def absolute(path: str) -> str:
        return str(Path(os.path.expanduser(path)).absolute())

    for name in ("WORKBENCH_HOME", "WORKBENCH_DATA", "WORKBENCH_CACHE"):
        if os.environ.get(name):
            os.environ[name] = absolute(os.environ[name])
    if plugins := os.environ.get("WORKBENCH_PLUGINS"):
        os.environ["WORKBENCH_PLUGINS"] = os.pathsep.join(absolute(path) for path in plugins.split(os.pathsep) if path)
    before, sqlite, path = os.environ.get("MLFLOW_TRACKING_URI", "").partition("sqlite:///")
    if path and not before:
        os.environ["MLFLOW_TRACKING_URI"] = sqlite + absolute(path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench", description="A bench for efficient training: run, sweep and compare algorithms.")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, verb: Callable[[Any], int | None]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.set_defaults(verb=verb)
        return sub

    sub = add("methods", "list the methods", _methods)
    sub.add_argument("--family", help="only this family")
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("tasks", "list the tasks", _tasks)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("describe", "show the parameters of a method or a task", _describe)
    sub.add_argument("id")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("run", "run a method on a task", _run)
    sub.add_argument("method")
    sub.add_argument("task")
    sub.add_argument("--seed", type=int, default=0)
    _add_run_options(sub)
    sub.add_argument("--fresh", action="store_true", help="repeat a finished run instead of returning it")
    sub = add("sweep", "run a grid of parameters and seeds", _sweep)
    sub.add_argument("method", help="method ids, separated by commas")
    sub.add_argument("task", help="task ids, separated by commas")
    sub.add_argument("--grid", action="append", default=[], metavar="NAME=V1,V2", help="values of a varied parameter; repeatable")
    sub.add_argument("--seeds", type=int, default=1, help="number of seeds")
    sub.add_argument("--executor", default="local", help="local or processes")
    sub.add_argument("--workers", type=int)
    _add_run_options(sub)

    sub = add("study", "execute a paper's study notebook", _study)
    sub.add_argument("id", nargs="?", help="study id; without it the studies are listed")
    sub.add_argument("--ids", action="store_true", help="print the ids alone, for scripts")
    sub.add_argument("--profile", default="quick", help="smoke, quick or full")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter; repeatable")
    sub.add_argument("--output", type=Path, help="executed notebook (default: under the workbench's home)")
    sub = add("compare", "table and report of finished runs", _compare)
    sub.add_argument("--task", help="only this task")
    sub.add_argument("--method", help="only these methods, separated by commas")
    sub.add_argument("--metric", default="eval/accuracy")
    sub.add_argument("--hardware", help="hardware of modelled joules, such as v100_like (default: as reported)")
    sub.add_argument("--scenario", help="scenario of modelled joules, such as ordinary_hardware (default: as reported)")
    sub.add_argument("--report", type=Path, help="write a self-contained HTML report here")

    sub = add("data", "list, fetch or verify data sets", _data)
    sub.add_argument("action", choices=("list", "fetch", "verify"))
    sub.add_argument("name", nargs="?")
    sub.add_argument("--to", type=Path, help="folder to write to (default: the cache)")
    sub = add("sync", "ship to MLflow what has not arrived yet", _sync)
    sub.add_argument("folders", nargs="*", type=Path, help="run folders, or folders that hold some (default: the workbench's home)")
    sub.add_argument("--tracking", help="MLflow address")
    add("doctor", "say what this machine can and cannot do", _doctor)
    sub = add("ui", "start the MLflow server on this machine and print its link", _ui)
    sub.add_argument("--port", type=int, default=5000)
    sub.add_argument("--store", metavar="ADDRESS",
                     help="database to show: sqlite:///… or postgresql://… (default: $MLFLOW_TRACKING_URI, else the project's SQLite file)")
    return parser


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method; repeatable")
    sub.add_argument("--task-set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the task; repeatable")
    sub.add_argument("--budget", action="append", default=[], metavar="METRIC=CAP",
                     help="end when a cumulative metric reaches this; repeatable")
    sub.add_argument("--device", help="cpu, cuda or cuda:<n> (default: cuda where there is one)")
    sub.add_argument("--threads", type=int, help="CPU threads (default: all)")
    sub.add_argument("--tracking", help="MLflow address, or off (default: $MLFLOW_TRACKING_URI, else the project's SQLite file)")
    sub.add_argument("--experiment", default="workbench")


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} {text!r} is refused. Write NAME=VALUE.")
        pairs[name] = value
    return pairs


def _run_arguments(args: argparse.Namespace, methods: Sequence[str], task: str) -> dict[str, Any]:
    """What ``run`` and ``sweep`` share, as keyword arguments of ``workbench.run``."""
    from workbench import registry
    from workbench.params import from_text

    typed = _pairs(args.set, "--set")
    return {
        "params": from_text(registry.load_method(methods[0]).Params, typed) if typed else {},
        "task_params": from_text(registry.load_task(task).Params, _pairs(args.task_set, "--task-set")) if args.task_set else {},
        "budget": {k: _number(v, f"--budget {k}") for k, v in _pairs(args.budget, "--budget").items()},
        "device": args.device, "threads": args.threads, "tracking": args.tracking, "experiment": args.experiment,
    }


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what} = {text!r} is refused. Allowed: number.") from None


# --- verbs ------------------------------------------------------------------------------------------------


def _methods(args: argparse.Namespace) -> None:
    from workbench.catalogue import method_rows

    _print_rows(method_rows(args.family), args.json, ("id", "family", "title", "summary"))


def _tasks(args: argparse.Namespace) -> None:
    from workbench.catalogue import task_rows

    _print_rows(task_rows(), args.json, ("id", "kind", "embedded", "title"))


def _describe(args: argparse.Namespace) -> None:
    from workbench.catalogue import parameter_rows

    _print_rows(parameter_rows(args.id), args.json, ("name", "default", "allowed", "description"))


def _run(args: argparse.Namespace) -> int:
    from workbench.runs import RunFailed, run

    try:
        ended = run(args.method, args.task, seed=args.seed, fresh=args.fresh, **_run_arguments(args, [args.method], args.task))
    except RunFailed as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    print(f"{ended.status}{' (from the cache)' if ended.cached else ''}{': ' + ended.reason if ended.reason else ''}")
    _print_rows([{"metric": n, "last": f"{v:.6g}"} for n, v in ended.metrics.items()], False, ("metric", "last"))
    print(f"folder  {ended.folder.path}")
    if ended.url:
        print(f"MLflow  {ended.url}  (start the server with `workbench ui`)")
    return 0 if ended.status == "finished" else 1


def _sweep(args: argparse.Namespace) -> int:
    from workbench import registry
    from workbench.params import from_text
    from workbench.sweeps import grid, sweep

    methods, tasks = args.method.split(","), args.task.split(",")
    varied = {}
    for name, values in _pairs(args.grid, "--grid").items():
        varied[name] = [from_text(registry.load_method(methods[0]).Params, {name: v})[name] for v in values.split(",")]
    common = _run_arguments(args, methods, tasks[0])
    result = sweep(grid(methods, tasks, common.pop("params"), **varied), seeds=args.seeds, executor=args.executor,
                   workers=args.workers, **common)
    table = result.table()
    if len(table):
        shown = ["method", "task", "seed", *varied, "status", *(c for c in ("eval/accuracy", "eval/loss") if c in table)]
        print(table[shown].to_string(index=False))
    for job, reason in result.failures:
        print(f"failed: {job['method']} on {job['task']}, seed {job.get('seed', 0)}: {reason}", file=sys.stderr)
    return 1 if result.failures or any(r.status != "finished" for r in result.runs) else 0


def _study(args: argparse.Namespace) -> int:
    from workbench.study import execute, studies

    if args.ids:
        print("\n".join(row["id"] for row in studies()))
        return 0
    if args.id is None:
        _print_rows(studies(), False, ("id", "title", "notebook"))
        return 0
    return execute(args.id, profile=args.profile, parameters=_pairs(args.set, "--set"), output=args.output)


def _compare(args: argparse.Namespace) -> None:
    from workbench.comparison import compare

    comparison = compare(task=args.task, methods=args.method.split(",") if args.method else None, metric=args.metric,
                         hardware=args.hardware, scenario=args.scenario)
    print(comparison)
    if args.report:
        print(f"report  {comparison.report(args.report)}")


def _data(args: argparse.Namespace) -> int:
    from workbench import data

    if args.action == "list":
        _print_rows(data.status(), False, None)
        return 0
    if args.action == "fetch":
        if args.name is None:
            raise UserError(f"Name a data set to fetch. Known: {', '.join(data.DATASETS)}.")
        print(data.fetch(args.name, args.to))
        return 0
    rows = data.verify(args.name)
    _print_rows(rows, False, None)
    return 0 if all(row.get("ok", True) for row in rows) else 1


def _sync(args: argparse.Namespace) -> int:
    from tracking.sync import sync

    rows = sync(uri=args.tracking, folders=args.folders or None)
    _print_rows(rows, False, None)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from workbench.doctor import examine

    rows = examine()
    _print_rows(rows, False, ("check", "state", "detail"))
    return 1 if any(row["state"] == "broken" for row in rows) else 0


def _ui(args: argparse.Namespace) -> int:
    from tracking.server import serve

    return serve(port=args.port, uri=args.store or None)


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str] | None) -> None:
    """Print rows as an aligned table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        print("nothing")
        return
    columns = columns or list(rows[0])
    texts = [[str(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    for line in ([*columns], ["-" * w for w in widths], *texts):
        print("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
