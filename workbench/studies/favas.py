"""The study of FAVAS: its runs as plain dictionaries, and what is read off them. Its clock and its theory: :mod:`favas_clock`.

Leconte, Nguyen & Moulines, "FAVANO: Federated averaging with asynchronous nodes", ICASSP 2024, arXiv:2305.16099. We
could read the paper's abstract, not its tables: figures marked (?) are recollected, and uncertain. Sizes, rates and
schedules at the reduced profiles are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.figures import curves
from tracking.styles import style_of
from workbench.claims import Claim, differences, figure, within
from workbench.comparison import Comparison
from workbench.registry import load_task

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

Runs = list[dict[str, Any]]

SCENARIOS: dict[str, dict[str, Any]] = {
    "IID, 2/3 fast": {"partition": "iid", "slow_fraction": 1 / 3},
    "non-IID, 2/3 fast": {"partition": "shards", "classes_per_client": 2, "slow_fraction": 1 / 3},
    "non-IID, 1/9 fast": {"partition": "shards", "classes_per_client": 2, "slow_fraction": 8 / 9},
}
IID, FAST, SLOW = SCENARIOS

# test accuracy in percent on MNIST after 5000 units of time, 10 seeds; recollected and uncertain, hence (?)
PAPER_MNIST: dict[str, dict[str, str]] = {
    IID: {"FAVAS": "95.1 ± 0.1 (?)", "FedBuff": "96.0 ± 0.1 (?)", "FedAvg": "93.4 ± 0.3 (?)", "QuAFL": "92.3 ± 0.9 (?)"},
    FAST: {"FAVAS": "88.9 ± 0.9 (?)", "FedBuff": "85.1 ± 3.2 (?)", "FedAvg": "38.7 ± 7.7 (?)", "QuAFL": "40.7 ± 6.7 (?)"},
    SLOW: {"FAVAS": "87.3 ± 2.3 (?)", "FedBuff": "67.3 ± 5.5 (?)", "FedAvg": "44.8 ± 6.9 (?)", "QuAFL": "45.5 ± 4.0 (?)"},
}

# what is compared, by name: the method and what sets it apart
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FAVAS": ("favas", {"reweighting": "stochastic", "local": "sgd", "upload": "dense_fp32"}),
    "FAVAS deterministic": ("favas", {"reweighting": "deterministic"}),
    "FAVAS estimated": ("favas", {"reweighting": "estimated"}),
    "FedAvg": ("fedavg", {}),
    "FedBuff": ("fedbuff", {}),
    "QuAFL": ("quafl", {"upload": "dense_fp32"}),
    "QuAFL lattice": ("quafl", {"upload": "lattice"}),
    "AsyncSGD": ("asyncsgd", {}),
    "FedFix": ("fedfix", {}),
    "FAVAS int4": ("favas", {"reweighting": "stochastic", "local": "sgd", "upload": "int4"}),
    "FAVAS[QNN] LUQ": ("favas", {"reweighting": "stochastic", "local": "luq", "upload": "int4"}),
    "FAVAS[QNN] AskewSGD": ("favas", {"reweighting": "stochastic", "local": "askewsgd", "upload": "levels"}),
}
MAIN = ("FAVAS", "FedAvg", "FedBuff", "QuAFL", "AsyncSGD", "FedFix")
"""One variant a method, for figures and for the tuning."""
QNN = ("FAVAS", "FAVAS int4", "FAVAS[QNN] LUQ", "FAVAS[QNN] AskewSGD")
"""FAVAS with quantised local training, beside FAVAS as it is and with 4-bit messages alone."""
FULL_PRECISION = tuple(name for name in VARIANTS if name not in QNN[1:])


# learning rates tried for each method; ours, for standardised pixels
GRID: dict[str, tuple[float, ...]] = {"FAVAS": (0.05, 0.1, 0.2, 0.3), "FedAvg": (0.05, 0.1, 0.2, 0.5),
                                      "FedBuff": (0.0005, 0.001, 0.002, 0.005), "QuAFL": (0.05, 0.1, 0.2, 0.5),
                                      "AsyncSGD": (0.01, 0.02, 0.05, 0.1), "FedFix": (0.02, 0.05, 0.1, 0.2)}
SHORT_GRID = {name: rates[:-1] if name == "FAVAS" else rates[1:] if name in ("FedAvg", "FedBuff", "FedFix") else rates[:3]
              for name, rates in GRID.items()}
"""Three rates each, for the reduced profile."""


def converted_rate(task: str, rate: float = 0.5) -> float:
    """A learning rate for pixels from 0 to 1, for the standardised pixels of ``task``: times the mean square of a pixel, two digits.

    A step of size ``lr`` moves the first layer's outputs by ``lr`` times the square of the input's norm. Of the layers above
    it says nothing, so this is a conversion in order of magnitude.
    """
    images = load_task(task)
    mean_square = float(np.mean(np.square(images.mean) + np.square(images.std)))
    return float(f"{rate * mean_square:.2g}")


@dataclass(frozen=True)
class Federation:
    """The size of the experiments. The paper's: 100 clients, 20 contacted, at most 20 steps of batch 128, 5000 units."""

    task: str
    task_params: dict[str, Any] = field(default_factory=dict)
    clients: int = 100
    selected: int = 20
    local_steps: int = 20
    batch_size: int = 128
    horizon: float = 5000.0
    evaluations: int = 20

    @property
    def own(self) -> dict[str, dict[str, Any]]:
        """What each method needs besides the common sizes: the share of clients contacted, or of deliveries awaited, is always the same.

        FedBuff's buffer of a tenth of the clients, AsyncSGD's ``s`` jobs of one step and FedFix's ``dt`` (a slow client takes four)
        are our choice.
        """
        contacted = {"selected": self.selected}
        return {"favas": contacted, "fedavg": contacted, "quafl": contacted, "fedbuff": {"buffer": max(1, self.clients // 10)},
                "asyncsgd": {"jobs": self.selected, "local_steps": 1}, "fedfix": {"dt": 4.0 * self.local_steps}}

    def run(self, name: str, scenario: str, lr: float) -> dict[str, Any]:
        """The run of a variant in a scenario, with the clients' learning rate ``lr``."""
        method, variant = VARIANTS[name]
        params = {"clients": self.clients, "local_steps": self.local_steps, "batch_size": self.batch_size, "horizon": self.horizon,
                  "report_every": self.horizon / self.evaluations, "eval_every": self.horizon / self.evaluations, "lr": lr,
                  **SCENARIOS[scenario], **self.own[method], **variant}
        if variant.get("local", "sgd") != "sgd":  # the perceptron has no layer between its first and its last
            params["quantised_layers"] = "all" if self.task.endswith("/perceptron") else "inner"
        return {"method": method, "task": self.task, "task_params": self.task_params, "params": params}

    def common(self, scenario: str, lr: float, names: tuple[str, ...] = FULL_PRECISION) -> Runs:
        """All variants at one learning rate; FedBuff's is divided by clients over buffer size, as in the published simulator of QuAFL."""
        share = self.own["fedbuff"]["buffer"] / self.clients
        return [self.run(name, scenario, lr * share if name == "FedBuff" else lr) for name in names]

    def tuning(self, scenario: str, grid: Mapping[str, tuple[float, ...]]) -> Runs:
        """The main variants at each learning rate of their grid."""
        return [self.run(name, scenario, lr) for name, rates in grid.items() for lr in rates]


# --- reading comparisons ------------------------------------------------------------------------------------


def named(comparison: Comparison, names: tuple[str, ...] = tuple(VARIANTS)) -> Comparison:
    """The groups of these variants under their names here, in this order; in one look for all figures with several methods."""
    found = []
    for name in names:
        method, variant = VARIANTS[name]
        found += [replace(g, label=name) for g in comparison.groups
                  if g.method == method and all(g.facts.get(k) == v for k, v in variant.items())]
    several = len({name.split(" ")[0] for name in names}) > 1
    return Comparison(found, comparison.left_out, comparison.metric, comparison.axis, style_of(VARIANTS if several else names))


def values(comparison: Comparison, name: str, metric: str = "eval/accuracy") -> dict[int, float]:
    """Last value by seed of one variant."""
    method, variant = VARIANTS[name]
    return comparison.values(method, metric, **variant)


def ahead(text: str, paper: str, comparison: Comparison, a: str, b: str, margin: float = 0.0) -> Claim:
    """The claim that variant ``a`` is at the end more accurate than ``b``, less ``margin``, judged on the differences seed by seed.

    Runs of one seed have the same partition, the same slow clients and the same start, which is most of what makes seeds differ.
    """
    one, two = values(comparison, a), values(comparison, b)
    claim = within(text, paper, differences(one, two), -margin, 1.0, scale=100, digits=1)
    if not claim.ours:
        return claim
    ours = f"{a} {figure(one, 1, 100)}; {b} {figure(two, 1, 100)}; difference {claim.ours}"
    rule = f"95 % interval of the mean difference by seed against {0.0 - 100 * margin:g}"
    return replace(claim, ours=ours, how=rule + ("" if len(one) > 1 else ": needs two seeds or more"))


def tuned(comparison: Comparison, grid: Mapping[str, tuple[float, ...]], horizon: float) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Mean accuracy over the second half of the virtual time, a row a method and rate, and the best rate of each method.

    One evaluation alone says little: with two classes a client curves swing by many points. Where none falls into the second half
    the last one counts. A rate whose run did not finish has no accuracy.
    """
    import pandas

    rows, best = [], {}
    for name, rates in grid.items():
        late = {g.facts["lr"]: float(np.mean([_late(frame, horizon / 2) for frame in g.frames]))
                for g in comparison.groups if g.method == VARIANTS[name][0]}
        if late:
            best[name] = max(late, key=late.get)
        for lr in rates:
            edge = len(rates) > 2 and lr in (min(rates), max(rates))
            remark = "" if lr != best.get(name) else "chosen, at the edge of the grid" if edge else "chosen"
            rows.append({"method": name, "rate": lr, "accuracy [%]": 100 * late[lr] if lr in late else None, "remark": remark})
    return pandas.DataFrame(rows), best


def tuning_table(tables: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """What was tried in each scenario: a row a method, the rates with the accuracies they gave, and the rate chosen."""
    import pandas

    rows = []
    for scenario, table in tables.items():
        for name, part in table.groupby("method", sort=False):
            tried = [f"{r.rate:g}: {'did not finish' if np.isnan(r.accuracy) else f'{r.accuracy:.1f}'}"
                     for r in part.rename(columns={"accuracy [%]": "accuracy"}).astype({"accuracy": float}).itertuples()]
            chosen = [f"{lr:g}{remark.removeprefix('chosen')}" for lr, remark in zip(part["rate"], part["remark"], strict=True) if remark]
            rows.append({"scenario": scenario, "method": name, "rate: accuracy [%]": ", ".join(tried), "chosen": "".join(chosen)})
    return pandas.DataFrame(rows)


def _late(frame: pandas.DataFrame, since: float) -> float:
    seen = frame.dropna(subset=["eval/accuracy"])
    late = seen[seen["clock/virtual_s"] > since]
    return float((late if len(late) else seen.tail(1))["eval/accuracy"].mean())


def results(comparisons: Mapping[str, Comparison], paper: Mapping[str, Mapping[str, str]]) -> pandas.DataFrame:
    """Paper (where it has figures) and ours by scenario, in percent: a row a variant, last and best evaluation with interval and n."""
    import pandas

    rows = []
    for scenario, comparison in comparisons.items():
        for g in named(comparison).groups:
            last, best = g.values("eval/accuracy"), g.values("eval/accuracy", best=True)
            rows.append({"scenario": scenario, "method": g.label, "rate": g.facts["lr"], "paper [%]": paper.get(scenario, {}).get(g.label),
                         "ours, end [%]": figure(last, 1, 100), "ours, best [%]": figure(best, 1, 100)})
    return pandas.DataFrame(rows).dropna(axis=1, how="all")


def costs(comparison: Comparison) -> pandas.DataFrame:
    """What each variant has done by the horizon: server steps, gradients, megabytes each way, modelled joules; means over seeds."""
    import pandas

    columns = {"eval/accuracy": ("accuracy at the end [%]", 100.0), "eval/accuracy_latent": ("before rounding [%]", 100.0),
               "train/server_steps": ("server steps", 1.0), "train/gradients": ("gradient steps", 1.0), "comm/up_bytes": ("up [MB]", 1e-6),
               "comm/down_bytes": ("down [MB]", 1e-6), "energy/model_j": ("modelled [J]", 1.0)}
    rows = []
    for g in named(comparison).groups:
        found = {title: scale * g.mean(metric).mean for metric, (title, scale) in columns.items() if metric in g.metrics}
        rows.append({"method": g.label, "n": len(g.runs), **found})
    return pandas.DataFrame(rows)


def against_time(comparison: Comparison, title: str, metric: str = "eval/accuracy", **options: Any) -> go.Figure:
    """A metric's curves against virtual time, under a title that names the scenario."""
    fig = comparison.curves(metric, "clock/virtual_s", **options)
    return fig.update_layout(title_text=title).update_xaxes(title_text="virtual time [units]")


def against_bytes(comparison: Comparison, title: str) -> go.Figure:
    """Accuracy against the bytes sent in both directions together."""
    frames = {g.label: [f.assign(**{"comm/up_bytes": f["comm/up_bytes"].ffill() + f["comm/down_bytes"].ffill()}) for f in g.frames]
              for g in comparison.groups}
    fig = curves(frames, "eval/accuracy", "comm/up_bytes", log_x=True, title=title, styles=comparison.styles)
    fig.layout.meta = {"caption": fig.layout.meta["caption"].replace("comm/up_bytes", "the encoded bytes up and down together")}
    return fig.update_xaxes(title_text="encoded bytes up and down [B]")
