"""The claims of the abstract on measured figures, and tables of ablations and fine-tuning.

Losses are compared in nats a token, the logarithm of perplexity: at two bits perplexities are astronomical, and their means say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.claims import ABSENT, Claim, below, checked, differences, figure, within
from workbench.studies.reallm.settings import DIMENSIONS, METHODS, REFERENCE, Scale, found

if TYPE_CHECKING:
    import pandas

    from workbench.comparison import Comparison

UNREAD = "the abstract's words; the paper's tables could not be read"
SLACK = 0.05
"""Bits a weight by which a peer may exceed ReALLM and still count as of no more bits."""


def best_peer(table: pandas.DataFrame, bits: float, names: tuple[str, ...] | None = None) -> tuple[str, int] | None:
    """Method and width of the least loss among peers of no more total bits a weight than ``bits``."""
    peers = table[(table["method"] != "ReALLM") & (table["method"] != "uncompressed") & (table["total bits"] <= bits + SLACK)]
    peers = peers if names is None else peers[peers["method"].isin(names)]
    if peers.empty:
        return None
    row = peers.loc[peers["loss [nats]"].idxmin()]
    return str(row["method"]), int(row["bits"])


def leading_claims(comparison: Comparison, table: pandas.DataFrame, scale: Scale, bits: int,
                   groups: dict[str, tuple[str, ...]]) -> list[Claim]:
    """Without tuning, ReALLM has a lower loss than the best peer of no more total bits, in each group of peers."""
    own = table[(table["method"] == "ReALLM") & (table["bits"] == bits)]
    ours = found(comparison, scale.run("ReALLM", bits))
    claims = []
    for group, names in groups.items():
        text = f"At {bits} bits and without tuning ReALLM has the lowest loss of {group} with no more total bits ({scale.task})"
        paper = f"best at 3 bits without training ({UNREAD})" if bits == 3 else "not stated"
        peer = best_peer(table, float(own["total bits"].iloc[0]), names) if len(own) else None
        if peer is None:
            claims.append(Claim(text, paper, "", ABSENT, "no finished run of ReALLM, or no peer with so few bits"))
            continue
        claims.append(below(text, paper, ours, found(comparison, scale.run(*peer)), names=("ReALLM", f"{peer[0]} at {peer[1]}"), digits=3))
    return claims


def budget_claim(shaped: Comparison, comparison: Comparison, scale: Scale, budget: float) -> Claim:
    """A shape for each matrix under a budget has a lower loss than the best single shape of no more bits."""
    text = f"A shape for each matrix has a lower loss than one shape for all with no more total bits ({scale.task})"
    paper = f"the shape is adapted to each matrix ({UNREAD})"
    (run,) = scale.budgeted(budget)
    ours, size = found(shaped, run), found(shaped, run, "memory/bits_per_weight")
    single: dict[str, dict[int, float]] = {}
    for bits in DIMENSIONS:
        other = scale.run("ReALLM", bits)
        spent = found(comparison, other, "memory/bits_per_weight")
        if size and spent and _mean(spent) <= _mean(size) + SLACK:
            single[f"{bits} bits in vectors of {scale.dimensions[bits]}"] = found(comparison, other)
    if not single:
        return Claim(text, paper, "", ABSENT, "no finished run with a budget, or no single shape of so few bits")
    best = min(single, key=lambda name: _mean(single[name]))
    return below(text, paper, ours, single[best], names=(f"shapes at {_mean(size):.2f} bits", best), digits=3)


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


def ablation_table(comparison: Comparison, scale: Scale, bits: int) -> pandas.DataFrame:
    """A row a change: total bits, loss, and the difference of loss to ReALLM without an order, seed by seed."""
    import pandas

    base = found(comparison, scale.run("ReALLM", bits, **scale.changes(bits)["no order"]))
    rows = []
    for name, changed in scale.changes(bits).items():
        run = scale.run("ReALLM", bits, **changed)
        loss, size = found(comparison, run), found(comparison, run, "memory/bits_per_weight")
        if loss:
            rows.append({"ReALLM with": name, "total bits": _mean(size), "loss [nats]": _mean(loss),
                         "difference to no order": figure(differences(loss, base), 3)})
    return pandas.DataFrame(rows)


def ablation_claims(comparison: Comparison, scale: Scale, bits: int) -> list[Claim]:
    """What the order and the low-rank part do to the loss; each costs bits, which the text names."""
    changes = scale.changes(bits)
    base = found(comparison, scale.run("ReALLM", bits, **changes["no order"]))
    size = found(comparison, scale.run("ReALLM", bits, **changes["no order"]), "memory/bits_per_weight")
    claims = []
    for name, what in (("always ordered", "Ordering columns lowers the loss"), (f"rank {scale.rank}", "A low-rank part lowers the loss")):
        run = scale.run("ReALLM", bits, **changes[name])
        extra = differences(found(comparison, run, "memory/bits_per_weight"), size)
        price = f", for {_mean(extra):.2f} bits a weight" if extra else ""
        change = differences(found(comparison, run), base)
        claims.append(within(f"{what}{price} ({bits} bits, {scale.task})", "not stated", change, -100.0, 0.0, digits=3))
    return claims


def tuning_table(comparison: Comparison) -> pandas.DataFrame:
    """A row a method: bits, loss after compression with its block-wise tuning, and after end-to-end tuning; means over seeds."""
    import pandas

    names = {method: name for name, method in METHODS.items()} | {REFERENCE: "uncompressed"}
    rows = []
    for g in comparison.groups:
        losses = [frame["eval/loss"].dropna().tolist() for frame in g.frames]
        if all(losses):
            rows.append({"method": names.get(g.method, g.method), "rank": g.facts.get("rank"), "n": len(losses),
                         "code bits": g.mean("memory/code_bits_per_weight").mean,
                         "total bits": g.mean("memory/bits_per_weight").mean,
                         "before [nats]": sum(v[0] for v in losses) / len(losses),
                         "after [nats]": sum(v[-1] for v in losses) / len(losses)})
    return pandas.DataFrame(rows)


def rate_table(comparison: Comparison) -> pandas.DataFrame:
    """A row a pair of learning rates by rising mean loss on validation text, from runs of :meth:`Scale.searched`; a column a method."""
    import pandas

    names, rows = {method: name for name, method in METHODS.items()}, {}
    for g in comparison.groups:
        rows.setdefault((g.facts["block_lr"], g.facts["tune_lr"]), {})[names[g.method]] = g.mean("eval/loss").mean
    table = pandas.DataFrame([{"block by block": block, "end to end": end, **losses, "mean [nats]": _mean(losses)}
                              for (block, end), losses in rows.items()])
    return table.sort_values("mean [nats]", kind="stable").reset_index(drop=True)


def tuning_claims(comparison: Comparison, scale: Scale, bits: int, names: tuple[str, ...]) -> list[Claim]:
    """After tuning at the same rank ReALLM has the lowest loss; and tuning lowers its loss at all."""
    runs = {name: run for name, run in zip(names, scale.tuned(bits, names), strict=True)}
    after = {name: values for name, run in runs.items() if (values := found(comparison, run))}
    peers = {name: values for name, values in after.items() if name != "ReALLM"}
    text = f"At {bits} bits and after tuning ReALLM has the lowest loss of the methods with a low-rank part of its rank ({scale.task})"
    if "ReALLM" not in after or not peers:
        return [Claim(text, UNREAD, "", ABSENT, "no finished run")]
    best = min(peers, key=lambda name: _mean(peers[name]))
    group = next(g for g in comparison.groups if g.method == METHODS["ReALLM"])
    gain = {run.spec["seed"]: float(losses.iloc[-1] - losses.iloc[0])
            for run, frame in zip(group.runs, group.frames, strict=True) for losses in [frame["eval/loss"].dropna()]}
    return [below(text, f"state of the art at 2 bits after fine-tuning ({UNREAD})", after["ReALLM"], peers[best],
                  names=("ReALLM", best), digits=3),
            within(f"End-to-end tuning lowers ReALLM's loss ({bits} bits, {scale.task})", "not stated", gain, -100.0, 0.0, digits=3)]


def shape_claims(shapes: Any, uniform: dict[str, tuple[float, float]]) -> list[Claim]:
    """Matrices get different shapes, and together a smaller error than any one shape of no more bits.

    ``shapes``: of :func:`workbench.studies.reallm.patterns.shapes`; ``uniform``: bits and squared error of single shapes for all.
    """
    single, total = shapes.iloc[:-1], shapes.iloc[-1]
    kinds = single[["shape", "rank", "ordered"]].drop_duplicates()
    fitting = {name: error for name, (bits, error) in uniform.items() if bits <= float(total["bits"]) + 1e-9}
    claims = [checked("Matrices get different shapes under one budget", "the shape is adapted to each matrix", f"{len(kinds)} shapes for "
                      f"{len(single)} matrices", len(kinds) > 1, "count of different shapes chosen by the exact budget solver")]
    text = "Shapes chosen for each matrix have less error than the best single shape of no more bits"
    if not fitting:
        return [*claims, Claim(text, "not stated", "", ABSENT, "no single shape fits the budget")]
    best = min(fitting, key=fitting.__getitem__)
    ours = f"{float(total['squared error']):.4f} against {fitting[best]:.4f} ({best})"
    return [*claims, checked(text, "not stated", ours, float(total["squared error"]) <= fitting[best] * (1 + 1e-6),
                             "mean over matrices of the relative squared error of the weights")]


def size_claim(stored: pandas.DataFrame) -> Claim:
    """Bits counted are the bytes that lie on disk."""
    wrong = stored[stored["sum"] != stored["stored"]]
    return checked("Bits counted term by term are the bits stored, in every format", "not stated",
                   f"{len(stored) - len(wrong)} of {len(stored)} methods", wrong.empty,
                   "sum of terms against the payload that safetensors writes, exactly")
