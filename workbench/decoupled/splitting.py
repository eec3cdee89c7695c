"""Cutting a network into modules that are trained apart: where it may be cut, and cuts of equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from tracking.errors import UserError
from workbench.decoupled.costs import module_costs

_NONLINEAR = tuple(getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__)


def divide(model: nn.Module, modules: int, x: Tensor, cuts: Sequence[int] = ()) -> list[nn.Sequential]:
    """``model``, an ``nn.Sequential``, in ``modules`` modules: before the :func:`units` ``cuts``, or of costs as even as can be.

    ``x``: inputs of the model, on its device; costs are multiply-accumulates on them. The layers are the given ones, not copies.
    Raises :class:`UserError` for more modules than units, or cuts that are none.
    """
    pieces = units(model)
    if not 1 <= modules <= len(pieces):
        raise UserError(f"modules = {modules} is refused. Allowed: 1 <= x <= {len(pieces)}, the units this network can be cut into.")
    return split(pieces, cuts or balanced_cuts(module_costs(pieces, [nn.Identity()] * len(pieces), x).primary, modules))


def units(model: nn.Module) -> list[nn.Sequential]:
    """The smallest pieces that ``model``, an ``nn.Sequential``, is cut into, in order.

    A sequence of sequences says itself where it is cut. Any other one may be cut behind a nonlinearity and behind a block
    (a module with children, such as a residual block): what is handed on is then what the nonlinearity puts out, and a
    convolution stays with its norm. Layers behind the last cut make up the last unit. Raises :class:`UserError` for a model
    that is no ``nn.Sequential``.
    """
    if not isinstance(model, nn.Sequential) or not len(model):
        raise UserError(f"A model that is cut into modules is an nn.Sequential with layers; given {type(model).__name__}. "
                        "Wrap its parts in nn.Sequential(...), or pass the modules themselves.")
    if all(isinstance(child, nn.Sequential) for child in model):
        return list(model)
    found: list[list[nn.Module]] = [[]]
    for layer in _flat(model):
        found[-1].append(layer)
        if isinstance(layer, _NONLINEAR) or any(True for _ in layer.children()):
            found.append([])
    return [nn.Sequential(*layers) for layers in found if layers]


def _flat(model: nn.Sequential) -> list[nn.Module]:
    return [layer for child in model for layer in (_flat(child) if isinstance(child, nn.Sequential) else [child])]


def split(pieces: Sequence[nn.Module], cuts: Sequence[int]) -> list[nn.Sequential]:
    """Modules of neighbouring ``pieces``, cut before piece ``cuts[0]``, ``cuts[1]``, …; the layers are the given ones, not copies.

    Raises :class:`UserError` unless ``0 < cuts[0] < cuts[1] < … < len(pieces)``.
    """
    ends = [0, *cuts, len(pieces)]
    if any(a >= b for a, b in pairwise(ends)):
        raise UserError(f"cuts = {tuple(cuts)} are refused. Allowed: growing whole numbers from 1 to {len(pieces) - 1}, "
                        f"as the network has {len(pieces)} units.")
    return [nn.Sequential(*(layer for piece in pieces[a:b] for layer in _layers(piece))) for a, b in pairwise(ends)]


def _layers(piece: nn.Module) -> list[nn.Module]:
    return list(piece) if isinstance(piece, nn.Sequential) else [piece]


def balanced_cuts(costs: Sequence[float], modules: int) -> tuple[int, ...]:
    """Cuts into ``modules`` runs of neighbours whose greatest cost is least; among these, whose sum of squared costs is least.

    Exact, by dynamic programming over (pieces, modules). Raises :class:`UserError` for more modules than pieces.
    """
    n = len(costs)
    if not 1 <= modules <= n:
        raise UserError(f"modules = {modules} is refused. Allowed: 1 <= x <= {n}, the places where this network can be cut plus one.")
    # best[i]: (greatest cost, sum of squares, cuts) of the first i pieces in as many modules as rounds so far
    best = {i: (sum(costs[:i]), sum(costs[:i]) ** 2, ()) for i in range(1, n + 1)}
    for k in range(2, modules + 1):
        best = {
            i: min(
                (max(best[a][0], last), best[a][1] + last**2, (*best[a][2], a))
                for a in range(k - 1, i)
                for last in [sum(costs[a:i])]
            )
            for i in range(k, n + 1)
        }
    return best[n][2]
