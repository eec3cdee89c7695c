"""From layers to work: the products, the data movement and the element-wise operations of every pass of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.energy_model.hardware import Hardware
from tracking.energy_model.layers import Layer, ProductPass
from tracking.energy_model.plan import UPDATES, Precision, PrecisionPlan
from tracking.energy_model.prices import is_float, op_pj
from tracking.energy_model.product import Cost, Product, bits
from tracking.energy_model.scenario import Scenario

PASSES = ("forward", "input_gradient", "weight_gradient", "update", "elementwise")
CostOf = Callable[..., Cost]
NORM_FORWARD = 0.4  # two of the five unfused passes of a norm


@dataclass(frozen=True)
class Work:
    """What one pass of one layer does: a product, streams of bits from and to the outermost memory, element-wise operations."""

    layer: Layer
    which: str
    """One of :data:`PASSES`."""
    cost: Cost | None = None
    macs: int = 0
    """Useful multiply-accumulates."""
    kept: tuple[str, ...] = ()
    """Operands that stay on the chip and so never reach the outermost memory."""
    read_bits: float = 0.0
    written_bits: float = 0.0
    ops: tuple[tuple[str, str, int], ...] = ()
    """(operation, format, number)."""

    def energy(self, hardware: Hardware, reprice: Callable[[Cost, Hardware], Cost]) -> dict[str, float]:
        """Energy by level, ``compute`` first, in joules (or multiples of the reference MAC)."""
        outermost, unit = hardware.levels[0], hardware.joules
        found = {"compute": sum(number * op_pj(op, format, hardware) for op, format, number in self.ops) * unit}
        if self.cost is not None:
            cost = reprice(self.cost, hardware)
            found["compute"] += cost.compute_j * self.macs / self.cost.product.macs
            for (level, operand), energy in cost.memory_j.items():
                found[level] = found.get(level, 0.0) + (0.0 if self._stays(level, operand, hardware) else energy)
        if self.read_bits or self.written_bits:
            streams = (self.read_bits * outermost.read.value + self.written_bits * outermost.write.value) * unit
            found[outermost.name] = found.get(outermost.name, 0.0) + streams
        return found

    def moved_bits(self, hardware: Hardware) -> dict[str, float]:
        """Bits moved between each level and the next one inwards, in both directions."""
        outermost = hardware.levels[0].name
        found = {outermost: self.read_bits + self.written_bits}
        for (level, operand), (inwards, outwards) in (self.cost.traffic_bits if self.cost else {}).items():
            if not self._stays(level, operand, hardware):
                found[level] = found.get(level, 0.0) + inwards + outwards
        return found

    def _stays(self, level: str, operand: str, hardware: Hardware) -> bool:
        return operand in self.kept and level in {x.name for x in hardware.stages[0].values()}


def work(layers: Sequence[Layer], plan: PrecisionPlan, hardware: Hardware, scenario: Scenario, training: bool,
         cost_of: CostOf) -> Iterator[Work]:
    """All work of a batch, in the order of the layers; ``cost_of`` finds the schedule of a product."""
    ends = weighted_ends(layers)
    capacity = max((x.capacity_bits or 0 for x in hardware.stages[1].values()), default=0) if scenario.locality else 0

    def cost(product: Product) -> Cost:
        return cost_of(product, hardware, double_buffering=scenario.double_buffering)

    for layer in layers:
        precision = scenario.applied(plan.of(layer.name, layer.kind, ends=ends))
        passes = layer.passes if training else layer.passes[:1]
        for which in passes:
            yield _product(layer, which, precision, scenario, capacity, cost)
        small = _elementwise(layer, precision, scenario, training, capacity)
        if small is not None:
            yield small
        if training and scenario.count_update and layer.parameters and precision.update != "none":
            yield _update(layer, precision)


def weighted_ends(layers: Sequence[Layer]) -> set[str]:
    """Names of the first and the last layer with weights."""
    weighted = [layer.name for layer in layers if layer.is_product and layer.kind != "matmul"]
    return {weighted[0], weighted[-1]} if weighted else set()


def _product(layer: Layer, which: ProductPass, p: Precision, scenario: Scenario, capacity: int, cost: Callable[[Product], Cost]) -> Work:
    shape = layer.geometry(which)
    formats = {"input": p.activations, "other": p.activations, "weight": p.weights, "signal": p.signals}
    a, b = (formats[role] for role in shape.roles)
    forward = which == "forward"
    out = p.outputs if forward else p.weight_gradients if which == "weight_gradient" and layer.kind != "matmul" else p.signals
    product = Product(shape.m, shape.n, shape.k, a, b, p.accumulators if forward else p.backward_accumulators, out, window=shape.window,
                      count=shape.count, multiplied_as=scenario.multiplied_as(which, a, b))
    # what was kept for the backward pass has left the chip by then; weights and their gradients belong to no pair of layers
    sizes = {"signal": math.prod(layer.output) * bits(p.signals)}
    if forward:
        sizes |= {"input": math.prod(layer.input) * bits(a), "other": math.prod(layer.weight) * bits(b)}
    results = {"forward": math.prod(layer.output) * bits(out), "input_gradient": math.prod(layer.input) * bits(out)}
    kept = [x for x, role in zip("ab", shape.roles, strict=True) if sizes.get(role, math.inf) <= capacity]
    kept += ["o"] * (results.get(which, math.inf) <= capacity)
    return Work(layer, which, cost(product), shape.macs, tuple(kept))


def _elementwise(layer: Layer, p: Precision, scenario: Scenario, training: bool, capacity: int) -> Work | None:
    """Norms, activations, pooling, softmax, embeddings, sums of branches, and small operations inside the module of a product."""
    backward = training and (layer.input_gradient or layer.weight_gradient or layer.parameters > 0)
    elements = max(math.prod(layer.input), math.prod(layer.output))
    scales = math.prod(layer.output) if p.scaled and layer.is_product and layer.kind != "matmul" else 0
    # the derivative of a norm takes eight operations a value, that of anything else as many as the thing itself
    times = 1 + (2 if layer.kind == "norm" else 1) * backward
    operation = "mul" if is_float(p.outputs) else "add"
    ops = [("logic", p.outputs, layer.logic_ops * times), (operation, p.outputs, layer.float_ops * times), ("mul", "fp32", scales * times)]
    read, written = _streams(layer, p, scenario, training, backward)
    if elements * bits(p.outputs) <= capacity and layer.kind != "embedding":
        read = written = 0.0
    ops = tuple(op for op in ops if op[2])
    return Work(layer, "elementwise", read_bits=read, written_bits=written, ops=ops) if ops or read or written else None


def _streams(layer: Layer, p: Precision, scenario: Scenario, training: bool, backward: bool) -> tuple[float, float]:
    """Bits that element-wise work reads from and writes to the outermost memory."""
    inputs, outputs = math.prod(layer.input), math.prod(layer.output)
    if layer.is_product:
        return 0.0, 0.0
    if layer.kind == "norm":
        half = scenario.norm_passes * (1 if training else NORM_FORWARD) * outputs * bits(p.outputs) / 2
        return half, half
    if layer.kind == "embedding":  # rows of the table, and of its gradient
        moved = outputs * (bits(p.weights) + backward * bits(p.signals))
        return moved, outputs * (bits(p.activations) + backward * bits(p.weight_gradients))
    if scenario.activation_fused:  # the result is passed on where it arises; a second branch is fetched
        return (layer.operands - 1) * outputs * bits(p.outputs), 0.0
    read, written = layer.operands * inputs * bits(p.outputs), outputs * bits(p.outputs)
    signal = bits(p.signals) * backward
    return read + outputs * signal, written + layer.operands * inputs * signal


def _update(layer: Layer, p: Precision) -> Work:
    read, written = p.update_bits()
    rule, n = UPDATES[p.update], layer.parameters
    format = p.master if is_float(p.master) else p.state
    ops: list[tuple[str, str, int]] = [("add", format, (rule.adds + p.projection_ops) * n), ("mul", format, rule.muls * n)]
    return Work(layer, "update", read_bits=read * n, written_bits=written * n, ops=tuple(op for op in ops if op[2]))


def as_row(item: Work) -> dict[str, Any]:
    """The columns that name a piece of work in tables."""
    return {"layer": item.layer.name, "kind": item.layer.kind, "pass": item.which}
