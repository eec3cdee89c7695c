"""From a trained Boolean network to its packed form: one bit a weight, words between Boolean layers, integer
thresholds.

The network's graph is read by ``torch.fx``. Whatever is not Boolean runs as it did, on values unpacked for it, so that
it computes the very same floats; votes are integers and thresholds are decided for every one of them
(:mod:`workbench.boolean.packed.fold`). The logits are those of the float network, bit for bit, with two exceptions. A
Boolean layer on real inputs adds them up in another order. And a float convolution may itself miss an integer, where
its library goes through a transform (Winograd's, which cuDNN may choose): the packed votes are then the right ones.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from tracking.errors import UserError
from workbench.boolean.activation import Fork, Threshold
from workbench.boolean.layers import BooleanConv2d, BooleanLayer, BooleanLinear
from workbench.boolean.packed import backends
from workbench.boolean.packed.backends import Backend
from workbench.boolean.packed.conv import PackedConv2d
from workbench.boolean.packed.fold import fold, foldable
from workbench.boolean.packed.layers import PackedLayer, PackedLinear
from workbench.boolean.packed.passing import BitMaxPool2d, PackedThreshold, ToBits, ToReal, ToSigns

PASSED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, Fork)
"""Modules that in inference hand on what they get."""


@dataclass
class Value:
    """What a node of the old graph has become: ``real``, ``signs`` (real, and +-1), ``bits`` (words) or ``sums``
    (int32).

    ``channels`` counts the values of a row of words; ``flat`` is the map that was flattened; ``largest`` bounds a sum,
    and ``layer`` and ``origin`` (in the old graph) are where it comes from; ``before`` and ``tau`` say what signs are
    the threshold of. ``made`` keeps conversions.
    """

    kind: str
    node: fx.Node
    maps: bool = False
    channels: int = 0
    flat: fx.Node | None = None
    largest: int = 0
    layer: PackedLayer | None = None
    origin: fx.Node | None = None
    before: fx.Node | None = None
    tau: float = 0.0
    made: dict[str, fx.Node] = field(default_factory=dict)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, (BooleanLayer, Threshold, Fork)) or super().is_leaf_module(m, name)


def export(model: nn.Module, *, backend: Backend = "auto") -> fx.GraphModule:
    """The packed form of ``model``, for inference; ``model`` itself stays as it is.

    Args:
        model: trained; any module whose forward ``torch.fx`` can read, with Boolean layers, thresholds, batch norms,
            pools and residual sums between them, and full-precision parts where they like. (``torch.fx`` reads
            ``a += b`` as ``a = a + b``: other names of the same tensor keep what they had.)
        backend: of every packed product (:mod:`workbench.boolean.packed.backends`).

    Takes and returns what ``model.eval()`` does. Its state dict holds words and thresholds; ``torch.save`` of it loads
    into the export of a network of the same shape. Thresholds are decided on the device of ``model``. Raises
    :class:`tracking.errors.UserError` for weights other than +-1 (it names the layer), a model without Boolean layers,
    or one that cannot be read.
    """
    backends.check(backend)
    if not any(isinstance(m, BooleanLayer) for m in model.modules()):
        raise UserError("This model has no BooleanLinear or BooleanConv2d: there is nothing to pack.")
    model = copy.deepcopy(model).eval()
    if isinstance(model, (BooleanLayer, Threshold)):
        model = nn.Sequential(model)
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise UserError(
            f"The forward of {type(model).__name__} cannot be read: {error} Export takes models whose steps do not "
            "depend on the values that pass through; an nn.Sequential always works."
        ) from error
    return _Export(model, graph, backend).run()


def weight_bytes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each packed layer: bytes of its packed weight, and of the same weight in float32."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, PackedLayer):
            fan_in = m.fan_in if isinstance(m, PackedConv2d) else m.inputs
            found[name] = m.weight.numel() * m.weight.element_size(), 4 * fan_in * m.outputs
    return found


class _Export:
    """Walks through the old graph once and writes the new one."""

    def __init__(self, model: nn.Module, graph: fx.Graph, backend: Backend) -> None:
        self.model, self.old, self.new, self.backend = model, graph, fx.Graph(), backend
        self.modules = dict(model.named_modules())
        self.values: dict[fx.Node, Value] = {}
        self.added, self.replaced = 0, set()
        weight = next(m.weight for m in self.modules.values() if isinstance(m, BooleanLayer))
        self.dtype, self.device = weight.dtype, weight.device
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"This model computes in {self.dtype}, which does not count votes exactly. Export model.float()."
            )

    def run(self) -> fx.GraphModule:
        for node in self.old.nodes:
            if node.op == "call_module" and not node.args and len(node.kwargs) == 1:  # an argument given by name
                node.args, node.kwargs = tuple(node.kwargs.values()), {}
            if node.op == "output":
                self.new.output(fx.node.map_arg(node.args[0], self.real))
            else:
                self.values[node] = self._step(node)
        made = fx.GraphModule(self.model, self.new, "PackedNetwork")
        made.graph.eliminate_dead_code()  # float steps that thresholds have taken in
        made.delete_all_unused_submodules()
        made.graph.lint()
        made.recompile()
        return made.eval()

    # --- the representations of a value ---------------------------------------------------------------------

    def _insert(self, what: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        while hasattr(self.model, name := f"{what}_{self.added}"):
            self.added += 1
        self.model.add_module(name, module)
        return self.new.call_module(name, args)

    def real(self, old: fx.Node) -> fx.Node:
        """As the old network has it."""
        v = self.values[old]
        if v.kind in ("real", "signs"):
            return v.node
        if "real" not in v.made:
            if v.flat is not None:
                v.made["real"] = self.new.call_function(torch.flatten, (self.real(v.flat), 1))
            elif v.kind == "sums":
                v.made["real"] = self._insert("real", ToReal(v.maps, self.dtype), v.node)
            else:
                v.made["real"] = self._insert("signs", ToSigns(v.channels, v.maps, self.dtype), v.node)
        return v.made["real"]

    def bits(self, old: fx.Node, maps: bool) -> fx.Node:
        """Words of signs or bits, in the order asked for."""
        v = self.values[old]
        if v.kind == "bits" and v.maps == maps:
            return v.node
        key = f"bits {maps}"
        if key not in v.made:
            source, tau = (v.before, v.tau) if v.before is not None else (self.real(old), 0.0)
            v.made[key] = self._insert("bits", ToBits(maps, tau, self.backend), source)
        return v.made[key]

    # --- one node of the old graph --------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> Value:
        source = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op == "call_module" and source is not None:
            m = self.modules[node.target]
            if isinstance(m, PASSED):
                return source
            if isinstance(m, BooleanLayer):
                return self._layer(node, m, source)
            if isinstance(m, Threshold):
                return self._threshold(node, m)
            if isinstance(m, nn.MaxPool2d) and not m.return_indices and source.kind == "signs":
                return Value("signs", self.new.node_copy(node, self.real))
            if isinstance(m, nn.MaxPool2d) and not m.return_indices and source.kind == "bits" and source.maps:
                return Value("bits", self._insert("pool", BitMaxPool2d(m), source.node), True, source.channels)
            if isinstance(m, nn.Flatten) and (m.start_dim, m.end_dim) == (1, -1) and source.kind in ("bits", "signs"):
                return self._flatten(node, source)
        if node.op == "call_function" and node.target is operator.getitem and self._is_fork(node.args[0]):
            return source
        if source is not None and source.kind in ("bits", "signs") and _flattens(node):
            return self._flatten(node, source)
        if node.op == "call_function" and node.target in (operator.add, torch.add) and not node.kwargs:
            made = self._sum(node)
            if made is not None:
                return made
        return Value("real", self.new.node_copy(node, self.real))

    def _is_fork(self, node: object) -> bool:
        return isinstance(node, fx.Node) and node.op == "call_module" and isinstance(self.modules[node.target], Fork)

    def _layer(self, node: fx.Node, m: BooleanLayer, source: Value) -> Value:
        real = source.kind in ("real", "sums")
        maps, old = isinstance(m, BooleanConv2d), node.args[0]
        options = {"real": real, "backend": self.backend}
        if maps:
            made, x = PackedConv2d.of(m, node.target, **options), self.real(old) if real else self.bits(old, True)
        elif source.kind == "bits" and source.flat is not None:
            made, x = (
                PackedLinear.of(m, node.target, pixels=m.weight.shape[1] // source.channels, **options),
                source.node,
            )
        else:
            assert isinstance(m, BooleanLinear)
            made, x = PackedLinear.of(m, node.target, **options), self.real(old) if real else self.bits(old, False)
        if node.target in self.replaced:  # a layer that runs twice may have two thresholds
            out = self._insert("layer", made, x)
        else:
            self.replaced.add(node.target)
            self.model.set_submodule(node.target, made)
            out = self.new.call_module(node.target, (x,))
        if real:
            return Value("real", out)
        return Value("sums", out, maps, made.outputs, largest=m.fan_in + (m.bias is not None), layer=made, origin=node)

    def _flatten(self, node: fx.Node, source: Value) -> Value:
        if source.kind == "signs":
            return Value("signs", self.new.node_copy(node, self.real))
        if not source.maps:
            return source
        words = self.new.call_function(torch.flatten, (source.node, 1))
        return Value("bits", words, False, source.channels, flat=node.args[0])

    def _sum(self, node: fx.Node) -> Value | None:
        """The sum of two branches of votes stays an integer."""
        terms = [self.values.get(a) if isinstance(a, fx.Node) else None for a in node.args]
        if len(terms) != 2 or any(t is None or t.kind != "sums" for t in terms):
            return None
        a, b = terms
        if (a.maps, a.channels) != (b.maps, b.channels):
            return None
        return Value(
            "sums",
            self.new.call_function(operator.add, (a.node, b.node)),
            a.maps,
            a.channels,
            largest=a.largest + b.largest,
        )

    def _threshold(self, node: fx.Node, m: Threshold) -> Value:
        chain, at = [m], node.args[0]
        while self.values[at].kind == "real" and at.op == "call_module" and foldable(self.modules[at.target]):
            chain.insert(0, self.modules[at.target])
            at = at.args[0]
        v = self.values[at]
        found = fold(chain, v.largest, v.channels, v.maps, self.dtype, self.device) if v.kind == "sums" else None
        if found is None:
            # bits are taken from before the threshold, unless it is one of another kind
            before = self.real(node.args[0]) if type(m) is Threshold else None
            return Value("signs", self.new.node_copy(node, self.real), before=before, tau=m.tau)
        if v.layer is not None and v.layer.fuses and _only_path(v.origin, node):
            v.layer.fuse(found.bound, found.flip, found.matrix)
            out = v.node
        else:
            out = self._insert("threshold", PackedThreshold(found.bound, found.flip, found.matrix), v.node)
        pools = [p for p in chain if isinstance(p, nn.MaxPool2d)]
        for pool, falls in zip(pools, found.falls, strict=True):
            out = self._insert("pool", BitMaxPool2d(pool, falls), out)
        return Value("bits", out, v.maps, v.channels)


def _only_path(begin: fx.Node, end: fx.Node) -> bool:
    """Whether all that ``begin`` gives goes straight to ``end``."""
    while begin is not end and len(begin.users) == 1:
        begin = next(iter(begin.users))
    return begin is end


def _flattens(node: fx.Node) -> bool:
    """Whether a call flattens all but the batch."""
    wanted = (node.op == "call_function" and node.target is torch.flatten) or (
        node.op == "call_method" and node.target == "flatten"
    )
    return wanted and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1))
