"""The dispatch mode that turns tensor operations into layers; :mod:`tracking.energy_model.trace` runs a model under it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tracking.energy_model import _operations as ops
from tracking.energy_model.layers import Kind, Layer
from tracking.errors import UserError


class Facts(NamedTuple):
    """What a tensor depends on."""

    from_input: bool = False
    learns: bool = False
    parameters: frozenset[str] = frozenset()
    """Names of the parameters it is made of, for tensors that do not depend on the input."""


class Call(NamedTuple):
    """A module at work."""

    path: str
    module: nn.Module
    number: int


class Recorder(TorchDispatchMode):
    """Turns the operations that run under it into layers. One use."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.model, self.samples = model, (inputs[0].shape[0] if inputs and inputs[0].dim() else 1)
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        self.facts = WeakIdKeyDictionary()
        for name, p in model.named_parameters():
            self.facts[p] = Facts(False, p.requires_grad, frozenset({name}))
        for t in inputs:
            self.facts[t] = Facts(True, t.requires_grad)
        self.layers: list[Layer] = []
        self.stack = [Call("", model, 0)]
        self.last_of_call: dict[int, int] = {}
        self.calls = 0
        self.claimed: set[str] = set()
        self.names: dict[str, int] = {}
        self.kept: dict[int, Any] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module is at work."""
        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda m, _, path=path: self._enter(path, m)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str, module: nn.Module) -> None:
        self.calls += 1
        self.stack.append(Call(path, module, self.calls))

    def _leave(self) -> None:
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # this mode hands over operations whole that consist of others
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        joined = self._joined(inputs)
        if name == "detach" and torch.is_grad_enabled():
            joined = joined._replace(learns=False)
        if outputs and name not in ops.LAYOUT and not func.is_view:
            self._operation(name, args, inputs, outputs[0])
        written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.alias_info is not None and s.alias_info.is_write]
        for t in [*outputs, *(w for w in written if isinstance(w, Tensor))]:
            facts = Facts() if name in ops.FACTORIES else joined._replace(learns=joined.learns and t.is_floating_point())
            self.facts[t] = facts
            if t._base is not None and t in written:  # written through a view: what it looks at has changed as well
                self.facts[t._base] = self._joined([t._base, t])
        return out

    def _of(self, t: Tensor) -> Facts:
        return self.facts.get(t, Facts())

    def _joined(self, tensors: Sequence[Tensor]) -> Facts:
        found = [self._of(t) for t in tensors]
        from_input = any(f.from_input for f in found)
        names = frozenset() if from_input else frozenset().union(*(f.parameters for f in found))
        return Facts(from_input, any(f.learns for f in found), names)

    # --- layers ---------------------------------------------------------------------------------------------

    def _operation(self, name: str, args: tuple, inputs: list[Tensor], output: Tensor) -> None:
        if name in ops.MATMULS:
            first = ops.MATMULS[name]
            self._matmul(args[first], args[first + 1], inputs)
        elif name in ops.CONVOLUTIONS:
            self._convolution(args, output, inputs)
        elif name.startswith("_scaled_dot_product") and not name.endswith("backward"):
            self._attention(*args[:3])
        elif ops.is_product(name):
            raise UserError(f"The model runs {name!r}, a product that the energy model does not know. Known: "
                            f"{', '.join([*ops.MATMULS, *ops.CONVOLUTIONS])} and scaled dot-product attention.")
        elif name in ops.EMBEDDINGS:
            self._add("embedding", inputs, inputs[1].shape, output.shape, keeps=[], learns=False, weight=tuple(inputs[0].shape),
                      weight_of=inputs[0])
        elif any(self._of(t).from_input for t in inputs) and output.is_floating_point() and max(t.numel() for t in [*inputs, output]) > 1:
            self._elementwise(name, inputs, output)

    def _matmul(self, a: Tensor, b: Tensor, inputs: list[Tensor]) -> None:
        """``a (.., m, k)`` times ``b (.., k, n)``; vectors are matrices with one row or column."""
        left = [1, *a.shape] if a.dim() == 1 else list(a.shape)
        right = [*b.shape, 1] if b.dim() == 1 else list(b.shape)
        first, weight = a, b
        if self._of(b).from_input and not self._of(a).from_input:  # a weight on the left: the transposed product has it on the right
            first, weight, left, right = b, a, [*right[:-2], right[-1], right[-2]], [*left[:-2], left[-1], left[-2]]
        both = self._of(a).from_input and self._of(b).from_input
        shape = tuple(right) if both else (*right[:-2], right[-1], right[-2])
        self._add("matmul" if both else "linear", inputs, left, [*left[:-1], right[-1]], keeps=[first], learns=self._of(first).learns,
                  weight=shape, weight_of=weight)

    def _convolution(self, args: tuple, output: Tensor, inputs: list[Tensor]) -> None:
        x, weight, _, stride, padding, dilation, transposed = args[:7]
        if self._of(weight).from_input:
            raise UserError("The model convolves with a kernel that depends on its input, which the energy model does not know.")
        self._add("conv", inputs, x.shape, output.shape, keeps=[x], learns=self._of(x).learns, weight=tuple(weight.shape), weight_of=weight,
                  kernel=tuple(weight.shape[2:]), stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation), groups=args[8],
                  transposed=bool(transposed))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Attention run as one operation: scores, softmax, mean of values."""
        *lead, m, d = q.shape
        scores = (math.prod(lead), m, k.shape[-2])
        learns = self._joined([q, k]).learns
        self._add("matmul", [q, k], (scores[0], m, d), scores, keeps=[q], learns=self._of(q).learns,
                  weight=(scores[0], d, scores[2]), weight_of=k)
        self._add("softmax", [q, k], scores, scores, keeps=[], learns=learns, **ops.counted("_softmax", math.prod(scores)))
        self._add("matmul", [q, k, v], scores, (scores[0], m, v.shape[-1]), keeps=[], learns=learns,
                  weight=(scores[0], scores[2], v.shape[-1]), weight_of=v)

    def _elementwise(self, name: str, inputs: list[Tensor], output: Tensor) -> None:
        call = self.stack[-1]
        full = [t for t in inputs if self._of(t).from_input and t.is_floating_point()]
        source = max(full or inputs, key=Tensor.numel)
        work = ops.counted(name, max(source.numel(), output.numel()))
        index = self.last_of_call.get(call.number) if self._is_leaf(call) else None
        if index is not None and ops.kind_of(name, "", leaf=False) == "elementwise":
            before = self.layers[index]  # further small work of the same module
            self.layers[index] = replace(
                before, parameters=before.parameters + self._claim(inputs),
                output=before.output if before.is_product else tuple(output.shape),
                **{field: getattr(before, field) + value for field, value in work.items()})
            return
        kind = ops.kind_of(name, type(call.module).__name__, leaf=self._is_leaf(call))
        operands = len({id(t) for t in full if t.numel() == output.numel()}) if kind == "elementwise" else 1
        keeps = [] if kind == "elementwise" and name in ops.LINEAR else [output]
        self._add(kind, inputs, source.shape, output.shape, keeps=keeps, learns=any(self._of(t).learns for t in full), operation=name,
                  operands=max(operands, 1), **work)

    def _add(self, kind: Kind, inputs: list[Tensor], input: Sequence[int], output: Sequence[int], *, keeps: list[Tensor], learns: bool,
             weight_of: Tensor | None = None, operation: str = "", **fields: Any) -> None:
        """Append a layer. ``learns``: whether its input needs a gradient; ``weight_of``: its second operand."""
        call = self.stack[-1]
        weight_gradient = weight_of is not None and self._of(weight_of).learns
        # a product keeps its input for the gradient to its second operand, and an activation there for the one to its input
        saved = self._keep(keeps) if (learns if weight_of is None else weight_gradient) else 0
        if kind == "matmul" and learns:
            saved += self._keep([weight_of])
        layer = Layer(
            name=self._name(call, kind, operation, weight_of), kind=kind, module=type(call.module).__name__, samples=self.samples,
            input=tuple(input), output=tuple(output), parameters=self._claim(inputs), saved=saved, input_gradient=learns,
            weight_gradient=weight_gradient, **fields)
        if self._is_leaf(call):
            self.last_of_call[call.number] = len(self.layers)
        self.layers.append(layer)

    def _keep(self, tensors: list[Tensor]) -> int:
        """Count the elements of tensors that are not kept yet. A view and what it looks at are one tensor."""
        total = 0
        for t in tensors:
            storage = t.untyped_storage()
            if storage._cdata not in self.kept:
                self.kept[storage._cdata] = storage  # held, so that the number stays its own
                total += t.numel()
        return total

    def _is_leaf(self, call: Call) -> bool:
        return next(call.module.children(), None) is None

    def _claim(self, inputs: list[Tensor]) -> int:
        """Count the trainable parameters among ``inputs`` that no layer has counted."""
        fresh = {n for t in inputs if self._of(t).learns for n in self._of(t).parameters} - self.claimed
        self.claimed |= fresh
        return sum(self.sizes[n] for n in fresh)

    def _name(self, call: Call, kind: Kind, operation: str, weight_of: Tensor | None) -> str:
        """The module's path; inside a module with children, that of the weight, or path and operation. Repeats are numbered."""
        name = call.path
        if not name or not self._is_leaf(call):
            owned = self._of(weight_of).parameters if weight_of is not None else ()
            stem = next(iter(owned)).removesuffix("weight").rstrip("._") if len(owned) == 1 else ""
            name = stem or f"{call.path}.{operation.strip('_') or kind}".lstrip(".")
        self.names[name] = self.names.get(name, 0) + 1
        return name if self.names[name] == 1 else f"{name}#{self.names[name]}"
