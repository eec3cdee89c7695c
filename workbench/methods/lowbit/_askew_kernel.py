"""Fast forms of the AskewSGD direction for evenly spaced levels: eager and in cache, or compiled into one pass.

Every cell between two neighbouring levels is an affine copy of the binary one. With ``z`` in [-1, 1] across the cell (0 at the
midpoint, +-1 at the levels), ``q = 1 - z^2`` and ``e = eps / bound``, a coordinate is infeasible iff ``q^2 > e`` and the
velocity that the constraint asks for is ``(alpha/4)(q - e/q)/z`` in units of half a gap.
:func:`workbench.methods.lowbit.askewsgd.askew_direction` is the plain formula for any levels; the tests hold the three together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements a thread handles in one go. Small enough for the temporaries to stay in the second-level cache, so that main
# memory is crossed once; equal to torch's own grain, so that the elements do split over the threads.
CHUNK = 32_768


@dataclass(frozen=True)
class Constraint:
    """The constraint on one tensor, in weight units.

    Attributes:
        e: ``eps`` over its bound ``gap^4 / 16``, in (0, 1).
        alpha: rate at which an infeasible weight must approach feasibility.
        clip: largest speed the constraint asks for (the paper's M).
        gap: distance of neighbouring levels.
        centred: whether a midpoint between levels lies at 0 (binary), or a level does.
    """

    e: float
    alpha: float
    clip: float
    gap: float
    centred: bool


def skew(w: Tensor, g: Tensor, k: Constraint) -> Tensor:
    """The gradient to follow instead of ``g``: a new tensor, equal to ``-askew_direction``.

    ``w`` lies within the outer levels. At a midpoint the result is ``-clip`` (``+clip`` at -0.0).
    """
    half = k.gap / 2
    if k.centred:
        y, stretch = (w if half == 1 else (w / half).clamp_(-1, 1)), 1.0
    else:  # y = z / 2: the offset from the nearest midpoint, in gaps
        y = torch.sub(w / k.gap, 0.5)
        y -= torch.round(y)
        stretch = 4.0
    c = half * k.alpha / 4 * stretch**-0.5
    # torch vectorises these element-wise operations far better when no operand is broadcast
    a = torch.full_like(w, c).addcmul_(y, y, value=-stretch * c)  # c q
    target = a.reciprocal()
    a.add_(target, alpha=-k.e * c * c)  # c (q - e/q): positive iff infeasible
    torch.threshold_(a, 0.0, -torch.inf)
    target.zero_().addcdiv_(a, y, value=-1).clamp_(-k.clip, k.clip)
    a.addcmul_(y, g).gt_(0)  # 1 where g leaves the weight slower towards its level than the constraint asks
    # lerp is exact at weights 0 and 1, and several times as fast as where() on a boolean mask
    return torch.lerp(g, target, a, out=target)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of flattened tensors, a cache-sized chunk at a time on a CPU, whole on other devices."""
    flat = [t.view(-1) for t in tensors]
    size = CHUNK * torch.get_num_threads() if flat[0].device.type == "cpu" else flat[0].numel()
    return zip(*(t.split(size) for t in flat), strict=True)


def skew_into(out: Tensor, w: Tensor, g: Tensor, k: Constraint) -> Tensor:
    """:func:`skew` for tensors of any size, written to ``out``."""
    for o, w_part, g_part in chunks(out, w, g):
        o.copy_(skew(w_part, g_part, k))
    return out


def sgd_step(
    w: Tensor, g: Tensor, buffer: Tensor | None, k: Constraint, *, lr: float, momentum: float, weight_decay: float,
    low: float, high: float,
) -> None:
    """Skew, momentum, step and clamp in one pass over memory; changes ``w`` and ``buffer``."""
    parts = chunks(w, g) if buffer is None else chunks(w, g, buffer)
    for w_part, g_part, *b in parts:
        d = skew(w_part, g_part, k)
        if weight_decay:
            d.add_(w_part, alpha=weight_decay)
        if b:
            d = b[0].mul_(momentum).add_(d)
        w_part.add_(d, alpha=-lr).clamp_(low, high)


# --- one compiled pass -----------------------------------------------------------------------------------


def _formula(w: Tensor, g: Tensor, h: tuple[Tensor, ...], centred: bool) -> Tensor:
    e, alpha, clip, gap = h
    z = w / (gap / 2) if centred else w / gap - 0.5
    z = z.clamp(-1, 1) if centred else 2 * (z - torch.round(z))
    q = 1 - z * z
    speed = gap / 8 * alpha * (q - e / q)
    target = torch.clamp(-speed / z, -clip, clip)
    return torch.where((q * q > e) & (z * g > -speed), target, g)


def _skew(out: Tensor, w: Tensor, g: Tensor, h: Tensor, centred: bool) -> None:
    out.copy_(_formula(w, g, h.unbind(), centred))


def _sgd(w: Tensor, g: Tensor, buffer: Tensor | None, h: Tensor, centred: bool) -> None:
    *rest, lr, momentum, weight_decay, low, high = h.unbind()
    d = _formula(w, g, tuple(rest), centred) + weight_decay * w
    if buffer is not None:
        d = momentum * buffer + d
        buffer.copy_(d)
    w.copy_(torch.clamp(w - lr * d, low, high))


_compiled: dict[str, Callable[..., None]] = {}


def _run(name: str, *tensors: Tensor | None, numbers: tuple[float, ...], centred: bool) -> None:
    if name not in _compiled:
        _compiled[name] = torch.compile({"skew": _skew, "sgd": _sgd}[name], dynamic=True)
    flat = [None if t is None else t.view(-1) for t in tensors]
    # numbers travel as a tensor: a changed learning rate or eps must not compile anew
    h = torch.tensor(numbers, dtype=flat[0].dtype, device=flat[0].device)
    _compiled[name](*flat, h, centred)


def skew_into_compiled(out: Tensor, w: Tensor, g: Tensor, k: Constraint) -> Tensor:
    """:func:`skew_into` by ``torch.compile``."""
    _run("skew", out, w, g, numbers=(k.e, k.alpha, k.clip, k.gap), centred=k.centred)
    return out


def sgd_step_compiled(
    w: Tensor, g: Tensor, buffer: Tensor | None, k: Constraint, *, lr: float, momentum: float, weight_decay: float,
    low: float, high: float,
) -> None:
    """:func:`sgd_step` by ``torch.compile``: one kernel, at the speed of memory. Needs a C++ compiler (CPU) or Triton."""
    _run("sgd", w, g, buffer, numbers=(k.e, k.alpha, k.clip, k.gap, lr, momentum, weight_decay, low, high), centred=k.centred)
