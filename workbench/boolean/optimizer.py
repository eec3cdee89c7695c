"""The Boolean optimiser: weights that turn by accumulated votes, without latent weights.

BOLD (Nguyen et al., NeurIPS 2024, arXiv:2405.16339), section 3.3 and Eqs. 9-11, in +-1 units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.boolean._flip_optimizer import FlipOptimizer

INT16_TOP = 32767
INT16_RANGE = 8.0  # thresholds: room for votes to pile up on the side of the weight, at steps of 2.4e-4

# Weights a thread handles in one go: what is read and written stays in its second-level cache, so main memory is crossed once.
CHUNK = 65_536
EXACT = 2**24  # float32 counts exactly up to here


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat parts of tensors of one shape: cache-sized on a CPU; whole, if need be, where their layouts are not plain."""
    if not all(t.is_contiguous() for t in tensors):
        yield tensors
        return
    size = CHUNK * torch.get_num_threads() if tensors[0].device.type == "cpu" else EXACT
    yield from zip(*(t.view(-1).split(size) for t in tensors), strict=True)


class BooleanOptimizer(FlipOptimizer):
    """Boolean optimiser (BOLD, Eqs. 9-11): accumulate votes, turn a weight and forget when they pass a threshold.

    With the weight signal ``q`` in ``.grad`` (positive: the loss grows with ``w``), a step is, per weight::

        m <- beta m + lr q
        if m w >= threshold:   w <- -w,  m <- 0
        beta <- share of the tensor's weights that did not turn          (plasticity)

    ``q`` is a sum over the batch of ``dloss/ds`` times input, so lr is tied to the loss's reduction: the paper's 150 (with batch norm) and
    12 (without) go with cross-entropy, for which we read its mean. No flip in some hundred steps: lr is too small; more than about one
    weight in a hundred a step: too large.

    Memory: 1 bit a weight and the accumulator. That is not nothing: 32 bits, or 16.

    Args:
        params: Boolean parameters or groups of them (:func:`split_parameters`); ``named_parameters`` give the reports names.
        lr: accumulation rate eta.
        beta: ``"plasticity"``, or a fixed factor in [0, 1].
        threshold: of ``|m|`` (1 in the authors' analysis; Eq. 9 prints none).
        clip: bound of ``|m|``, applied before the flip test; weights that are right else gather votes without end.
        stochastic: turn with probability ``|m| / (2 threshold)``, at most 1, and forget either way (assumption A6 of appendix A.2).
        accumulator: ``"float32"``, or ``"int16"``: fixed point over ``[-clip, clip]``, 8 thresholds where there is no clip, rounded
            stochastically, without bias, so that votes smaller than a step (range / 32767) are not lost. Ours.
        generator: source of draws, on the parameters' device. Without one: our own with seed 0, so that replicas agree.

    Raises :class:`tracking.errors.UserError` for parameters that are not +-1 and options out of range.
    """

    accumulators = ("m",)

    def __init__(
        self, params: Iterable[Any], lr: float, beta: Literal["plasticity"] | float = "plasticity", threshold: float = 1.0,
        clip: float | None = None, stochastic: bool = False, accumulator: Literal["float32", "int16"] = "float32",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, dict(lr=lr, beta=beta, threshold=threshold, clip=clip, stochastic=stochastic, accumulator=accumulator),
                         generator)

    def _begin(self, w: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["m"] = torch.zeros_like(w, dtype=getattr(torch, group["accumulator"]))
        state["beta"] = torch.ones((), device=w.device)

    def _turn(self, w: Tensor, q: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta = state["beta"] if group["beta"] == "plasticity" else group["beta"]
        counts = [self._vote(*part, beta, group) for part in _parts(w, q, state["m"])]
        flips = counts[0] if len(counts) == 1 else torch.stack(counts).double().sum()
        state["beta"].copy_(1 - flips / w.numel())
        return flips

    def _vote(self, w: Tensor, q: Tensor, stored: Tensor, beta: Tensor | float, group: dict[str, Any]) -> Tensor:
        """The step of the class's docstring on a part of the weights; returns the number of flips, a 0-d tensor."""
        threshold, fixed_point = group["threshold"], stored.dtype == torch.int16
        m = stored * _resolution(group) if fixed_point else stored
        m.mul_(beta).add_(q, alpha=group["lr"])
        if group["clip"] is not None:
            m.clamp_(-group["clip"], group["clip"])
        # masks as floats, 1 and 0: on a CPU several times as fast as booleans
        hit = flip = (m * w).ge_(threshold)
        if group["stochastic"]:
            flip = self._uniform(w).lt_(m.abs().div_(2 * threshold)).mul_(hit)
        count = flip.sum()
        # most parts have no flip, once training settles; to ask a GPU would mean to wait for it
        if group["stochastic"] or count.device.type != "cpu" or count:
            w.addcmul_(w, flip.to(w.dtype), value=-2)
            m.addcmul_(m, hit, value=-1)
        if fixed_point:
            stored.copy_(m.div_(_resolution(group)).add_(self._uniform(w)).floor_().clamp_(-INT16_TOP, INT16_TOP))
        return count

    @torch.no_grad()
    def accumulator(self, p: nn.Parameter) -> Tensor:
        """Accumulator ``m`` of ``p`` in float32, of its shape; zeros before its first step."""
        state = self.state.get(p)
        if not state:
            return torch.zeros_like(p, dtype=torch.float32)
        m = state["m"]
        if m.dtype == torch.float32:
            return m.clone()
        return m * next(_resolution(g) for g in self.param_groups if any(p is x for x in g["params"]))


def _resolution(group: dict[str, Any]) -> float:
    """What one step of the int16 accumulator stands for."""
    return (group["clip"] or INT16_RANGE * group["threshold"]) / INT16_TOP


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of ``model`` that require signals, as (Boolean, real); a parameter shared by layers appears once."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return ([p for p in trained if getattr(p, "is_boolean", False)], [p for p in trained if not getattr(p, "is_boolean", False)])
