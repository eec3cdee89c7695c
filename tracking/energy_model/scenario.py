"""What is assumed about hardware and accounting beyond the constants: a modelled figure is worth as much as its named scenario."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from tracking.energy_model.plan import Precision
from tracking.energy_model.prices import is_float
from tracking.energy_model.product import bits
from tracking.errors import UserError, unknown

Exploit = Literal["none", "dX", "both"]


@dataclass(frozen=True)
class Scenario:
    """Accounting choices of an estimate."""

    name: str
    description: str
    exploit_1bit_backward: Exploit = "both"
    """Backward products in which a one-bit factor is multiplied as one: none, that to the input, or both. Where not, it is multiplied in
    the format of the other factor, and two of them as 8-bit integers (our choice). The forward product always exploits it."""
    signals: str | None = None
    """Format instead of the plan's, for layers whose signals are integers or Boolean."""
    accumulators: str | None = None
    """Format of sums instead of the plan's, where those are integers."""
    norm_passes: float = 1.3
    """Times that a norm moves its data through the outermost memory in a training step: 1.3 fused with its neighbours, 5 alone (two of the
    five forward)."""
    activation_fused: bool = True
    """Activations, pooling and softmax while the data is on the chip; else each reads and writes the outermost memory."""
    locality: bool = False
    """Activations and signals that fit the largest memory on the chip stay there between layers."""
    double_buffering: bool = False
    """Half of each memory is filled while the other half is used."""
    count_update: bool = True
    static_power_w: float = 0.0
    """Leakage and idling, times the time of a roofline."""

    def __post_init__(self) -> None:
        if self.exploit_1bit_backward not in ("none", "dX", "both"):
            raise unknown("exploit_1bit_backward", str(self.exploit_1bit_backward), ("none", "dX", "both"))
        for format in (self.signals, self.accumulators):
            if format is not None:
                bits(format)
        for name in ("norm_passes", "static_power_w"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise UserError(f"{name} = {value!r} is refused. Allowed: number, 0 <= x.")

    def applied(self, precision: Precision) -> Precision:
        """The precision of a layer with this scenario's formats."""
        changes = {}
        if self.signals and not is_float(precision.signals):
            changes["signals"] = self.signals
        if self.accumulators:
            integer = [name for name in ("accumulators", "backward_accumulators") if not is_float(getattr(precision, name))]
            changes |= dict.fromkeys(integer, self.accumulators)
        return dataclasses.replace(precision, **changes) if changes else precision

    def multiplied_as(self, which: str, a: str, b: str) -> tuple[str, str] | None:
        """Formats at the multiplier in a pass, where they differ from the stored ones."""
        exploited = {"forward": True, "input_gradient": self.exploit_1bit_backward != "none",
                     "weight_gradient": self.exploit_1bit_backward == "both"}[which]
        if exploited or 1 not in (bits(a), bits(b)):
            return None
        wide = max(a, b, key=bits)
        return ("int8", "int8") if bits(wide) == 1 else (wide, wide)


SCENARIOS: dict[str, Scenario] = {s.name: s for s in (
    Scenario("as_trained", "formats of the method; hardware uses every one-bit factor; norms and activations fused"),
    Scenario("one_bit_dx", "one-bit weights are used in the product to the input; the one to the weights is multiplied in full width",
             exploit_1bit_backward="dX"),
    Scenario("ordinary_hardware", "one-bit factors are used forward only; both backward products are multiplied in full width",
             exploit_1bit_backward="none"),
    Scenario("fully_boolean", "signals of integer and Boolean methods are one bit wide", signals="bool"),
    Scenario("unfused", "norms and activations go through the outermost memory by themselves", norm_passes=5.0, activation_fused=False),
    Scenario("local", "activations and signals that fit the largest memory on the chip stay there", locality=True),
    Scenario("double_buffered", "half of each memory is being filled while the other half is used", double_buffering=True),
    Scenario("without_update", "the weight update is left out", count_update=False),
)}


def named(name: str | Scenario) -> Scenario:
    """A scenario of :data:`SCENARIOS`, or the given one; another name raises :class:`UserError`."""
    if isinstance(name, Scenario):
        return name
    if name not in SCENARIOS:
        raise unknown("scenario", name, SCENARIOS)
    return SCENARIOS[name]
