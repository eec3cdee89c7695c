"""Networks that are chains of linear layers and ReLUs, stacked: forward, backward and update as batched matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def linear_chain(model: nn.Module) -> list[str]:
    """Names of the linear layers of a network that is nothing but [Flatten] Linear (ReLU Linear)*; empty for others."""
    if not isinstance(model, nn.Sequential):
        return []
    layers = [(name, m) for name, m in model.named_children() if not isinstance(m, (nn.Flatten, nn.Identity))]
    linear = [name for name, m in layers[::2] if isinstance(m, nn.Linear)]
    rest = [m for _, m in layers[1::2]]
    right = len(layers) % 2 and len(linear) == len(layers[::2]) and all(isinstance(m, nn.ReLU) for m in rest)
    return linear if right else []


@torch.no_grad()
def chain_step(chain: Sequence[str], parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
    """One step of SGD under cross-entropy with every row, in place.

    Args:
        chain: names of the linear layers.
        parameters: ``(m, *shape)`` by name.
        x, y: inputs ``(m, B, ...)`` and labels ``(m, B)``.
        lr: one rate a row ``(m,)``.

    Returns:
        (m,) the losses before the step.

    Nothing is transposed but by its strides. Activations and signals have the layout ``(m, B, units)``, where products
    with weights ``(m, units, inputs)`` are fastest; outputs have ``(m, units, B)``, because a softmax over a middle axis
    is several times faster than one over a short last axis.
    """
    layers = [(parameters[f"{name}.weight"], parameters.get(f"{name}.bias")) for name in chain]
    inputs = [x.flatten(2)]
    for weight, bias in layers[:-1]:
        out = _affine(None if bias is None else bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
        inputs.append(out.relu_())
    weight, bias = layers[-1]
    out = _affine(None if bias is None else bias.unsqueeze(2), weight, inputs[-1].transpose(1, 2))
    log_p, label = out.log_softmax(1), y.unsqueeze(1)
    at_label = log_p.gather(1, label)
    losses = -at_label.mean((1, 2))
    delta = log_p.exp_().scatter_add_(1, label, torch.full_like(at_label, -1.0))
    delta *= (lr / y.shape[1]).view(-1, 1, 1)  # the rate is in the signal: products update the weights directly
    delta = delta.transpose(1, 2)
    for i in reversed(range(len(layers))):
        weight, bias = layers[i]
        below = torch.bmm(delta, weight) if i else None
        weight.baddbmm_(delta.transpose(1, 2), inputs[i], alpha=-1)
        if bias is not None:
            bias -= delta.sum(1)
        if below is not None:
            delta = torch.ops.aten.threshold_backward(below, inputs[i], 0)
    return losses


def _affine(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)


def by_step(samples: Sequence[np.ndarray], active: np.ndarray) -> np.ndarray:
    """Rows' samples ``(steps_i, B)``, longest first, as ``(sum of steps, B)`` with step 0 of all rows first.

    ``active``: how many rows are at work, a step.
    """
    first = active.cumsum() - active
    out = np.empty((active.sum(), samples[0].shape[1]), np.int64)
    for rank, own in enumerate(samples):
        out[first[: len(own)] + rank] = own
    return out
