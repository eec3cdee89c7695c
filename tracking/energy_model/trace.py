"""Read a network's layers by running it once on tensors that have shapes and no data.

Below every Python construct a network comes down to a few tensor operations; a dispatch mode sees them all, so a product in
a ``forward`` of one's own counts as one in ``nn.Linear`` does. Which operand is a weight, and which gradients training needs, follows
from what each tensor depends on.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tracking.energy_model.layers import Layer
from tracking.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def trace(model: nn.Module, input: Any) -> tuple[Layer, ...]:
    """Layers of ``model`` in the order in which it runs them; nothing is computed and the model stays as it is.

    Billed are operations on data that depends on the input; those on weights alone (their quantisation, say), views and copies
    are not, nor is a loss outside the model. Masked attention counts as full. An operation inside ``torch.no_grad`` counts as
    trained where its operands are trainable, because custom autograd functions run so; ``detach`` stops a gradient. Where the path through
    the model depends on values, a copy is run on real ones: those of ``input``, or zeros.

    Args:
        model: any module, on any device ("meta" as well), in the mode in which it is to be traced.
        input: a tensor, a shape (tuple of sizes), a tuple of tensors (positional arguments) or a dictionary of them (by name). The first
            size of the first tensor is the number of samples.

    Raises :class:`UserError` when the model fails on the input, or runs a product that is not known here.
    """
    from torch import Tensor
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
    from torch.utils._pytree import tree_map_only

    args, kwargs = _arguments(input)
    try:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                return _record(model, *tree_map_only(Tensor, fake.from_tensor, (args, kwargs)), fake.from_tensor)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return _record(copy.deepcopy(model), args, kwargs, lambda t: t)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The model {type(model).__name__} cannot be traced on this input: {type(error).__name__}: {error}") from error


def _arguments(input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    if isinstance(input, torch.Tensor):
        return (input,), {}
    if isinstance(input, dict) and any(isinstance(v, torch.Tensor) for v in input.values()):
        return (), dict(input)
    if isinstance(input, (tuple, list)) and input:
        if all(isinstance(n, int) and n > 0 for n in input):
            return (torch.empty(tuple(input), device="meta"),), {}
        if any(isinstance(v, torch.Tensor) for v in input):
            return tuple(input), {}
    raise UserError(f"Input {input!r} is refused. Allowed: a tensor, a shape such as (100, 3, 32, 32), a tuple or a dictionary "
                    "with tensors.")


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stand_in: Callable[[Tensor], Tensor]) -> tuple[Layer, ...]:
    import torch
    from torch.utils._pytree import tree_leaves, tree_map_only

    from tracking.energy_model._recorder import Recorder

    with _unchanged(model, stand_in), _only_plain_operations(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        args, kwargs = tree_map_only(torch.Tensor, _placement(model), (args, kwargs))
        recorder = Recorder(model, [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)])
        with recorder.watching(), recorder:
            model(*args, **kwargs)
    return tuple(recorder.layers)


def _placement(model: nn.Module) -> Any:
    """How an input comes to the model's device and number format."""
    import torch

    own = next(model.parameters(), next(model.buffers(), None))

    def placed(t: Tensor) -> Tensor:
        dtype = own.dtype if own is not None and own.is_floating_point() and t.is_floating_point() else t.dtype
        device = own.device if own is not None else torch.device("cpu") if t.is_meta else t.device
        crosses = t.is_meta != (device.type == "meta")  # there is no data to carry over
        return torch.zeros(t.shape, dtype=dtype, device=device) if crosses else t.to(device, dtype)

    return placed


@contextlib.contextmanager
def _only_plain_operations() -> Iterator[None]:
    """Keep torch from taking fused attention and recurrent kernels, which hide their products."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = before[1:]


@contextlib.contextmanager
def _unchanged(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put stand-ins in the place of all tensors of the model; afterwards all attributes are the objects they were."""
    import torch

    before = []
    for m in model.modules():
        for registry in (m.__dict__, m._parameters, m._buffers):
            before.append((registry, dict(registry)))
            registry.update({name: stand_in(value) for name, value in registry.items() if isinstance(value, torch.Tensor)})
    try:
        yield
    finally:
        for registry, values in before:
            registry.clear()
            registry.update(values)
