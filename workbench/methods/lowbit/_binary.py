"""Networks with one-bit weights and activations: signs with a derivative of one's choice, layers that binarise their weight.

The first and the last layer stay in full precision, as all papers on such networks have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.method import Context, View
from workbench.methods.lowbit._levels import quantised_layers, sign
from workbench.methods.lowbit._views import quantised_views
from workbench.methods.supervised import SupervisedParams, SupervisedState, SupervisedTraining
from workbench.params import Field

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan
    from workbench.task import SupervisedTask

WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    # derivative of the clip to [-1, 1] (Hubara et al., NeurIPS 2016, eq. 4)
    "hard_tanh": lambda x: (x.abs() <= 1).to(x.dtype),
    # derivative of the piecewise quadratic ApproxSign (Liu et al., ECCV 2018, eq. 6)
    "approx_sign": lambda x: (2 - 2 * x.abs()).clamp_min(0),
}
"""Stand-ins for the derivative of the sign."""


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = window
        return sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * WINDOWS[ctx.window](x), None


def sign_ste(x: Tensor, window: Literal["hard_tanh", "approx_sign"] = "hard_tanh") -> Tensor:
    """Sign (0 goes to +1), differentiated as one of :data:`WINDOWS`; any shape."""
    return _Sign.apply(x, window)


class BinaryActivation(nn.Module):
    """Sign in the place of ReLU. Put a batch norm before it."""

    def __init__(self, window: Literal["hard_tanh", "approx_sign"] = "hard_tanh") -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return sign_ste(x, self.window)


class _Binarised:
    """What the two layers below share; ``rule`` maps the latent weight, ``(out, in, ...)``, to the one in the product."""

    def __init__(self, *args: Any, rule: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(*args, **options)
        self.rule = rule
        self.register_buffer("scale", None)

    def effective(self) -> Tensor:
        """The weight that multiplies."""
        return self.rule(self.weight) if self.scale is None else self.weight * self.scale

    @torch.no_grad()
    def fold(self) -> None:
        """Keep signs and one scale an output in the place of the latent weight: the same function, ready to be shipped."""
        made = self.effective()
        self.scale = made.abs().flatten(1).amax(1).view(-1, *[1] * (made.dim() - 1))
        self.weight.copy_(sign(made))


class BinaryLinear(_Binarised, nn.Linear):
    """Linear layer whose product is at ``rule(weight)``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective(), self.bias)


class BinaryConv2d(_Binarised, nn.Conv2d):
    """Convolution whose product is at ``rule(weight)``; padding is by zeros, which add nothing to a sum of signs."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective(), self.bias)


def binary_layer(layer: nn.Module, rule: Callable[[Tensor], Tensor]) -> nn.Module:
    """The binary layer in the place of ``layer``, over the same parameters."""
    common = {"bias": layer.bias is not None, "rule": rule, "device": "meta"}  # nothing is drawn there
    if type(layer) is nn.Linear:
        made: nn.Module = BinaryLinear(layer.in_features, layer.out_features, **common)
    elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        made = BinaryConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                            layer.groups, **common)
    else:
        raise UserError(f"{type(layer).__name__} cannot be made binary. Allowed: Linear, and Conv2d padded by zeros.")
    made.weight, made.bias = layer.weight, layer.bias
    return made


def swap(model: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[nn.Module], nn.Module]) -> int:
    """Put ``make(child)`` in the place of every wanted module, at any depth; returns how many there were."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if wanted(child)]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return len(found)


def inner_layers(model: nn.Module) -> list[nn.Module]:
    """The layers between the first and the last; :class:`UserError` where there is none."""
    layers = quantised_layers(model, "inner")
    if not layers:
        raise UserError("This network has no layer between its first and its last one, which stay in full precision, so nothing is left "
                        "to be made binary. Take a deeper one, such as mlp, cnn or vgg_small.")
    return layers


# --- the method -------------------------------------------------------------------------------------------


class BinaryParams(SupervisedParams):
    """What every training with one-bit weights and activations has."""

    lr: float = Field(0.01, gt=0, le=100, description="learning rate at the start")
    lr_schedule: Literal["steps", "cosine"] = Field(
        "cosine", description="learning rate: half a cosine down to 0 over the epochs, or lr_decay at the decay epochs")


class BinaryTraining(SupervisedTraining):
    """Supervised training of a network whose inner layers have one-bit weights and whose activations are signs."""

    Params = BinaryParams
    params: BinaryParams

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        inner_layers(model)
        swap(model, lambda m: isinstance(m, nn.ReLU), lambda _: BinaryActivation())
        return model

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: the weights of the inner layers, then all else (trained plainly)."""
        inner = [layer.weight for layer in inner_layers(model)]
        ids = {id(w) for w in inner}
        return [{"params": inner, "weights": "binary"}, {"params": [w for w in model.parameters() if id(w) not in ids], "weights": None}]

    def views(self, state: SupervisedState, task: SupervisedTask) -> list[View]:
        """Weights of the binary layers: as they are trained, and as they multiply."""
        layers = {name: m for name, m in state.model.named_modules() if isinstance(m, _Binarised)}
        return quantised_views({name: m.weight for name, m in layers.items()}, {name: m.effective() for name, m in layers.items()})

    def precision(self, model: nn.Module) -> PrecisionPlan:
        from tracking.energy_model.plan import binarynet

        return binarynet()
