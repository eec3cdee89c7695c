"""Which number formats a training method gives each operand, and what its weight update reads and writes."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tracking.energy_model.product import bits
from tracking.errors import UserError, did_you_mean, unknown


@dataclass(frozen=True)
class UpdateRule:
    """An optimiser as memory sees it: values remembered for each weight, and element-wise operations for each weight and step."""

    moments: int
    adds: int
    muls: int


UPDATES: dict[str, UpdateRule] = {
    "none": UpdateRule(0, 0, 0),
    "sgd": UpdateRule(0, adds=1, muls=1),
    "momentum": UpdateRule(1, adds=2, muls=2),
    # two averages (3 multiplications for the square's), two bias corrections, root, division, step
    "adam": UpdateRule(2, adds=4, muls=10),
    # accumulate the signal, compare with the threshold (Nguyen et al., BOLD, NeurIPS 2024, Eqs. 9-11)
    "boolean": UpdateRule(1, adds=2, muls=0),
}
_FORMATS = ("weights", "activations", "outputs", "accumulators", "signals", "backward_accumulators", "weight_gradients", "state")


@dataclass(frozen=True)
class Precision:
    """Number formats of one layer in training: ``fp32 bf16 fp8 int<b> bool`` …

    ``latent`` is the format of the real-valued copy of the weights that the update works on, where there is one: it is read and
    written, and the working copy is written anew.
    """

    weights: str = "fp32"
    activations: str = "fp32"
    """The layer's input, in the forward pass and kept for the backward one."""
    outputs: str = "fp32"
    """What leaves the accumulators, before norm and activation."""
    accumulators: str = "fp32"
    signals: str = "fp32"
    """Gradients to activations, both the one that arrives and the one that is handed on."""
    backward_accumulators: str = "fp32"
    weight_gradients: str = "fp32"
    latent: str | None = None
    update: str = "adam"
    """Rule of :data:`UPDATES`."""
    state: str = "fp32"
    """Format of the rule's moments, or of the Boolean accumulator."""
    projection_ops: int = 0
    """Element-wise operations for each weight of a projection after the update, which needs no further state."""
    scaled: bool = False
    """Whether outputs are multiplied by a scale."""

    def __post_init__(self) -> None:
        for name in _FORMATS:
            bits(getattr(self, name))
        if self.latent is not None:
            bits(self.latent)
        if self.update not in UPDATES:
            raise unknown("update rule", self.update, UPDATES)
        if type(self.projection_ops) is not int or self.projection_ops < 0:
            raise UserError(f"projection_ops = {self.projection_ops!r} is refused. Allowed: whole number, 0 <= x.")
        if type(self.scaled) is not bool:
            raise UserError(f"scaled = {self.scaled!r} is refused. Allowed: true, false.")

    @property
    def master(self) -> str:
        """Format of the weights that the update works on."""
        return self.latent or self.weights

    def update_bits(self) -> tuple[int, int]:
        """Bits read and written for each weight by the update: weight, moments and gradient; and the working copy of a latent weight.

        Adam in fp32: 128 + 96; SGD with momentum: 96 + 64; the Boolean accumulator of 16 bits with a signal of 16: 33 + 17.
        """
        if self.update == "none":
            return 0, 0
        moments = UPDATES[self.update].moments * bits(self.state)
        kept = bits(self.master) + moments
        return kept + bits(self.weight_gradients), kept + (bits(self.weights) if self.latent else 0)


FP32 = Precision()
BF16 = Precision("bf16", "bf16", "bf16", "fp32", "bf16", "fp32", "bf16", latent="fp32")


@dataclass(frozen=True)
class PrecisionPlan:
    """Precisions of a whole network.

    The first override whose pattern (``"layer4.*"``) matches a layer's name holds; else, for the first and the last layer with
    weights, ``ends``; for norms, softmaxes and embeddings ``rest``; for all else ``body``. ``training`` False: a network that is only run.
    """

    name: str
    body: Precision = FP32
    ends: Precision | None = None
    rest: Precision = FP32
    overrides: tuple[tuple[str, Precision], ...] = ()
    training: bool = True

    def of(self, name: str, kind: str = "linear", *, ends: Collection[str] = ()) -> Precision:
        """Precision of a layer; ``ends`` are the names of the first and the last layer with weights."""
        for pattern, precision in self.overrides:
            if fnmatch.fnmatchcase(name, pattern):
                return precision
        if self.ends is not None and name in ends:
            return self.ends
        return self.rest if kind in ("norm", "softmax", "embedding") else self.body

    def with_updates(self, update: str) -> PrecisionPlan:
        """The same plan in which Adam is replaced by another rule."""
        def changed(p: Precision) -> Precision:
            return dataclasses.replace(p, update=update) if p.update == "adam" else p

        return dataclasses.replace(self, body=changed(self.body), ends=self.ends and changed(self.ends), rest=changed(self.rest),
                                   overrides=tuple((pattern, changed(p)) for pattern, p in self.overrides))

    def to_json(self) -> str:
        """The plan as JSON, to be read by :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """Read a plan. Raises :class:`UserError` for an unknown field, format or rule."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UserError(f"The precision plan is not JSON: {error}.") from None
        data = _fields(cls, data, "precision plan")
        overrides = data.get("overrides", [])
        if not isinstance(overrides, list) or not all(isinstance(o, list) and len(o) == 2 and isinstance(o[0], str) for o in overrides):
            raise UserError("overrides are refused. Allowed: a list of pairs of a name pattern and a precision.")
        if "name" not in data:
            raise UserError("The precision plan lacks a name.")
        data |= {name: _precision(data[name], name) for name in ("body", "ends", "rest") if data.get(name) is not None}
        return cls(**data | {"overrides": tuple((pattern, _precision(p, pattern)) for pattern, p in overrides)})


def _precision(data: Any, owner: str) -> Precision:
    return Precision(**_fields(Precision, data, owner))


def _fields(cls: type, data: Any, owner: str) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(cls)]
    if not isinstance(data, Mapping):
        raise UserError(f"{owner}: {data!r} is refused. Allowed: a table with {', '.join(known)}.")
    for name in data:
        if name not in known:
            raise UserError(f"{owner} has no field {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return dict(data)


# --- plans by name ----------------------------------------------------------------------------------------


def fp32() -> PrecisionPlan:
    """Everything in 32-bit floating point."""
    return PrecisionPlan("fp32")


def bf16_mixed() -> PrecisionPlan:
    """Products in bf16 with fp32 sums, fp32 master weights and norms (mixed precision; Micikevicius et al., ICLR 2018, with bf16)."""
    return PrecisionPlan("bf16_mixed", BF16)


def binaryconnect() -> PrecisionPlan:
    """Binary weights with fp32 latent ones, real activations (Courbariaux et al., NeurIPS 2015)."""
    return PrecisionPlan("binaryconnect", Precision(weights="bool", latent="fp32"), ends=FP32)


def binarynet() -> PrecisionPlan:
    """Binary weights and activations, fp32 latent weights and gradients, 16-bit sums (Hubara et al., NeurIPS 2016)."""
    return PrecisionPlan("binarynet", _BINARY, ends=FP32)


def xnor_net() -> PrecisionPlan:
    """As :func:`binarynet`, with outputs scaled (Rastegari et al., ECCV 2016)."""
    return PrecisionPlan("xnor_net", dataclasses.replace(_BINARY, scaled=True), ends=FP32)


_BINARY = Precision(weights="bool", activations="bool", outputs="int16", accumulators="int16", latent="fp32")


def bold(signal_bits: int = 16) -> PrecisionPlan:
    """Boolean weights without latent ones and Boolean activations (Nguyen et al., BOLD, NeurIPS 2024, arXiv:2405.16339).

    The paper does not state the widths of signals and sums; here signals have ``signal_bits`` (1, 8, 16 or 32), sums, gradients and
    accumulators 16 bits.
    """
    if signal_bits not in (1, 8, 16, 32):
        raise UserError(f"signal_bits = {signal_bits!r} is refused. Allowed: 1, 8, 16, 32.")
    body = Precision(weights="bool", activations="bool", outputs="int16", accumulators="int16",
                     signals="bool" if signal_bits == 1 else f"int{signal_bits}", backward_accumulators="int16", weight_gradients="int16",
                     update="boolean", state="int16")
    return PrecisionPlan("bold" if signal_bits == 16 else f"bold_signals{signal_bits}", body, ends=FP32)


def lowbit(weights: str, activations: str = "fp32", signals: str = "fp32", *, latent: str | None = "fp32", ends: Precision | None = FP32,
           name: str = "") -> PrecisionPlan:
    """Few-bit weights (``int2``, ``int4`` …) with a latent copy, scaled; activations and signals in any format.

    Sums are 32-bit integers where both factors are integers, and fp32 elsewhere; weight gradients are fp32.
    """
    integers = [f.startswith("int") or f == "bool" for f in (weights, activations, signals)]
    forward, backward = all(integers[:2]), integers[2] and all(integers[:2])
    body = Precision(weights, activations, outputs="fp32", accumulators="int32" if forward else "fp32", signals=signals,
                     backward_accumulators="int32" if backward else "fp32", latent=latent, scaled=True)
    return PrecisionPlan(name or f"weights_{weights}_activations_{activations}_signals_{signals}", body, ends=ends)


def luq() -> PrecisionPlan:
    """4-bit weights, activations and signals (Chmiel et al., LUQ, ICLR 2023); its powers of two are priced as 4-bit integers."""
    return lowbit("int4", "int4", "int4", name="luq")


def askewsgd(activations: str = "fp32") -> PrecisionPlan:
    """Real weights in every product, then a projection of four operations a weight (Leconte et al., AISTATS 2023).

    Deployed is ``inference("int2" or "bool", activations)``.
    """
    return PrecisionPlan("askewsgd", Precision(activations=activations, projection_ops=4))


def inference(weights: str = "fp32", activations: str = "fp32", *, ends: Precision | None = None) -> PrecisionPlan:
    """A network that is only run, as post-training methods leave it: forward products, no gradients, no update."""
    made = lowbit(weights, activations, latent=None, ends=ends, name=f"inference_{weights}_{activations}")
    return dataclasses.replace(made, body=dataclasses.replace(made.body, update="none"), training=False)


PLANS: dict[str, PrecisionPlan] = {
    p.name: p for p in (fp32(), bf16_mixed(), binaryconnect(), binarynet(), xnor_net(), bold(), bold(8), bold(1), luq(), askewsgd(),
                        inference())}


def named(name: str) -> PrecisionPlan:
    """A plan of :data:`PLANS`; another name raises :class:`UserError`."""
    if name not in PLANS:
        raise unknown("precision plan", name, PLANS)
    return PLANS[name]
