"""Rounding with feedback: each column makes up for the errors of those rounded before it.

The objective is ``tr(E H E^T)`` with ``E = W - W'`` (p, q) and ``H`` (q, q) the second moment of the inputs. With ``H = (M + I) D
(M + I)^T``, M strictly upper triangular and D diagonal, it is ``sum_k D_k |eta_k|^2`` for ``eta = E (M + I)``; rounding ``W_k +
E_{<k} M_{<k,k}`` in place of ``W_k`` makes ``eta_k`` the rounding error of column k alone. This is LDLQ (QuIP: Chee et al., NeurIPS
2023, section 3); GPTQ (Frantar et al., ICLR 2023) computes the same by way of the inverse of H, as QuIP proves. The form here
needs one Cholesky factorisation and no inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracking.errors import UserError

if TYPE_CHECKING:
    from workbench.llm.calibration import LayerStatistics

MAX_DAMPING = 1e3


def required(who: str, stats: LayerStatistics | None, *names: str) -> list[Tensor]:
    """These statistics in float32; a quantiser that was given none of them says what to do."""
    found = [getattr(stats, name, None) for name in names]
    if missing := [name for name, value in zip(names, found, strict=True) if value is None]:
        raise UserError(f"{who} needs statistics of the layer's inputs ({', '.join(missing)}). Give a calibration text.")
    return [value.float() for value in found]


def row_errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """``e H e^T`` for each row e of ``difference`` (p, q): the mean squared error of that output, up to the factor of H."""
    return ((difference @ hessian) * difference).sum(1)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H with ``damping`` times its mean diagonal added; an input that was always zero counts 1, so that it is rounded for itself."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal <= 0] = 1.0
    diagonal += damping * diagonal.mean()
    return hessian


def feedback_matrix(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """``M + I`` (q, q) of ``H = (M + I) D (M + I)^T``, unit upper triangular.

    Where damped H is not positive definite in the working precision, damping rises tenfold until it is.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise UserError("The inputs' second moment holds nan or inf: the calibration text drives the model out of range. "
                        "Look at the model's weights first, then calibrate on other text.")
    while damping <= MAX_DAMPING:
        # upside down, because the ordinary Cholesky factor is a lower triangle
        factor, failed = torch.linalg.cholesky_ex(damped(hessian, damping).flip(0, 1))
        if not failed:
            upper = factor.flip(0, 1)
            return upper / upper.diagonal()
        damping = max(10 * damping, 1e-6)
    raise UserError(f"The inputs' second moment stays indefinite with damping {MAX_DAMPING:g} times its mean: it is no second moment.")


def round_with_feedback(weight: Tensor, feedback: Tensor, round_column: Callable[[int, Tensor], Tensor], *,
                        begin: Callable[[int, Tensor], None] | None = None, block: int = 128) -> Tensor:
    """W' (p, q): the columns of ``weight`` rounded in order, each with the feedback of those before.

    Args:
        feedback: ``M + I`` of :func:`feedback_matrix`.
        round_column: ``(k, values (p,))`` to rounded values (p,).
        begin: called at every multiple of ``block`` with that column's number and the next ``block`` columns as they would best be,
            real-valued, given the errors so far; a grid can be fitted to them.
    """
    rounded, error = torch.empty_like(weight), torch.zeros_like(weight)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        within = feedback[start:stop, start:stop]
        carried = error[:, :start] @ feedback[:start, start:stop]
        if begin is not None:
            # with eta = 0 inside the block, E_block (M + I)_block = -carried
            begin(start, weight[:, start:stop] + torch.linalg.solve_triangular(within, carried, upper=True, left=False, unitriangular=True))
        target = weight[:, start:stop] + carried
        own = error[:, start:stop]
        for k in range(stop - start):
            wanted = torch.addmv(target[:, k], own[:, :k], within[:k, k]) if k else target[:, 0]
            rounded[:, start + k] = round_column(start + k, wanted)
            own[:, k] = weight[:, start + k] - rounded[:, start + k]
    return rounded
