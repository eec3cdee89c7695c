"""BOLD beyond classification of images: super-resolution, segmentation and text, each beside full precision and the frozen control.

Nguyen, Ocampo, Askri, Leconte & Tran, "BOLD: Boolean Logic Deep Learning", NeurIPS 2024, arXiv:2405.16339, Tables 3, 4 and 7. The paper's
tables are images: figures marked (?) are recollected, and uncertain. It trains on DIV2K, Cityscapes and VOC, and fine-tunes a pretrained
BERT; here networks are small, data smaller, and nothing is pretrained, so figures are to be compared with each other alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.claims import Claim, differences, exceeds, figure, within
from workbench.comparison import Comparison

if TYPE_CHECKING:
    import pandas

    from workbench.runs import Run
    from workbench.study import Study

Runs = list[dict[str, Any]]

METHODS = {"full precision": "full_precision", "BOLD": "bold", "frozen": "frozen_boolean"}


class Section(NamedTuple):
    """One kind of task: where it is run, how long, and what is said of it."""

    metric: str
    scale: float
    """Factor from the metric to the unit of the tables."""
    unit: str
    stand_in: str
    """Embedded task of the smoke profile, and where data are missing."""
    real: dict[str, dict[str, dict[str, Any]]]
    """Real tasks, and their parameters at the quick and the full profile."""
    budgets: dict[str, dict[str, Any]]
    """Parameters of the training by profile."""
    rates: dict[str, dict[str, dict[str, Any]]]
    """Parameters by profile and method; those of the full profile are the paper's, where it states them."""
    stand_in_params: dict[str, Any]


def _rates(lr: float, eta: float, boolean_lr: float | None = None) -> dict[str, dict[str, Any]]:
    other = lr if boolean_lr is None else boolean_lr
    return {"full precision": {"lr": lr}, "BOLD": {"lr": other, "eta": eta}, "frozen": {"lr": other}}


def _glue(lengths: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, dict[str, dict[str, Any]]]:
    return {f"{name}/bert_tiny": {
        "quick": {"width": 0.5, "layers": 1, "vocabulary": 8000, "length": length, "train_size": sizes.get(name, 0)},
        "full": {"length": 2 * length}} for name, length in lengths.items()}


SECTIONS: dict[str, Section] = {
    "super-resolution": Section(
        "eval/psnr", 1, "dB", "sample_photos/edsr_small",
        {"bsd200/edsr_small": {
            "quick": {"width": 0.125, "blocks": 3, "patch": 48, "patches": 10, "skip": "bicubic"}, "full": {}}},
        {"smoke": {"epochs": 2, "batch_size": 16}, "quick": {"epochs": 1, "batch_size": 8}, "full": {"epochs": 100, "batch_size": 20}},
        {"smoke": _rates(3e-3, 36.0), "quick": _rates(1e-3, 36.0), "full": _rates(1e-4, 36.0)},
        {"width": 1 / 16, "blocks": 1, "patch": 24, "skip": "bicubic"}),
    "segmentation": Section(
        "eval/miou", 100, "%", "shapes/deeplab_small",
        {"camvid/deeplab": {"quick": {"width": 0.125, "zoom": 1.25, "train_size": 122, "test_size": 47}, "full": {"rare_classes": 0.5}}},
        {"smoke": {"epochs": 3, "batch_size": 20}, "quick": {"epochs": 4, "batch_size": 8}, "full": {"epochs": 200, "batch_size": 8}},
        {"smoke": _rates(1e-2, 12.0, 3e-2), "quick": _rates(3e-3, 12.0, 1e-2), "full": _rates(5e-4, 12.0)},
        {"width": 1 / 16, "train_size": 80, "test_size": 32}),
    "text": Section(
        "eval/accuracy", 100, "%", "python_topics/bert_tiny", 
        _glue({"sst2": 32, "cola": 24, "mrpc": 64, "rte": 64}, {"sst2": 6000, "cola": 6000}),
        {"smoke": {"epochs": 4, "batch_size": 32}, "quick": {"epochs": 3, "batch_size": 64}, "full": {"epochs": 10, "batch_size": 32}},
        {"smoke": _rates(3e-3, 300.0), "quick": _rates(1e-3, 1000.0), "full": _rates(1e-3, 100.0)},
        {"width": 0.25, "layers": 1, "vocabulary": 400}),
}
OWN_METRIC = {"cola/bert_tiny": "eval/matthews"}
"""Where a task is judged by another figure than its section."""

# PSNR in dB at scale 2, Table 3
PAPER_PSNR = {"full precision": {"set5": "38.01 (?)", "set14": "33.63 (?)", "bsd100": "32.19 (?)"},
              "BOLD": {"set5": "37.42", "set14": "33.00 (?)", "bsd100": "31.75 (?)"}}
# mean IoU in percent, Tables 4 and 13
PAPER_MIOU = {"full precision": "Cityscapes 70.7 (?), VOC 72.1 (?)", "BOLD": "Cityscapes 67.4, VOC 67.3"}
# accuracy in percent, CoLA: Matthews correlation, BERT-base pretrained and fine-tuned, Table 7
PAPER_GLUE = {"full precision": {"sst2": "93.2 (?)", "cola": "59.7 (?)", "mrpc": "86.3 (?)", "rte": "72.2 (?)"},
              "BOLD": {"sst2": "88.7 (?)", "cola": "27.1 (?)", "mrpc": "78.4", "rte": "58.8 (?)"}}


# --- runs -------------------------------------------------------------------------------------------------


def runs(study: Study, section: str) -> Runs:
    """Full precision, BOLD and its control on every task of a section, at the study's profile.

    Smoke takes the embedded task; the others take real data, and the embedded task once where a set is missing, which the report says.
    """
    s, profile = SECTIONS[section], study.parameters.profile
    tasks: dict[str, dict[str, Any]] = {}
    if profile == "smoke":
        tasks[s.stand_in] = s.stand_in_params
    else:
        for id, by_profile in s.real.items():
            dataset, _, model = id.partition("/")
            found, params = study.image_task(dataset, model, by_profile[profile], s.stand_in)
            tasks[found] = params if found == id else s.stand_in_params
    return [{"method": METHODS[name], "task": task, "task_params": params,
             "params": {**_schedule(s.budgets[profile]), **s.rates[profile][name]}}
            for task, params in tasks.items() for name in METHODS]


def _schedule(budget: Mapping[str, Any]) -> dict[str, Any]:
    return {**budget, "lr_schedule": "cosine", "eval_every": max(1, budget["epochs"] // 10)}


def of(comparison: Comparison, task: str, method: str, metric: str | None = None) -> dict[int, float]:
    """The judging figure of a task (or another) by seed, for a name of :data:`METHODS`."""
    return comparison.only(task).values(METHODS[method], metric or OWN_METRIC.get(task, comparison.metric))


def table(comparison: Comparison, section: str) -> pandas.DataFrame:
    """A row for each task and method: paper, ours, the gain over the control, flips a weight; absent where never measured.

    Gains are of pairs with one seed, so with one start and one order of the data.
    """
    import pandas

    s, rows = SECTIONS[section], []
    for task in comparison.tasks:
        control = of(comparison, task, "frozen")
        scale, unit = s.scale, s.unit
        for name in METHODS:
            ours = of(comparison, task, name)
            gain = differences(ours, control) if name == "BOLD" else {}
            rates = of(comparison, task, name, "train/flip_rate") if name == "BOLD" else {}
            rows.append({
                "task": task, "judged by": OWN_METRIC.get(task, s.metric), "method": name, f"paper [{unit}]": _paper(section, task, name),
                f"ours [{unit}]": figure(ours, 2, scale) if ours else None,
                f"gain over frozen [{'points' if unit == '%' else unit}]": figure(gain, 2, scale) if gain else None,
                "share of weights a last step flips": f"{sum(rates.values()) / len(rates):.1e}" if rates else None})
    return pandas.DataFrame(rows).dropna(axis=1, how="all")


def _paper(section: str, task: str, method: str) -> str | None:
    """The paper's figure beside a row; none for embedded tasks, which it does not have."""
    dataset = task.partition("/")[0]
    if section == "super-resolution":
        return PAPER_PSNR.get(method, {}).get("set5") if dataset == "bsd200" else None
    if section == "segmentation":
        return PAPER_MIOU.get(method) if dataset == "camvid" else None
    return PAPER_GLUE.get(method, {}).get(dataset)


# --- super-resolution ---------------------------------------------------------------------------------------


def bicubic(comparison: Comparison, test_set: str | None = None) -> float:
    """PSNR of bicubic interpolation in dB on the task of the comparison's runs, or on another of its test sets."""
    from workbench.datasets.models_superresolution import Bicubic

    return _measured(comparison.groups[0].runs[0], test_set, lambda state, task: Bicubic(task.params.scale))["eval/psnr"]


def psnr_table(comparison: Comparison, test_sets: tuple[str, ...] = ("set5", "set14")) -> pandas.DataFrame:
    """PSNR in dB of the trained networks on several test sets, and of bicubic interpolation. One training serves all sets."""
    import pandas

    rows = []
    for name in ("bicubic", *METHODS):
        row: dict[str, Any] = {"method": name}
        for test_set in test_sets:
            row[f"{test_set}, paper [dB]"] = PAPER_PSNR.get(name, {}).get(test_set)
            if name == "bicubic":
                row[f"{test_set}, ours [dB]"] = f"{bicubic(comparison, test_set):.2f}"
                continue
            found = [_measured(r, test_set)["eval/psnr"] for g in comparison.groups if g.method == METHODS[name] for r in g.runs]
            row[f"{test_set}, ours [dB]"] = figure(found) if found else None
        rows.append(row)
    return pandas.DataFrame(rows).dropna(axis=1, how="all")


def _measured(run: Run, test_set: str | None, network: Any = lambda state, task: state.model) -> dict[str, float]:
    """Test figures of a finished run's network, or of another one, on its own test set or another."""
    import torch

    from workbench.method import Context
    from workbench.methods.supervised import test

    state, job = run.state()
    task, ctx = job.task, Context(device=torch.device(job.device), seed=run.spec["seed"])
    if test_set is not None:
        # the training photographs are not looked at: one is enough
        task = type(task)(task.model_name, task.params.model_copy(update={"test_set": test_set, "train_size": 1}))
        task.setup(ctx)
    return test(network(state, task), task, ctx)


# --- claims -----------------------------------------------------------------------------------------------


def claims(comparison: Comparison, section: str) -> list[Claim]:
    """What the paper says of a kind of task, checked on our runs; and the gain over frozen layers, which it does not look at."""
    return {"super-resolution": _claims_psnr, "segmentation": _claims_miou, "text": _claims_text}[section](comparison)


def _claims_psnr(comparison: Comparison) -> list[Claim]:
    task, names = comparison.tasks[0], ("BOLD", "full precision")
    ours, real, frozen = (of(comparison, task, name) for name in ("BOLD", "full precision", "frozen"))
    reference = bicubic(comparison)
    return [
        within("Super-resolution: BOLD is better than bicubic interpolation", f"37.42 dB on Set5 at scale 2; bicubic here: {reference:.2f}",
               ours, reference, math.inf),
        exceeds("Super-resolution: BOLD comes within 1 dB of full precision", "37.42 against 38.01 (?)", ours, real, margin=1.0,
                names=names),
        exceeds("Super-resolution: training the Boolean layers gains over frozen ones", "no such control", ours, frozen,
                names=("BOLD", "frozen"))]


def _claims_miou(comparison: Comparison) -> list[Claim]:
    task = comparison.tasks[0]
    ours, real, frozen = (of(comparison, task, name) for name in ("BOLD", "full precision", "frozen"))
    return [
        exceeds("Segmentation: BOLD comes within 5 points of full precision",
                f"{PAPER_MIOU['BOLD']} against {PAPER_MIOU['full precision']}", ours, real, margin=0.05,
                names=("BOLD", "full precision"), scale=100, digits=1),
        exceeds("Segmentation: training the Boolean layers gains over frozen ones", "no such control", ours, frozen,
                names=("BOLD", "frozen"), scale=100, digits=1)]


def _claims_text(comparison: Comparison) -> list[Claim]:
    ours, real, frozen = (mean_score(comparison, name) for name in ("BOLD", "full precision", "frozen"))
    what = "mean of the tasks" if len(comparison.tasks) > 1 else comparison.tasks[0]
    return [
        exceeds(f"Text ({what}): BOLD comes within 5 points of full precision", "mean of eight tasks 70.9 (?) against 83.9 (?), pretrained",
                ours, real, margin=0.05, names=("BOLD", "full precision"), scale=100, digits=1),
        exceeds(f"Text ({what}): training the Boolean layers gains over frozen ones", "no such control", ours, frozen,
                names=("BOLD", "frozen"), scale=100, digits=1)]


def mean_score(comparison: Comparison, method: str) -> dict[int, float]:
    """Mean over the tasks of the figure that judges each, by seed; of the seeds that finished on all."""
    found = [of(comparison, task, method) for task in comparison.tasks]
    seeds = set.intersection(*map(set, found)) if found else set()
    return {seed: sum(f[seed] for f in found) / len(found) for seed in sorted(seeds)}
