"""The study of BOLD: its runs as plain dictionaries, and the tables that are read off them. Its pictures: :mod:`bold_watch`.

Nguyen, Ocampo, Askri, Leconte & Tran, "BOLD: Boolean Logic Deep Learning", NeurIPS 2024, arXiv:2405.16339. The text gives BOLD's own
accuracies; its tables are images, and figures marked (?) are recollected, and uncertain. Rates at the reduced profiles are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.claims import Claim, checked, differences, figure
from workbench.comparison import Comparison, compare
from workbench.methods.lowbit.bold import BOLD
from workbench.modelled import Choice

if TYPE_CHECKING:
    import pandas

    from tracking.energy_model import Estimate, Layer

Runs = list[dict[str, Any]]

# what is compared, by name: the method and what sets it apart
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full precision": ("full_precision", {}),
    "BinaryConnect": ("binaryconnect", {"layers": "inner"}),
    "XNOR-Net": ("xnornet", {}),
    "BinaryNet": ("binarynet", {}),
    "Bi-Real": ("bireal", {}),
    "Bop": ("bop", {}),
    "BOLD": ("bold", {"batch_norm": False}),
    "BOLD + BN": ("bold", {"batch_norm": True}),
    "BOLD frozen": ("frozen_boolean", {"batch_norm": False}),
    "BOLD + BN frozen": ("frozen_boolean", {"batch_norm": True}),
}
BITS = {"full precision": "32/32", "BinaryConnect": "1/32"}
"""Bits of weights and activations; 1/1 for all others."""
CONTROL = {"BOLD": "BOLD frozen", "BOLD + BN": "BOLD + BN frozen"}
"""The control of a variant: its network, with the Boolean layers as they were drawn."""

# test accuracy in percent, CIFAR-10, VGG-Small with three linear layers, 300 epochs (paper, Table 2); Bi-Real and Bop are not in it
PAPER_CIFAR10 = {"full precision": "93.80 (?)", "BinaryConnect": "90.10 (?)", "XNOR-Net": "89.83 (?)", "BinaryNet": "88.65 (?)",
                 "BOLD": "90.29 ± 0.09", "BOLD + BN": "92.37 ± 0.01"}
PAPER_RATES: dict[str, dict[str, Any]] = {"BOLD": {"eta": 12.0, "lr": 1e-3}, "BOLD + BN": {"eta": 150.0, "lr": 1e-3}}
# of short trainings of narrow networks; Bop's are ours, its paper's (1e-4, 1e-8) being for 500 epochs
SHORT_RATES: dict[str, dict[str, Any]] = {"BOLD": {"eta": 12.0}, "BOLD + BN": {"eta": 150.0}, "Bop": {"gamma": 1e-2, "threshold": 1e-6}}


# --- runs -------------------------------------------------------------------------------------------------


def image_runs(task: str, epochs: int, task_params: Mapping[str, Any], batch_size: int, *, paper_rates: bool = False,
               lr: float = 5e-3, variants: Sequence[str] = tuple(VARIANTS)) -> Runs:
    """Every variant under one budget: the same epochs, batches, cosine and Adam; first and last layer in full precision.

    With ``paper_rates`` BOLD's rates, and Adam's 0.001 for all, are the paper's; else they are ours, for short trainings.
    """
    common = {"epochs": epochs, "batch_size": batch_size, "lr": 1e-3 if paper_rates else lr, "lr_schedule": "cosine",
              "eval_every": max(1, epochs // 20)}
    rates = PAPER_RATES if paper_rates else SHORT_RATES
    return [{"method": VARIANTS[v][0], "task": task, "task_params": dict(task_params),
             "params": {**common, **VARIANTS[v][1], **rates.get(v, {})}} for v in variants]


ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "beta fixed at 1": {"beta": 1.0}, "beta fixed at 0.99": {"beta": 0.99}, "beta fixed at 0.9": {"beta": 0.9},
    "no window": {"window": "none"}, "window (1 + d)^-2": {"window": "rational"}, "window exp(-d)": {"window": "exponential"},
    "no scaling of signals": {"scaling": "off"}, "signals as signs": {"signal": "bool"},
    "accumulators clipped at 2": {"clip": 2.0}, "16-bit accumulators": {"accumulator_bits": 16}, "stochastic flips": {"stochastic": True},
}
"""What is changed, one at a time, in BOLD without batch norm."""


def ablation_runs(task: str, epochs: int, task_params: Mapping[str, Any], eta: float, etas: Sequence[float]) -> Runs:
    """The control, one run for each rate of ``etas``, and one for each of :data:`ABLATIONS` at ``eta``, without batch norm."""
    common = {"epochs": epochs, "batch_size": 100, "lr": 0.01, "eval_every": epochs}
    settings = [{"eta": eta, **changed} for changed in ABLATIONS.values()] + [{"eta": e} for e in etas if e != eta]
    runs: Runs = [{"method": "frozen_boolean", "params": common}, *({"method": "bold", "params": {**common, **s}} for s in settings)]
    return [{**r, "task": task, "task_params": dict(task_params)} for r in runs]


# --- what the runs say ------------------------------------------------------------------------------------


def named(comparison: Comparison) -> Comparison:
    """The comparison with groups called as in :data:`VARIANTS`."""
    def name(g: Any) -> str:
        found = [v for v, (method, own) in VARIANTS.items() if g.method == method and all(g.facts.get(k) == x for k, x in own.items())]
        return found[0] if found else g.label

    return Comparison([replace(g, label=name(g)) for g in comparison.groups], comparison.left_out, comparison.metric, comparison.axis)


def of(comparison: Comparison, variant: str, metric: str = "eval/accuracy", *, best: bool = False) -> dict[int, float]:
    """A figure by seed for a variant."""
    method, own = VARIANTS[variant]
    return comparison.values(method, metric, best=best, **own)


def flip_rates(comparison: Comparison, variant: str) -> tuple[dict[int, float], dict[int, float]]:
    """Share of weights that a step flips, by seed: in the first report of a run, and in the last."""
    method, own = VARIANTS[variant]
    first, last = {}, {}
    for g in (g for g in comparison.groups if g.method == method and all(g.facts.get(k) == v for k, v in own.items())):
        for r, frame in zip(g.runs, g.frames, strict=True):
            rates = frame["train/flip_rate"].dropna()
            first[r.spec["seed"]], last[r.spec["seed"]] = float(rates.iloc[0]), float(rates.iloc[-1])
    return first, last


def accuracy_table(comparison: Comparison, study: str = "bold") -> pandas.DataFrame:
    """Paper and ours by variant, in percent, with the gain over the control of the same network; absent where never measured.

    Differences are of pairs with one seed, so with one start and one order of the data.
    """
    import pandas

    from tracking.results import kept

    full, rows = kept(study), []
    for variant in VARIANTS:
        last, best = of(comparison, variant), of(comparison, variant, best=True)
        gain = differences(last, of(comparison, CONTROL[variant])) if variant in CONTROL else {}
        row = {"variant": variant, "W/A": BITS.get(variant, "1/1"), "paper [%]": PAPER_CIFAR10.get(variant),
               "ours [%]": figure(last, 1, 100) if last else None, "ours, best epoch [%]": figure(best, 1, 100) if best else None,
               "gain over frozen layers [points]": figure(gain, 1, 100) if gain else None}
        for r in full[(full["method"] == variant) & (full["metric"] == comparison.metric)].to_dict("records"):
            spread = f" ± {100 * r['half_width']:.2f}" if r["n"] > 1 else ""
            row[f"ours (full, {r['hardware']}) [%]"] = f"{100 * r['mean']:.2f}{spread} (n = {r['n']})"
        rows.append(row)
    return pandas.DataFrame(rows).dropna(axis=1, how="all")


def ablation_table(comparison: Comparison) -> pandas.DataFrame:
    """Accuracy, gain over the control and share of weights flipped, for each setting; the control first, then by what is changed."""
    import pandas

    control = comparison.values("frozen_boolean")
    rows = [{"setting": "control: frozen", "accuracy [%]": figure(control, 1, 100) if control else None}]
    for g in (g for g in comparison.groups if g.method == "bold"):
        accuracy, flips = g.by_seed("eval/accuracy"), g.by_seed("train/flips")
        gain = differences(accuracy, control)
        weights = sum(layer.parameters for layer in _inner(g.runs[0].energy()))
        rows.append({"setting": setting(g.facts), "eta": g.facts["eta"], "accuracy [%]": figure(accuracy, 1, 100),
                     "gain over frozen layers [points]": figure(gain, 1, 100) if gain else None,
                     "flips a weight": figure([n / weights for n in flips.values()], 3)})
    return pandas.DataFrame(rows)


def setting(facts: Mapping[str, Any]) -> str:
    """Which of :data:`ABLATIONS` a run of BOLD is."""
    names = dict.fromkeys(name for changed in ABLATIONS.values() for name in changed)
    own = {name: facts[name] for name in names if facts[name] != BOLD.Params.model_fields[name].default}
    return next((name for name, changed in ABLATIONS.items() if changed == own), str(own))


def _inner(estimate: Estimate) -> list[Layer]:
    """The layers with weights between the first and the last."""
    return [layer for layer in estimate.layers if layer.kind in ("linear", "conv")][1:-1]


# --- energy and memory --------------------------------------------------------------------------------------


def modelled(comparison: Comparison, hardware: str, scenario: str) -> Comparison:
    """The same runs with joules for another hardware and scenario; nothing is trained anew."""
    runs = [r for g in comparison.groups for r in g.runs]
    return named(compare(runs, metric=comparison.metric, hardware=hardware, scenario=scenario))


def energy_table(comparison: Comparison, choices: Sequence[Choice]) -> pandas.DataFrame:
    """Modelled energy of a training sample in per cent of full precision, a column for each hardware and scenario.

    Beside it the measured time of the simulation, for the same samples, as a multiple of full precision's.
    """
    import pandas

    groups = {g.label: g for g in named(comparison).groups}
    reference = groups.get("full precision")
    rows = []
    for variant in (v for v in VARIANTS if v in groups and reference):
        row: dict[str, Any] = {"variant": variant}
        for choice in choices:
            own, base = (g.runs[0].energy(*choice).per_sample_j for g in (groups[variant], reference))
            row[f"{choice} [%]"] = round(100 * own / base, 2)
        spent, base = (g.mean("clock/wall_s").mean for g in (groups[variant], reference))
        row["measured time of the simulation [x]"] = round(spent / base, 2)
        rows.append(row)
    return pandas.DataFrame(rows)


def memory_table(comparison: Comparison) -> pandas.DataFrame:
    """What a training remembers: measured for the simulation, which keeps every value in 32 bits, and in the method's own formats.

    The latter for the weights that are Boolean in BOLD: bits a weight of weight, latent weight and optimiser; and bytes of the
    activations kept for the backward pass, a sample.
    """
    import pandas

    from tracking.energy_model.plan import UPDATES
    from tracking.energy_model.product import bits

    rows = []
    for g in named(comparison).groups:
        estimate = g.runs[0].energy()
        layer = _inner(estimate)[0]
        inner = estimate.plan.of(layer.name)
        latent = bits(inner.latent) if inner.latent else 0
        kept = UPDATES[inner.update].moments * bits(inner.state) if layer.weight_gradient else 0
        rows.append({"variant": g.label, "weight [bit]": bits(inner.weights), "latent weight [bit]": latent, "optimiser [bit]": kept,
                     "together [bit a weight]": bits(inner.weights) + latent + kept,
                     "kept activations [byte a sample]": round(estimate.saved_activation_bytes / estimate.samples),
                     "state of the simulation, measured [MB]": round(g.mean("memory/state_bytes").mean / 1e6, 3),
                     "deployed, measured [kB]": round(g.mean("memory/model_bytes").mean / 1e3, 1)})
    return pandas.DataFrame(rows)


def energy_claim(name: str, choice: Choice, percent: float, published: str) -> Claim:
    """The paper's sentence that a Boolean training takes below 5 % of the energy of full precision, for the paper's network."""
    return checked(f"Training VGG-Small takes below 5 % of the energy of full precision: {name}, {choice} (modelled)", published,
                   f"{percent:.2f} % (modelled, batch 100)", percent < 5, "energy model at the paper's network size; nothing is trained")
