"""Studies at the paper's scale, as runs in the order of what they tell: for a machine that has hours, or some of them.

The notebooks declare the same runs at their ``full`` profile. Here they can be had without what draws and writes reports, a seed at a
time, as many as there is time for (``make gpu``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Runs = list[dict[str, Any]]


def _askewsgd() -> Runs:
    from workbench.studies.askewsgd import w1a32

    return w1a32("cifar10/vgg_small", 100, {}, paper_rates=True)


def _bold() -> Runs:
    from workbench.studies.bold import image_runs

    return image_runs("cifar10/vgg_small", epochs=300, task_params={}, batch_size=300, paper_rates=True)


def _dgl() -> Runs:
    """On CIFAR-10 with the four-layer network of the official code, 50 epochs."""
    from workbench.studies import dgl

    s = dgl.Scale("cifar10/dgl_cnn4", {}, epochs=50, batch_size=128, full=True)
    end_to_end, at_once, in_turn = dgl.learning(s)
    return [end_to_end, dgl.quantised(s, (256,), 16)[-1], at_once, *dgl.slowdowns(s, (1.2, 1.0)), *dgl.buffer_sizes(s, (1,)),
            *dgl.slowdowns(s, (2.0, 1.5)), *dgl.buffer_sizes(s, (50, 2, 5, 30)), *dgl.quantised(s, (64, 16), 16)[1:],
            in_turn, *dgl.slowdowns(s, (1.1, 1.35))]


def _favas() -> Runs:
    from workbench.studies import favas

    federation = favas.Federation("mnist/perceptron", {})
    rate = favas.converted_rate("mnist/perceptron")
    return [run for scenario in reversed(favas.SCENARIOS) for run in federation.common(scenario, rate, favas.MAIN)]


def _igt() -> Runs:
    from workbench.studies import igt

    there = igt.at_hand(("cora", "citeseer", "pubmed", "wikics", "amazon_photo"))
    return [run for bench in igt.benches("full", there) for run in bench.runs()]


def _reallm() -> Runs:
    """Without training first."""
    from workbench.studies import reallm

    quick = reallm.FULL.pareto((3, 2, 4), reallm.SOME)
    return quick + [run for run in reallm.FULL.pareto((3, 2, 4)) if run not in quick] + reallm.FULL.tuned(2)


RUNS: dict[str, Callable[[], Runs]] = {
    "askewsgd": _askewsgd, "bold": _bold, "dgl": _dgl, "favas": _favas, "igt": _igt, "reallm": _reallm,
}
"""Runs of a study by its id, the most telling first."""
