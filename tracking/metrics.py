"""The vocabulary of everything measured: one declaration a metric, with its unit and its better direction.

A name that is not declared here is an error, so a curve never lacks a unit and two methods never record
the same thing under two names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tracking.errors import unknown


@dataclass(frozen=True)
class Metric:
    """One measured or modelled quantity.

    ``better`` is the direction a person wants (``None``: neither). ``cumulative`` metrics only grow and can serve as
    an x-axis or as a budget. ``volatile`` ones depend on the machine and the moment (time, energy, memory), so
    two identical runs differ in them.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    description: str
    cumulative: bool = False
    volatile: bool = False

    @property
    def label(self) -> str:
        """Axis label with unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def _declare(*metrics: Metric) -> dict[str, Metric]:
    table = {m.name: m for m in metrics}
    assert len(table) == len(metrics), "a metric is declared twice"
    return table


METRICS: dict[str, Metric] = _declare(
    # progress of the algorithm
    Metric("train/loss", "nats", "lower", "mean training loss since the last report"),
    Metric("train/epoch", "epochs", None, "passes over the training set", cumulative=True),
    Metric("train/samples", "samples", None, "training samples processed", cumulative=True),
    Metric("train/lr", "", None, "learning rate in force"),
    Metric("train/epsilon", "", None, "width of the constraint intervals (AskewSGD)"),
    Metric("train/regularisation", "", None, "strength of the pull towards the levels (ProxQuant, AdaSTE, MD-tanh)"),
    Metric("train/infeasible", "fraction", None, "share of quantised weights outside their interval round a level"),
    Metric("train/level_distance", "levels", "lower", "mean distance of a latent weight from its nearest level"),
    Metric("train/candidates", "configurations", None, "configurations tried by a search", cumulative=True),
    Metric("train/gradients", "gradients", None, "gradient steps taken by all clients", cumulative=True),
    Metric("train/server_steps", "steps", None, "updates of the server's model", cumulative=True),
    Metric("train/client_spread", "", "lower",
           "sum over clients of the squared distance of their model to the server's, estimated from those contacted"),
    Metric("train/diverged", "deliveries", "lower", "deliveries left out because they held nan or inf", cumulative=True),
    # quality
    Metric("eval/loss", "nats", "lower", "test loss of the deployed (quantised) model"),
    Metric("eval/accuracy", "fraction", "higher", "test accuracy of the deployed (quantised) model"),
    Metric("eval/accuracy_bn", "fraction", "higher",
           "test accuracy of the deployed model after its batch-norm statistics were re-estimated on training data"),
    Metric("eval/loss_latent", "nats", "lower", "test loss at the latent (unquantised) weights"),
    Metric("eval/accuracy_latent", "fraction", "higher", "test accuracy at the latent (unquantised) weights"),
    Metric("eval/perplexity", "", "lower", "exponential of the mean test loss a token"),
    # communication, billed on encoded payloads
    Metric("comm/up_bytes", "B", "lower", "encoded bytes sent towards the server or the next module", cumulative=True),
    Metric("comm/down_bytes", "B", "lower", "encoded bytes sent from the server or the previous module", cumulative=True),
    Metric("comm/peer_bytes", "B", "lower", "encoded bytes sent between equals", cumulative=True),
    Metric("comm/messages", "messages", "lower", "messages sent", cumulative=True),
    # energy: measured and modelled never share a name
    Metric("energy/gpu_j", "J", "lower", "measured: whole GPU board, NVML counter", cumulative=True, volatile=True),
    Metric("energy/cpu_j", "J", "lower", "measured: CPU packages, RAPL counter", cumulative=True, volatile=True),
    Metric("energy/model_j", "J", "lower", "modelled for a named hardware and scenario", cumulative=True),
    Metric("energy/network_model_j", "J", "lower", "modelled: average allocation of a named medium", cumulative=True),
    # clocks
    Metric("clock/wall_s", "s", "lower", "time spent in the algorithm, evaluation excluded", cumulative=True, volatile=True),
    Metric("clock/virtual_s", "s", "lower", "simulated time", cumulative=True),
    # memory
    Metric("memory/peak_bytes", "B", "lower",
           "highest memory since the run began: CUDA allocator peak, or the process's resident set on CPU", volatile=True),
    Metric("memory/state_bytes", "B", "lower", "what the algorithm remembers between two steps"),
    Metric("memory/model_bytes", "B", "lower", "the deployed model, encoded"),
    Metric("memory/bits_per_weight", "bit", "lower", "encoded bits a weight of the deployed model"),
    # work
    Metric("compute/flops", "FLOP", "lower", "floating-point operations", cumulative=True),
    Metric("compute/bit_ops", "bit op", "lower", "one-bit operations", cumulative=True),
)


def metric(name: str) -> Metric:
    """Look a metric up; an undeclared name raises :class:`tracking.errors.UserError` with the nearest declared one."""
    try:
        return METRICS[name]
    except KeyError:
        raise unknown("metric", name, METRICS) from None


def split_finite(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Check every name and split ``values`` into finite ones and the others (nan, inf)."""
    finite: dict[str, float] = {}
    other: dict[str, float] = {}
    for name, value in values.items():
        metric(name)
        value = float(value)
        (finite if math.isfinite(value) else other)[name] = value
    return finite, other
