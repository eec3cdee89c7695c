"""``make gpu``: every method on CUDA against the CPU, then the full AskewSGD study inside a time budget.

Needs what a compute node has: torch, numpy, pandas, pydantic, filelock, and CIFAR-10 as ``cifar10.npz`` in ``$WORKBENCH_DATA``
(`workbench data fetch cifar10 --to DIR` writes it). Figures go to ``tracking/results/askewsgd/<hardware>.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from tracking import journal
from tracking.errors import UserError
from tracking.results import keep
from workbench import registry
from workbench.provenance import hardware, record
from workbench.runs import Run, RunFailed, run

# Both devices see the same batches and the same initial weights, so the first report differs by rounding alone: float32 products
# over at most 512 inputs have relative error below 512 * 6e-8 = 3e-5; normalisation layers and a few steps may enlarge it tenfold or so.
FIRST_LOSS_RTOL = 5e-3
# Later the trajectories part (training is chaotic, and noise comes from each device's own generator); quality must agree
# as that of two seeds does.
ACCURACY_ATOL = 0.06


def check_methods() -> list[str]:
    """Run every method's example on both devices; returns what disagrees."""
    wrong = []
    for id, entry in registry.methods().items():
        example = entry.literals.get("example", {"task": "digits/mlp", "params": {}})
        params = {**example["params"]}
        if "report_every" in registry.load_method(id).Params.model_fields:
            params["report_every"] = 1
        try:
            cpu, cuda = (run(id, example["task"], params, device=device, tracking="off", progress=False, fresh=True)
                         for device in ("cpu", "cuda"))
        except Exception as error:
            wrong.append(f"{id}: {error}")
            continue
        wrong += [f"{id}: {text}" for text in differences(cpu, cuda)]
        print(f"{id:16s} cpu {summary(cpu)}   cuda {summary(cuda)}", flush=True)
    return wrong


def differences(cpu: Run, cuda: Run) -> list[str]:
    """Where two runs of one spec on two devices differ by more than argued."""
    found = []
    first = [next(iter(journal.read(r.folder.journal_path))).values for r in (cpu, cuda)]
    if "train/loss" in first[0]:
        a, b = (f["train/loss"] for f in first)
        # methods that draw noise on the device differ from the first batch on
        noisy = any(word in str(cpu.spec["params"].values()) for word in ("stochastic",)) or cpu.spec["method"] == "luq"
        if abs(a - b) > FIRST_LOSS_RTOL * abs(a) and not noisy:
            found.append(f"first loss {a:.6g} on the CPU, {b:.6g} on CUDA")
    a, b = cpu.metrics.get("eval/accuracy"), cuda.metrics.get("eval/accuracy")
    if a is not None and abs(a - b) > ACCURACY_ATOL:
        found.append(f"accuracy {a:.4f} on the CPU, {b:.4f} on CUDA")
    if cpu.metrics.keys() - {"energy/cpu_j", "energy/gpu_j"} != cuda.metrics.keys() - {"energy/cpu_j", "energy/gpu_j"}:
        found.append(f"different metrics: {sorted(cpu.metrics.keys() ^ cuda.metrics.keys())}")
    return found


def summary(r: Run) -> str:
    m = r.metrics
    return f"accuracy {m.get('eval/accuracy', float('nan')):.4f} wall {m['clock/wall_s']:.2f} s"


def full_study(budget_s: float) -> list[str]:
    """As many seeds of the full W1/A32 table as the budget allows, all methods before the next seed; returns what failed.

    A run starts when the longest one so far would still fit, so at least one is made, however small the budget.
    """
    from workbench.studies.askewsgd import w1a32

    begin, ended, failed, longest = time.monotonic(), [], [], 0.0
    for seed in range(5):
        for spec in w1a32("cifar10/vgg_small", 100, {}, paper_rates=True):
            if longest and time.monotonic() - begin + longest > budget_s:
                break
            started = time.monotonic()
            try:
                ended.append(run(**spec, seed=seed, device="cuda", tracking="off"))
                print(f"{ended[-1]} after {time.monotonic() - begin:.0f} s", flush=True)
                write(ended)  # what is done is kept, whatever happens to the rest
            except RunFailed as error:  # takes no other run down
                failed.append(str(error))
                print(f"FAILED {error}", file=sys.stderr, flush=True)
            longest = max(longest, time.monotonic() - started)
    return failed


def write(ended: list[Run]) -> None:
    """Figures by method, seed by seed, with provenance; nothing while no run has finished."""
    rows = []
    for method in dict.fromkeys(r.spec["method"] for r in ended):
        runs = [r for r in ended if r.spec["method"] == method and r.status == "finished"]
        for name in ("eval/accuracy", "eval/accuracy_latent", "eval/accuracy_bn", "clock/wall_s", "energy/gpu_j", "memory/peak_bytes"):
            values = [r.metrics[name] for r in runs if name in r.metrics]
            if values:
                rows.append({"quantity": "w1a32", "method": method, "metric": name, "mean": statistics.fmean(values), "values": values,
                             "n": len(values), "profile": "full"})
    if rows:
        keep("askewsgd", hardware("cuda"), rows, record())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-s", type=float, default=1200.0,
                        help="seconds for the full study, of which at least one run is made; 0 leaves it out")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device on this machine: nothing was checked. Run `make gpu` on a GPU machine.", file=sys.stderr)
        return 2
    wrong = check_methods()
    for line in wrong:
        print(f"WRONG {line}", file=sys.stderr)
    if args.budget_s:
        try:
            wrong += full_study(args.budget_s)
        except UserError as error:
            print(f"The full study was left out: {error}", file=sys.stderr)
            return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
