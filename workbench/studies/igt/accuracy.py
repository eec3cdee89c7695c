"""Accuracy of all methods under one probe beside what papers print, and what each order of the transform adds to order 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tracking.statistics import interval
from workbench.claims import Claim, differences, exceeds, figure, within
from workbench.comparison import Comparison
from workbench.datasets.graphs import GraphTask, split
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.graphs.probe import probe_blocks
from workbench.method import Context, derive_seed
from workbench.registry import load_task
from workbench.spec import resolve
from workbench.studies.igt.settings import DRAWN, FILTERS, FOUND, Bench

if TYPE_CHECKING:
    import pandas

LEVEL = "at the level of the state of the art (abstract); the figures themselves are not known to us"
KEPT = ("S0", "S1", "S0+S1", "S0+S1+S2")
ONES = ("S1", "S0+S1")
"""What order 1 is worth, alone and beside order 0."""


def accuracy_table(benches: Sequence[Bench], comparisons: Mapping[str, Comparison]) -> pandas.DataFrame:
    """A row a method, for each bench what papers print and ours in percent, mean with 95 % interval and n; absent where not run."""
    import pandas

    rows = []
    for method in dict.fromkeys(m for b in benches for m in b.methods):
        row: dict[str, str | None] = {"method": method}
        for b in benches:
            if b.published:
                row[f"{b.name}: published [%]"] = b.published.get(method)
            own = comparisons[b.name].values(method) if method in b.methods else {}
            row[f"{b.name}: ours [%]"] = figure(own, 1, 100) if own else None
        rows.append(row)
    return pandas.DataFrame(rows)


def cluster_table(bench: Bench, comparison: Comparison) -> pandas.DataFrame:
    """Agreement of k-means with the labels, time and memory of what was learnt, for each unsupervised method of a bench."""
    import pandas

    columns = {
        "eval/nmi": "NMI",
        "eval/ari": "ARI",
        "eval/accuracy": "probe [fraction]",
        "clock/wall_s": "time to fit [s]",
    }
    rows = []
    for method in bench.methods:
        found = {title: comparison.values(method, metric) for metric, title in columns.items()}
        if found["NMI"]:
            rows.append({"method": method, **{title: figure(v, 3) for title, v in found.items() if v}})
    return pandas.DataFrame(rows)


def level_claims(bench: Bench, comparison: Comparison) -> list[Claim]:
    """Whether IGT reaches DGI, as run here and as published, and whether the bench gives published figures of others back."""
    ours = {name: comparison.values(name) for name in ("igt", "dgi", "gcn", "averaged_features")}
    where = f"({bench.name})"
    found = [
        exceeds(
            f"IGT is within one point of DGI {where}",
            LEVEL,
            ours["igt"],
            ours["dgi"],
            margin=0.01,
            names=("IGT", "DGI"),
            scale=100,
            digits=1,
        )
    ]
    for name, title in (("dgi", "DGI"), ("gcn", "GCN")):
        if name in bench.published:
            paper = float(bench.published[name].partition(" ")[0]) / 100
            found.append(
                within(
                    f"The bench gives the published accuracy of {title} back within 1.5 points {where}",
                    f"{bench.published[name]} %",
                    ours[name],
                    paper - 0.015,
                    paper + 0.015,
                    scale=100,
                    digits=1,
                )
            )
    return found


def speed_claim(bench: Bench, comparison: Comparison) -> Claim:
    """Time to fit of DGI over that of IGT, by seed."""
    igt, dgi = (comparison.values(name, "clock/wall_s") for name in ("igt", "dgi"))
    ratio = {seed: dgi[seed] / igt[seed] for seed in igt if seed in dgi}
    claim = within(
        f"IGT is fitted at least five times faster than DGI ({bench.name})",
        "no figure is known",
        ratio,
        5.0,
        1e9,
        digits=1,
    )
    return replace(claim, how=claim.how.partition(" against")[0] + " of the ratio of times, by seed, against 5") if ratio else claim


# --- orders -------------------------------------------------------------------------------------------------


def order_scores(bench: Bench, splits: int, fits: int = 2, filters: str = FOUND, kinds: Sequence[str] = ("raw", *KEPT)) -> pandas.DataFrame:
    """Test accuracy of a probe on single orders and on several together, with filters of a kind of :data:`FILTERS`.

    A row a split, a column for each of ``kinds``. The transform sees no label: it is fitted ``fits`` times, from
    different first filters (and on different graphs, where graphs are generated), and splits take turns with the fits.
    """
    import pandas

    fitted = [_fitted(bench, seed, filters, kinds) for seed in range(min(fits, splits))]
    rows = []
    for number in range(splits):
        task, blocks = fitted[number % len(fitted)]
        masks = split(task.y.numpy(), task.labelled.numpy(), {}, task.params, derive_seed(number, "orders"), task.id)
        sets = [torch.from_numpy(masks[name]) for name in ("train", "val", "test")]
        rows.append({"split": number, **{k: probe_blocks(b, task.y, *sets).test_accuracy for k, b in blocks.items()}})
    return pandas.DataFrame(rows)


def _fitted(bench: Bench, seed: int, filters: str, kinds: Sequence[str]) -> tuple[GraphTask, dict[str, list[torch.Tensor]]]:
    run = bench.run("igt")
    if "data_seed" in load_task(run["task"]).Params.model_fields:
        run["task_params"] = run["task_params"] | {"data_seed": seed}
    job = resolve(**run, device="cpu")
    task, p = job.task, job.method.params
    task.setup(Context(torch.device("cpu"), 0))
    igt = InterferometricGraphTransform(
        2 if "S0+S1+S2" in kinds else 1,
        dim=p.dim,
        averaging=p.averaging,
        power=p.power,
        normalise=p.normalise,
        seed=seed,
        **FILTERS[filters],
    )
    graph = (task.x, task.edge_index)
    orders = igt.fit(graph).orders_of(graph)
    every = {"raw": [task.x], "S0": orders[:1], "S1": orders[1:2], "S0+S1": orders[:2], "S0+S1+S2": orders}
    return task, {name: every[name] for name in kinds}


def gains(frame: pandas.DataFrame) -> dict[str, dict[int, float]]:
    """What orders 1, then 2, add to what is there without them, by split."""
    by = {name: dict(zip(frame["split"], frame[name], strict=True)) for name in KEPT}
    return {"S1": differences(by["S0+S1"], by["S0"]), "S2": differences(by["S0+S1+S2"], by["S0+S1"])}


def order_table(frames: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Accuracy in percent by graph, and what each order adds, in points and in words."""
    import pandas

    rows = []
    for name, frame in frames.items():
        row = {"graph": name, **{f"{k} [%]": figure(list(frame[k]), 1, 100) for k in ("raw", *KEPT)}}
        for order, gain in gains(frame).items():
            row[f"{order} adds [points]"] = figure(gain, 1, 100)
            row[f"{order}, in words"] = in_words(list(gain.values()))
        rows.append(row)
    return pandas.DataFrame(rows)


def learning_table(by_filters: Mapping[str, Mapping[str, pandas.DataFrame]]) -> pandas.DataFrame:
    """Accuracy in percent of order 1 alone and beside order 0, by graph and filters, and in words against random filters."""
    import pandas

    rows = []
    for name, drawn in by_filters[DRAWN].items():
        for filters, frames in by_filters.items():
            row = {"graph": name, "filters": filters}
            for kind in ("S1", "S0+S1"):
                row[f"{kind} [%]"] = figure(list(frames[name][kind]), 1, 100)
                if filters != DRAWN:
                    gain = frames[name].set_index("split")[kind] - drawn.set_index("split")[kind]
                    row[f"{kind}, learning"] = in_words(list(gain))
            rows.append(row)
    return pandas.DataFrame(rows)


def in_words(gain: Sequence[float]) -> str:
    """What a paired difference says at 95 %: helps, hurts, or no difference seen."""
    i = interval(gain)
    if i.n < 2:
        return "one split: nothing can be said"
    spread = 0.0 if np.isnan(i.half_width) else i.half_width
    return "helps" if i.mean - spread > 0 else "hurts" if i.mean + spread < 0 else "no difference seen"


def order_claims(frames: Mapping[str, pandas.DataFrame]) -> list[Claim]:
    """That order 1 adds something on real graphs, and more than ten points where communities differ in spread alone."""
    found = []
    for name, frame in frames.items():
        synthetic = name.startswith("sbm")
        low = 0.1 if synthetic else 0.0
        what = "more than 10 points" if synthetic else "something"
        gain = gains(frame)["S1"]
        claim = within(
            f"Order 1 adds {what} to order 0 ({name})",
            "learnt invariants help (abstract); no figure is known",
            gain,
            low,
            1.0,
            scale=100,
            digits=2,
        )
        found.append(claim)
    return found


def learning_claims(learnt: Mapping[str, pandas.DataFrame], drawn: Mapping[str, pandas.DataFrame]) -> list[Claim]:
    """That order 1 alone is worth no less with learnt filters than with random ones, split by split."""
    found = []
    for name, frame in learnt.items():
        a, b = (dict(zip(f["split"], f["S1"], strict=True)) for f in (frame, drawn[name]))
        claim = within(
            f"Order 1 alone is no less accurate with learnt than with random filters ({name})",
            "operators are learnt to build invariants (abstract); no figure is known",
            differences(a, b),
            0.0,
            1.0,
            scale=100,
            digits=1,
        )
        found.append(replace(claim, ours=f"learnt {figure(a, 1, 100)}, random {figure(b, 1, 100)}; difference {claim.ours}"))
    return found
