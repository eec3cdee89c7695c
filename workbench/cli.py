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
from workbench.cli_options import add_run_options, add_setting, pairs, print_links, print_rows, run_arguments, setting


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

    for name in ("WORKBENCH_HOME", "WORKBENCH_DATA", "WORKBENCH_CACHE", "MLFLOW_ARTIFACTS_DESTINATION"):
        if os.environ.get(name) and "://" not in os.environ[name]:
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
    add_run_options(sub)
    sub.add_argument("--fresh", action="store_true", help="repeat a finished run instead of returning it")
    sub = add("preview", "say what a run would cost, from one step of it", _preview)
    sub.add_argument("method")
    sub.add_argument("task")
    sub.add_argument("--seed", type=int, default=0)
    add_setting(sub)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("sweep", "run a grid of parameters and seeds", _sweep)
    sub.add_argument("method", help="method ids, separated by commas")
    sub.add_argument("task", help="task ids, separated by commas")
    sub.add_argument("--grid", action="append", default=[], metavar="NAME=V1,V2", help="values of a varied parameter; repeatable")
    sub.add_argument("--seeds", type=int, default=1, help="number of seeds")
    sub.add_argument("--executor", default="local", help="local or processes")
    sub.add_argument("--workers", type=int)
    add_run_options(sub)

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

    sub = add("docs", "write the project's pages: executed studies, every method, guides", _docs)
    sub.add_argument("folder", nargs="?", type=Path, default=Path("build/docs"), help="where to (default: build/docs)")
    sub.add_argument("--execute", metavar="PROFILE", help="first execute the studies that never were, at this profile")
    sub = add("views", "publish the saved views into MLflow experiments and print their links", _views)
    sub.add_argument("experiments", nargs="+", help="experiments, such as workbench, or a study's id")
    sub.add_argument("--view", action="append", metavar="NAME", help="only this view; repeatable")
    sub.add_argument("--tracking", help="MLflow address (default: $MLFLOW_TRACKING_URI, else the project's SQLite file)")

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


# --- verbs ------------------------------------------------------------------------------------------------


def _methods(args: argparse.Namespace) -> None:
    from workbench.catalogue import method_rows

    print_rows(method_rows(args.family), args.json, ("id", "family", "title", "summary"))


def _tasks(args: argparse.Namespace) -> None:
    from workbench.catalogue import task_rows

    print_rows(task_rows(), args.json, ("id", "kind", "embedded", "title"))


def _describe(args: argparse.Namespace) -> None:
    from workbench.catalogue import parameter_rows

    print_rows(parameter_rows(args.id), args.json, ("name", "default", "allowed", "description"))


def _run(args: argparse.Namespace) -> int:
    from tracking.views import links_of
    from workbench.runs import RunFailed, run

    try:
        ended = run(args.method, args.task, seed=args.seed, fresh=args.fresh, **run_arguments(args, args.method, args.task))
    except RunFailed as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    print(f"{ended.status}{' (from the cache)' if ended.cached else ''}{': ' + ended.reason if ended.reason else ''}")
    print_rows([{"metric": n, "last": f"{v:.6g}"} for n, v in ended.metrics.items()], False, ("metric", "last"))
    print(f"folder  {ended.folder.path}")
    if ended.url:
        print(f"MLflow  {ended.url}  (start the server with `workbench ui`)")
    print_links(links_of([ended.folder], args.tracking))
    return 0 if ended.status == "finished" else 1


def _preview(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from workbench.cost import preview

    cost = preview(args.method, args.task, seed=args.seed, **setting(args, args.method, args.task))
    known = {name: value for name, value in asdict(cost).items() if value not in (None, "")}
    if args.json:
        print(json.dumps(known, indent=1))
        return
    joules_for = known.pop("model", None)
    print_rows([{"cost": n, "value": f"{v:.6g}"} for n, v in known.items()], False, ("cost", "value"))
    print("step_*: of one step, made now; run_s, run_bytes, samples, flops and model_j: of the whole run, in proportion to it")
    if joules_for:
        print(f"model_j: modelled for {joules_for}")


def _sweep(args: argparse.Namespace) -> int:
    from tracking.views import links_of
    from workbench import registry
    from workbench.params import from_text
    from workbench.sweeps import grid, sweep

    methods, tasks = args.method.split(","), args.task.split(",")
    varied = {}
    for name, values in pairs(args.grid, "--grid").items():
        varied[name] = [from_text(registry.load_method(methods[0]).Params, {name: v})[name] for v in values.split(",")]
    common = run_arguments(args, methods[0], tasks[0])
    result = sweep(grid(methods, tasks, common.pop("params"), **varied), seeds=args.seeds, executor=args.executor,
                   workers=args.workers, **common)
    table = result.table()
    if len(table):
        shown = ["method", "task", "seed", *varied, "status", *(c for c in ("eval/accuracy", "eval/loss") if c in table)]
        print(table[shown].to_string(index=False))
    print_links(links_of([r.folder for r in result.runs], args.tracking))
    for job, reason in result.failures:
        print(f"failed: {job['method']} on {job['task']}, seed {job.get('seed', 0)}: {reason}", file=sys.stderr)
    return 1 if result.failures or any(r.status != "finished" for r in result.runs) else 0


def _study(args: argparse.Namespace) -> int:
    from workbench.study import execute, studies

    if args.ids:
        print("\n".join(row["id"] for row in studies()))
        return 0
    if args.id is None:
        print_rows(studies(), False, ("id", "title", "notebook"))
        return 0
    return execute(args.id, profile=args.profile, parameters=pairs(args.set, "--set"), output=args.output)


def _compare(args: argparse.Namespace) -> None:
    from workbench.comparison import compare

    comparison = compare(task=args.task, methods=args.method.split(",") if args.method else None, metric=args.metric,
                         hardware=args.hardware, scenario=args.scenario)
    print(comparison)
    if args.report:
        print(f"report  {comparison.report(args.report)}")
    print_links(comparison.links())


def _docs(args: argparse.Namespace) -> None:
    from workbench.docs import build

    print(f"Pages: {build(args.folder, execute=args.execute).absolute().as_uri()}")


def _views(args: argparse.Namespace) -> None:
    from tracking.views import VIEWS, load, publish

    views = [load(view) for view in args.view or VIEWS]
    for experiment in args.experiments:
        published = publish(experiment, tracking=args.tracking, views=views)
        print(f"{experiment}\n" + "\n".join(f"  {line}" for line in str(published).splitlines()))


def _data(args: argparse.Namespace) -> int:
    from workbench import data

    if args.action == "list":
        print_rows(data.status(), False, None)
        return 0
    if args.action == "fetch":
        if args.name is None:
            raise UserError(f"Name a data set to fetch. Known: {', '.join(data.DATASETS)}.")
        print(data.fetch(args.name, args.to))
        return 0
    rows = data.verify(args.name)
    print_rows(rows, False, None)
    return 0 if all(row.get("ok", True) for row in rows) else 1


def _sync(args: argparse.Namespace) -> int:
    from tracking.sync import sync

    rows = sync(uri=args.tracking, folders=args.folders or None)
    print_rows(rows, False, None)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from workbench.doctor import examine

    rows = examine()
    print_rows(rows, False, ("check", "state", "detail"))
    return 1 if any(row["state"] == "broken" for row in rows) else 0


def _ui(args: argparse.Namespace) -> int:
    from tracking.server import serve

    return serve(port=args.port, uri=args.store or None)


if __name__ == "__main__":
    sys.exit(main())
