"""``make gpu``: every method on CUDA against the CPU, then studies at their full size inside a time budget.

Needs what a compute node has (torch, numpy, pandas, pydantic, filelock), what the methods and studies asked for need besides, and their
data in ``$WORKBENCH_DATA``. Figures go to ``tracking/results/<study>/<hardware>.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from tracking import journal
from tracking.errors import UserError
from workbench import registry
from workbench.grouping import older_code, scan
from workbench.keeping import keep_runs
from workbench.runs import Run, run, runs_root
from workbench.studies import full
from workbench.sweeps import sweep

# Both devices see the same batches and the same initial weights, so the first report differs by rounding alone: float32 products
# over at most 512 inputs have relative error below 512 * 6e-8 = 3e-5; normalisation layers and a few steps may enlarge it tenfold or so.
FIRST_LOSS_RTOL = 5e-3
# Later the trajectories part: training is chaotic, and noise (dropout, augmentation, stochastic rounding) comes from each device's own
# generator. Then one seed on one device is as another seed on the other.
ATOL = {"eval/accuracy": 0.06, "eval/loss": 0.02}
SEEDS = 5
NOISY = ("dropout", "drop_edges_1", "rounding", "stochastic")  # what draws on the device from the first batch on
NOISY_METHODS = ("luq", "bgrl", "grace", "vgae", "dgi")
KEEP_EVERY_S = 20.0


# --- methods ------------------------------------------------------------------------------------------------


def check_methods(only: list[str], jobs: int) -> list[str]:
    """Run the example of every method (or of those named) on both devices, ``jobs`` processes at a time; returns what disagrees."""
    wrong = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for id, text, found in pool.map(check_method, only or list(registry.methods())):
            print(f"{id:22s} {text}", flush=True)
            wrong += [f"{id}: {line}" for line in found]
    return wrong


def check_method(id: str) -> tuple[str, str, list[str]]:
    """One method's example on both devices: its id, what to print, and what disagrees."""
    try:
        cpu, cuda = (example(id, device) for device in ("cpu", "cuda"))
        found = differences(cpu, cuda)
        if far(cpu, cuda):
            found += apart(id, cpu, cuda)
    except Exception as error:
        return id, "failed", [f"{type(error).__name__}: {error}"]
    return id, f"cpu {summary(cpu)}   cuda {summary(cuda)}", found


def example(id: str, device: str, seed: int = 0) -> Run:
    given = registry.methods()[id].literals.get("example", {"task": "digits/mlp", "params": {}})
    params = {**given["params"]}
    if "report_every" in registry.load_method(id).Params.model_fields:
        params["report_every"] = 1
    return run(id, given["task"], params, device=device, seed=seed, threads=2, tracking="off", progress=False, fresh=True)


def differences(cpu: Run, cuda: Run) -> list[str]:
    """Where two runs of one spec on two devices differ although rounding alone tells them apart."""
    found, params = [], cpu.spec["params"]
    first = [next(iter(journal.read(r.folder.journal_path))).values for r in (cpu, cuda)]
    noisy = cpu.spec["method"] in NOISY_METHODS or any(params.get(name) not in (None, 0, 0.0, False, "deterministic") for name in NOISY)
    if "train/loss" in first[0] and not noisy:
        a, b = (f["train/loss"] for f in first)
        if abs(a - b) > FIRST_LOSS_RTOL * abs(a):
            found.append(f"first loss {a:.6g} on the CPU, {b:.6g} on CUDA")
    measured = {name for r in (cpu, cuda) for name in r.metrics if name.startswith("energy/") and "modelled" not in name}
    if odd := (cpu.metrics.keys() ^ cuda.metrics.keys()) - measured:
        found.append(f"different metrics: {sorted(odd)}")
    return found


def far(cpu: Run, cuda: Run) -> bool:
    a, b = (r.metrics.get(quality(r)) for r in (cpu, cuda))
    return a is not None and abs(a - b) > ATOL[quality(cpu)]


def quality(r: Run) -> str:
    return "eval/accuracy" if "eval/accuracy" in r.metrics else "eval/loss"


def apart(id: str, cpu: Run, cuda: Run) -> list[str]:
    """Whether accuracies (losses where there are none) over some seeds have different means, by three standard errors of the difference."""
    name = quality(cpu)
    both = [[first.metrics[name], *(example(id, device, seed).metrics[name] for seed in range(1, SEEDS))]
            for device, first in (("cpu", cpu), ("cuda", cuda))]
    means = [statistics.fmean(values) for values in both]
    error = (sum(statistics.variance(values) for values in both) / SEEDS) ** 0.5
    if abs(means[0] - means[1]) <= 3 * error:
        return []
    return [f"{name} {means[0]:.4f} on the CPU, {means[1]:.4f} on CUDA; standard error of the difference {error:.4f}, n = {SEEDS}"]


def summary(r: Run) -> str:
    m = r.metrics
    quality = next((f"{name.split('/')[1]} {m[name]:.4f}" for name in ("eval/accuracy", "eval/loss", "train/loss") if name in m), "")
    return f"{quality} wall {m['clock/wall_s']:.2f} s"


# --- studies ------------------------------------------------------------------------------------------------


def full_study(study: str, seeds: int, workers: int, budget_s: float) -> list[str]:
    """The study's runs at full size, all at one seed before the next, ``workers`` side by side; returns what failed.

    What is not done when the budget is spent is stopped; asked for again, it goes on from there. What has finished is kept all along.
    """
    runs = [{**spec, "seed": seed} for seed in range(seeds) for spec in full.RUNS[study]()]
    tags = {"workbench.study": study, "workbench.profile": "full"}
    over = threading.Event()

    def keep() -> None:
        last = False
        while not last:
            last = over.wait(KEEP_EVERY_S)  # once more when all is over
            if finished := finished_runs(study):
                keep_runs(study, finished, times=workers == 1)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        done = sweep(runs, executor="processes", workers=workers, seconds=budget_s, device="cuda", tracking="off", progress=False,
                     tags=tags)
    finally:
        over.set()
        keeper.join()
    for ended in done.runs:
        print(f"{study}: {ended}", flush=True)
    return [f"{study}: {job['method']} on {job['task']}, seed {job['seed']}: {reason}" for job, reason in done.failures]


def finished_runs(study: str) -> list[Run]:
    """The study's finished runs at full size in the home folder, made with the code of their newest run."""
    def belongs(r: Run) -> bool:
        tags = r.folder.read_run()["tags"]
        return (tags.get("workbench.study"), tags.get("workbench.profile"), r.status) == (study, "full", "finished")

    return older_code(filter(belongs, scan(runs_root())))[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-s", type=float, default=1200.0, help="seconds for each of the full studies; 0 leaves them out")
    parser.add_argument("--jobs", type=int, default=4, help="processes that check methods side by side")
    parser.add_argument("--methods", default="", help="check only these, separated by commas; none: check none")
    parser.add_argument("--studies", default="askewsgd", help=f"separated by commas, of {', '.join(full.RUNS)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the full studies, one after the other")
    parser.add_argument("--workers", type=int, default=1, help="runs of a full study side by side; with more than one no time is kept")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device on this machine: nothing was checked. Run `make gpu` on a GPU machine.", file=sys.stderr)
        return 2
    wrong = [] if args.methods == "none" else check_methods([m for m in args.methods.split(",") if m], args.jobs)
    for study in args.studies.split(",") if args.budget_s else []:
        try:
            wrong += full_study(study, args.seeds, args.workers, args.budget_s)
        except UserError as error:
            wrong.append(f"the full study {study} was left out: {error}")
    for line in wrong:
        print(f"WRONG {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
