"""Fast forms of the AskewSGD direction for evenly spaced levels: eager and in cache, or compiled into one pass.

Every cell between two neighbouring levels is an affine copy of the binary one. With ``z`` in [-1, 1] across the cell
(0 at the midpoint, +-1 at the levels), ``q = 1 - z^2`` and ``e = eps / bound``, a coordinate is infeasible iff
``q^2 > e``, and the velocity that the constraint asks for is ``(alpha/4)(q - e/q)/z`` in units of half a gap. The plain
formula for any levels is ``askew_direction``; the tests hold the three together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements a thread handles in one go: small enough for the temporaries to stay in its second-level cache, so that main
# memory is crossed once; large enough for the work to outweigh the threads' meeting after each operation.
CHUNK = 65_536


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


def skew(w: Tensor, g: Tensor, k: Constraint, scratch: Tensor | None = None) -> Tensor:
    """The gradient to follow instead of ``g``, equal to ``-askew_direction``.

    ``w`` lies within the outer levels. At a midpoint the result is ``-clip`` (``+clip`` at -0.0). ``w`` and ``g`` are 1-D;
    the result lies in ``scratch``, of at least ``(3, n)``, where it is given.
    """
    a, target, y = w.new_empty(3, w.numel()) if scratch is None else scratch[:, :w.numel()]
    half = k.gap / 2
    if k.centred:
        y, stretch = w if half == 1 else torch.div(w, half, out=y).clamp_(-1, 1), 1.0
    else:  # y = z / 2: the offset from the nearest midpoint, in gaps
        torch.div(w, k.gap, out=y).sub_(0.5)
        y.sub_(torch.round(y, out=a))
        stretch = 4.0
    c = half * k.alpha / 4 * stretch**-0.5
    # torch vectorises these element-wise operations far better when no operand is broadcast
    a.fill_(c).addcmul_(y, y, value=-stretch * c)  # c q
    torch.reciprocal(a, out=target)
    a.add_(target, alpha=-k.e * c * c)  # c (q - e/q): positive iff infeasible
    torch.threshold_(a, 0.0, -torch.inf)
    target.zero_().addcdiv_(a, y, value=-1).clamp_(-k.clip, k.clip)
    a.addcmul_(y, g).gt_(0)  # 1 where g leaves the weight slower towards its level than the constraint asks
    # lerp is exact at weights 0 and 1, and several times as fast as where() on a boolean mask
    return torch.lerp(g, target, a, out=target)


@torch.no_grad()
def in_chunks(work: Callable[..., None], *tensors: Tensor) -> None:
    """Call ``work(scratch, *parts)`` on flat parts of ``tensors``: cache-sized ones on a CPU, else whole.

    Torch divides each operation on a part alike among its threads, so each thread finds its share in its own cache.
    """
    flat = [t.detach().view(-1) for t in tensors]
    count = flat[0].numel()
    size = min(count, CHUNK * torch.get_num_threads()) if flat[0].device.type == "cpu" else count
    scratch = flat[0].new_empty(3, size)
    for start in range(0, count, max(size, 1)):
        work(scratch, *(t[start:start + size] for t in flat))


def skew_into(out: Tensor, w: Tensor, g: Tensor, k: Constraint) -> Tensor:
    """:func:`skew` for tensors of any shape, written to ``out``."""
    in_chunks(lambda scratch, w, g, out: out.copy_(skew(w, g, k, scratch)), w, g, out)
    return out


def sgd_step(
    w: Tensor, g: Tensor, buffer: Tensor | None, k: Constraint, *, lr: float, momentum: float, weight_decay: float,
    low: float, high: float, compiled: bool = False,
) -> None:
    """Skew, SGD step and clamp to ``[low, high]`` in one pass; changes ``w`` and its momentum ``buffer``."""
    if compiled:
        return _run(_sgd, (w, g, buffer), k, lr, momentum, weight_decay, low, high)

    def work(scratch: Tensor, w: Tensor, g: Tensor, buffer: Tensor | None = None) -> None:
        d = skew(w, g, k, scratch)
        if weight_decay:
            d.add_(w, alpha=weight_decay)
        if buffer is not None:
            d = buffer.mul_(momentum).add_(d)
        w.add_(d, alpha=-lr).clamp_(low, high)

    in_chunks(work, *(t for t in (w, g, buffer) if t is not None))


def adam_step(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, k: Constraint, *, t: int, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, low: float, high: float, compiled: bool = False,
) -> None:
    """The same with Adam's step number ``t`` (from 1); changes ``w`` and the moments ``m`` and ``v``."""
    b1, b2 = betas
    size, root = lr / (1 - b1**t), (1 - b2**t) ** 0.5
    if compiled:
        return _run(_adam, (w, g, m, v), k, size, root, b1, b2, eps, weight_decay, low, high)

    def work(scratch: Tensor, w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> None:
        d = skew(w, g, k, scratch)
        if weight_decay:
            d.add_(w, alpha=weight_decay)
        m.lerp_(d, 1 - b1)
        v.mul_(b2).addcmul_(d, d, value=1 - b2)
        torch.sqrt(v, out=d).div_(root).add_(eps)
        w.addcdiv_(m, d, value=-size).clamp_(low, high)

    in_chunks(work, w, g, m, v)


# --- the same in one compiled pass: needs a C++ compiler (CPU) or Triton (CUDA) ---------------------------


def _formula(w: Tensor, g: Tensor, e: Tensor, alpha: Tensor, clip: Tensor, gap: Tensor, centred: bool) -> Tensor:
    z = (w / (gap / 2)).clamp(-1, 1) if centred else w / gap - 0.5
    z = z if centred else 2 * (z - torch.round(z))
    q = 1 - z * z
    speed = gap / 8 * alpha * (q - e / q)
    target = torch.clamp(-speed / z, -clip, clip)
    return torch.where((q * q > e) & (z * g > -speed), target, g)


def _sgd(w: Tensor, g: Tensor, buffer: Tensor | None, h: Tensor, centred: bool) -> None:
    *k, lr, momentum, weight_decay, low, high = h.unbind()
    d = _formula(w, g, *k, centred) + weight_decay * w
    if buffer is not None:
        d = momentum * buffer + d
        buffer.copy_(d)
    w.copy_(torch.clamp(w - lr * d, low, high))


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, h: Tensor, centred: bool) -> None:
    *k, size, root, b1, b2, eps, weight_decay, low, high = h.unbind()
    d = _formula(w, g, *k, centred) + weight_decay * w
    m.copy_(m + (1 - b1) * (d - m))
    v.copy_(b2 * v + (1 - b2) * d * d)
    w.copy_(torch.clamp(w - size * m / (v.sqrt() / root + eps), low, high))


_compiled: dict[Callable[..., None], Callable[..., None]] = {}


def _run(function: Callable[..., None], tensors: tuple[Tensor | None, ...], k: Constraint, *numbers: float) -> None:
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True)
    flat = [None if t is None else t.view(-1) for t in tensors]
    # numbers travel as a tensor: a changed learning rate or eps must not compile anew
    h = torch.tensor((k.e, k.alpha, k.clip, k.gap, *numbers), dtype=flat[0].dtype, device=flat[0].device)
    _compiled[function](*flat, h, k.centred)
