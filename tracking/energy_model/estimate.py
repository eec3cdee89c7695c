"""Modelled energy of one batch: a network, a precision plan, a hardware and a scenario, and nothing measured.

The figure is a sum over layers and passes of arithmetic and data movement. It leaves out instruction delivery, clocks, networks on the
chip and, unless the scenario has it, static power, so it lies below what a meter reads; use it for ratios on one hardware.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tracking.energy_model.hardware import Hardware
from tracking.energy_model.hardware import hardware as find_hardware
from tracking.energy_model.layers import Layer
from tracking.energy_model.passes import CostOf, Work, as_row, weighted_ends, work
from tracking.energy_model.plan import PrecisionPlan
from tracking.energy_model.plan import named as named_plan
from tracking.energy_model.product import Cost, bits
from tracking.energy_model.roofline import seconds
from tracking.energy_model.scenario import SCENARIOS, Scenario
from tracking.energy_model.scenario import named as named_scenario
from tracking.energy_model.search import product_cost, reprice
from tracking.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas
    from torch import nn


class Interval(NamedTuple):
    """Where an energy lies when the constants lie anywhere in their bounds: quantiles of ``n`` draws, in the estimate's unit."""

    low: float
    high: float
    level: float
    n: int


@dataclass(frozen=True, repr=False)
class Estimate:
    """Modelled energy of one batch: of a training step, or of a forward pass.

    ``unit`` is ``"J"``, or ``"MAC"`` for hardware whose constants are multiples of one multiply-accumulate.
    """

    hardware: Hardware
    scenario: Scenario
    plan: PrecisionPlan
    training: bool
    layers: tuple[Layer, ...]
    works: tuple[Work, ...]

    @property
    def unit(self) -> str:
        return "J" if self.hardware.unit == "pJ" else "MAC"

    @property
    def samples(self) -> int:
        """Samples of the batch."""
        return self.layers[0].samples

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates of the batch."""
        return sum(w.macs for w in self.works)

    @cached_property
    def _energies(self) -> list[dict[str, float]]:
        found = [w.energy(self.hardware, lambda cost, _: cost) for w in self.works]  # costs were found on this hardware
        return [e | self._static(w, self.hardware) for w, e in zip(self.works, found, strict=True)]

    def _static(self, item: Work, hardware: Hardware) -> dict[str, float]:
        watts = self.scenario.static_power_w
        return {"static": watts * seconds(item, hardware)} if watts else {}

    @property
    def total(self) -> float:
        """Energy of the batch, in :attr:`unit`."""
        return math.fsum(value for row in self._energies for value in row.values())

    @property
    def total_j(self) -> float:
        """Joules of the batch. Raises :class:`UserError` on relative hardware."""
        if self.unit != "J":
            raise UserError(f"{self.hardware.id} counts in multiples of one multiply-accumulate, not in joules. Use .total, and compare "
                            "plans on this hardware only.")
        return self.total

    @property
    def per_sample_j(self) -> float:
        """Joules per sample of the batch."""
        return self.total_j / self.samples

    @property
    def saved_activation_bytes(self) -> float:
        """Bytes of activations kept from the forward to the backward pass, at the plan's formats."""
        if not self.training:
            return 0.0
        ends = weighted_ends(self.layers)
        return sum(layer.saved * bits(self.plan.of(layer.name, layer.kind, ends=ends).activations) for layer in self.layers) / 8

    def moved_bytes(self) -> dict[str, float]:
        """Bytes moved between each memory level and the next one inwards."""
        found: dict[str, float] = {}
        for item in self.works:
            for level, moved in item.moved_bits(self.hardware).items():
                found[level] = found.get(level, 0.0) + moved / 8
        return found

    def table(self) -> pandas.DataFrame:
        """A row for each layer, pass and level, with ``energy_j`` (``energy_mac`` on relative hardware); ``attrs`` name the assumptions."""
        import pandas

        rows = [as_row(item) | {"level": level, f"energy_{self.unit.lower()}": value}
                for item, energies in zip(self.works, self._energies, strict=True) for level, value in energies.items()]
        frame = pandas.DataFrame(rows)
        frame.attrs |= {"hardware": self.hardware.id, "scenario": self.scenario.name, "plan": self.plan.name, "unit": self.unit,
                        "samples": self.samples, "kind": "modelled"}
        return frame

    def draws(self, n: int = 200, seed: int = 0) -> np.ndarray:
        """Totals under ``n`` draws of the hardware's constants, schedules unchanged. One seed means the same draws for every estimate."""
        if not (type(n) is int and 1 <= n <= 100_000):
            raise UserError(f"n = {n!r} is refused. Allowed: whole number, 1 <= x <= 100000.")
        rng = np.random.default_rng(seed)
        return np.array([self._total_at(self.hardware.sample(rng)) for _ in range(n)])

    def _total_at(self, hardware: Hardware) -> float:
        known: dict[int, Cost] = {}  # layers of one shape share a cost

        def repriced(cost: Cost, hardware: Hardware) -> Cost:
            if id(cost) not in known:
                known[id(cost)] = reprice(cost, hardware)
            return known[id(cost)]

        return math.fsum(value for w in self.works for value in (w.energy(hardware, repriced) | self._static(w, hardware)).values())

    def interval(self, n: int = 200, seed: int = 0, level: float = 0.9) -> Interval:
        """Central interval of the total over :meth:`draws`. It covers the constants' bounds, not what the model leaves out."""
        if not 0 < level < 1:
            raise UserError(f"level = {level!r} is refused. Allowed: 0 < x < 1.")
        low, high = np.quantile(self.draws(n, seed), [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(low), float(high), level, n)

    def __repr__(self) -> str:
        what = "training step" if self.training else "forward pass"
        return (f"Estimate(modelled {self.total:.4g} {self.unit} for a {what} of {self.samples} samples, plan={self.plan.name!r}, "
                f"hardware={self.hardware.id!r}, scenario={self.scenario.name!r})")


def estimate(model: nn.Module, input: Any, plan: PrecisionPlan | str, hardware: Hardware | str, scenario: Scenario | str = "as_trained",
             training: bool | None = None) -> Estimate:
    """Trace ``model`` on ``input`` (:func:`tracking.energy_model.trace.trace`) and estimate its energy.

    Args:
        plan: a plan (made by the functions of :mod:`tracking.energy_model.plan`), or a name of its ``PLANS``.
        hardware: hardware, an id, or a path of a hardware file.
        scenario: a scenario, or a name of ``SCENARIOS``.
        training: whether gradients and update are computed; ``None``: as the plan says.
    """
    from tracking.energy_model.trace import trace

    return estimate_layers(trace(model, input), plan, hardware, scenario, training)


def estimate_layers(layers: Sequence[Layer], plan: PrecisionPlan | str, hardware: Hardware | str, scenario: Scenario | str = "as_trained",
                    training: bool | None = None, *, cost_of: CostOf = product_cost) -> Estimate:
    """As :func:`estimate`, from a trace; needs no torch. ``cost_of`` finds the schedule of a product."""
    plan = named_plan(plan) if isinstance(plan, str) else plan
    hardware = hardware if isinstance(hardware, Hardware) else find_hardware(hardware)
    scenario = named_scenario(scenario)
    if not layers:
        raise UserError("The trace has no layers: nothing to estimate.")
    if training and not plan.training:
        raise UserError(f"Plan {plan.name!r} is for inference only. Estimate with training=False, or give a plan for training.")
    training = plan.training if training is None else training
    return Estimate(hardware, scenario, plan, training, tuple(layers), tuple(work(layers, plan, hardware, scenario, training, cost_of)))


def compare(layers: Sequence[Layer] | Mapping[str, Sequence[Layer]], plans: Mapping[str, PrecisionPlan | str], hardware: Hardware | str,
            scenarios: Sequence[Scenario | str] = tuple(SCENARIOS), *, reference: str | None = None, n: int = 0, seed: int = 0,
            level: float = 0.9) -> pandas.DataFrame:
    """Plans as shares of a reference on one hardware and in the same scenario, with the band over scenarios.

    Args:
        layers: a trace for all plans, or one for each name in ``plans`` (a network without norms, say).
        plans: plans by the name that they have in the table.
        reference: name of the plan that is 100 %; the first where ``None``.
        n: draws of the constants, the same for plan and reference; with them the band covers the constants too (quantiles at ``level``).

    Returns a frame with a row for each plan: ``percent_<scenario>``, ``percent_low``, ``percent_high`` and ``percent`` (first scenario).
    """
    import pandas

    reference = next(iter(plans), "") if reference is None else reference
    if reference not in plans:
        raise unknown("reference plan", reference, plans)
    traces = layers if isinstance(layers, Mapping) else dict.fromkeys(plans, layers)
    if missing := [name for name in plans if name not in traces]:
        raise UserError(f"No trace for {', '.join(missing)}. Give one for each plan, or one for all.")
    chosen = [named_scenario(s) for s in scenarios]
    rows: dict[str, dict[str, float]] = {name: {} for name in plans}
    for s in chosen:
        found = {name: estimate_layers(traces[name], p, hardware, s) for name, p in plans.items()}
        base, base_draws = found[reference].total, found[reference].draws(n, seed) if n else None
        for name, e in found.items():
            row, percent = rows[name], 100 * (e.total / base)
            row[f"percent_{s.name}"] = percent
            band = [percent] if base_draws is None else [percent, *np.quantile(
                100 * (e.draws(n, seed) / base_draws), [(1 - level) / 2, (1 + level) / 2])]
            row["percent_low"] = min(row.get("percent_low", math.inf), *band)
            row["percent_high"] = max(row.get("percent_high", 0.0), *band)
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    frame.insert(0, "percent", frame[f"percent_{chosen[0].name}"])
    frame.attrs |= {"hardware": found[reference].hardware.id, "reference": reference, "scenarios": [s.name for s in chosen], "draws": n,
                    "kind": "modelled"}
    return frame.rename_axis("plan")
