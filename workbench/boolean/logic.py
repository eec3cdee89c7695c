"""Boolean logic with numbers: three-valued connectives, variation and its chain rule.

Nguyen, "Boolean Variation and Boolean Logic BackPropagation", arXiv:2311.07427; restated in Nguyen et al., "BOLD: Boolean
Logic Deep Learning", NeurIPS 2024, arXiv:2405.16339, section 3 and appendix A.1. Definition numbers are those of the latter.

A logic value is kept by its embedding in the numbers: TRUE = +1, FALSE = -1, and 0, which is neither. A number is a logic value,
its sign, with a magnitude. So one arithmetic serves logic, numeric and mixed arguments: ``c = L(a, b)`` has the
magnitude ``|a||b|`` and the logic value of ``L`` (mixed-type logic, Def. 3.5). Every function takes Python numbers or tensors
that broadcast; ``bool`` is read as TRUE and FALSE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Value = bool | int | float | Tensor

TRUE, FALSE, NEITHER = 1, -1, 0


def embed(x: Value) -> int | float | Tensor:
    """Embedding ``e`` of logic values in the numbers: True to +1, False to -1; numbers stay as they are (Def. 3.8)."""
    if isinstance(x, Tensor):
        return 2 * x.to(torch.int8) - 1 if x.dtype == torch.bool else x
    return 2 * int(x) - 1 if isinstance(x, bool) else x


def project(x: Value) -> int | Tensor:
    """Projection ``p`` of numbers on logic values: the sign, 0 staying 0 (Def. 3.8)."""
    x = embed(x)
    return x.sign() if isinstance(x, Tensor) else (x > 0) - (x < 0)


def magnitude(x: Value) -> int | float | Tensor:
    """Absolute value of a number; 1 for TRUE and FALSE, 0 for the logic 0."""
    return abs(embed(x))


def not_(a: Value) -> int | float | Tensor:
    """Negation: turns the logic value, keeps the magnitude; ``not 0 = 0``."""
    return -embed(a)


def xnor(a: Value, b: Value) -> int | float | Tensor:
    """TRUE where the logic values agree: the product of the embeddings (Prop. A.2)."""
    return embed(a) * embed(b)


def xor(a: Value, b: Value) -> int | float | Tensor:
    """TRUE where the logic values differ: ``not xnor``."""
    return -xnor(a, b)


def and_(a: Value, b: Value) -> int | float | Tensor:
    """TRUE where both are; magnitude ``|a||b|``, so 0 where either is 0."""
    return magnitude(xnor(a, b)) * _smaller(project(a), project(b))


def or_(a: Value, b: Value) -> int | float | Tensor:
    """FALSE where both are; magnitude ``|a||b|``, so 0 where either is 0."""
    return not_(and_(not_(a), project(not_(b)) * magnitude(b)))


def _smaller(a: int | Tensor, b: int | Tensor) -> int | Tensor:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    return min(a, b)


# --- variation ----------------------------------------------------------------------------------------------

Kind = Literal["logic", "numeric"]
"""What a function's values are. A variation of logic values is a logic value, of numbers their difference."""


def delta(a: Value, b: Value, kind: Kind = "logic") -> int | float | Tensor:
    """Variation from ``a`` to ``b``: TRUE if ``b > a``, 0 if equal, FALSE if ``b < a``; for numbers ``b - a`` (Defs. 3.6, 3.11)."""
    difference = embed(b) - embed(a)
    return project(difference) if kind == "logic" else difference


def variation(f: Callable[[Value], Value], x: Value, kind: Kind = "numeric") -> int | float | Tensor:
    """Variation ``f'(x)`` of a function of one Boolean: TRUE, or positive, iff ``f`` moves as ``x`` does when ``x`` is turned.

    ``f'(x) = xnor(delta(x -> not x), delta f(x -> not x))`` (Def. 3.7). Both arguments give the same value.
    """
    return xnor(delta(x, not_(x)), delta(f(x), f(not_(x)), kind))


def partial_variation(f: Callable[[Tensor], Value], x: Tensor, i: int, kind: Kind = "numeric") -> int | float | Tensor:
    """Variation of a function of a 1-D tensor of +-1 with respect to its ``i``-th coordinate (Def. A.1)."""
    turned = x.clone()
    turned[i] = not_(x[i])
    return xnor(delta(x[i], turned[i]), delta(f(x), f(turned), kind))


def step_variation(f: Callable[[Value], Value], x: Value, kind: Kind = "numeric") -> int | float | Tensor:
    """Variation of a function of one integer: ``delta f(x -> x + 1)``, the forward difference (Def. 3.13)."""
    return delta(f(x), f(x + 1), kind)


def chain(outer: Value, inner: Value) -> int | float | Tensor:
    """Chain rule: the variation of ``g o f`` at x is ``xnor(g'(f(x)), f'(x))`` (Thm. 3.12).

    Exact for ``f: B -> B``. For ``f: B -> Z`` it is exact where ``|f'(x)| <= 1`` and ``g'(f(x)) = g'(f(x) - 1)``.
    """
    return xnor(outer, inner)


def aggregate(votes: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Sum of votes, those for TRUE counting up and those for FALSE down, each by its magnitude (Eqs. 7-8)."""
    return embed(votes).sum(dim)


# --- counts and signed sums ---------------------------------------------------------------------------------


def count_true(s: Value, fan_in: int) -> float | Tensor:
    """Number of TRUEs among ``fan_in`` logic values whose embeddings sum to ``s``."""
    return (fan_in + s) / 2


def signed_sum(count: Value, fan_in: int) -> int | float | Tensor:
    """Sum of the embeddings of ``fan_in`` logic values of which ``count`` are TRUE."""
    return 2 * count - fan_in
