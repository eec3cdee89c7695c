"""A shape of ReALLM for each matrix: every candidate is tried on every matrix, and the budget is shared out exactly.

That matrices get different shapes is the paper's principle (Bedin et al., arXiv:2405.13155); the candidates, the error that is added up
and the test of smoothness are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.budget import Option, allocate
from workbench.llm.matrix import check_finite
from workbench.llm.reallm_network import Autoencoder
from workbench.llm.vq.ordering import order_columns, permute, smoothness
from workbench.method import derive_seed

if TYPE_CHECKING:
    from workbench.llm.reallm import ReALLM

TURNS = 2
"""Turns of the alternation in a trial: the first ones make most of the difference."""
SMOOTH = 1.0
"""Roughness after ordering below which a network is tried at all; independent entries have 1.41 unordered."""
SHAPES = ((1, 4), (2, 2), (2, 4), (3, 2), (4, 2))
"""Bits and dimension of the default candidates."""
RANKS = (0, 8)


def default_candidates(method: ReALLM) -> tuple[ReALLM, ...]:
    """``method`` in all of ``SHAPES`` and ``RANKS``; a neural one, whose trials take minutes, as it is, beside these."""
    from workbench.llm.reallm_identity import VectorCode

    if isinstance(method.code, Autoencoder):
        identity = replace(method, code=VectorCode(), candidates=())
        return (replace(method, candidates=()), *default_candidates(identity))
    return tuple(replace(method, code=replace(method.code, bits=b, dim=d), rank=r, candidates=())
                 for b, d in SHAPES if b * d % method.code.stages == 0 for r in sorted({*RANKS, method.rank}))


Trials = MutableMapping[str, list[list[Any]]]
"""What was tried on each matrix, as JSON: number of the candidate, bits, error, whether columns are ordered."""


def plan(candidates: Sequence[ReALLM], matrices: Iterable[tuple[str, Tensor]], budget: float,
         trials: Trials | None = None) -> dict[str, ReALLM]:
    """The candidates with the least sum of ``||W - W'||^2 / ||W||^2`` over all matrices, within ``budget`` bits a weight over all.

    Bits are those of the stored tensors. Whether columns are ordered is fixed in the trial, so that the final
    matrix has exactly these. A candidate that needs statistics is tried without them.

    Args:
        trials: takes what is found on each matrix; matrices that are in it already are not tried again.

    Raises:
        UserError: the budget is no number, or below the smallest reachable, which is named; a weight is not finite.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not math.isfinite(budget):
        raise UserError(f"budget = {budget!r} is refused: it is a number of bits a weight, such as 3.5.")
    trials = {} if trials is None else trials
    options, count = {}, 0
    for name, weight in matrices:
        if name not in trials:
            check_finite(name, weight)
            trials[name] = [_trial(i, c, name, weight) for i, c in enumerate(candidates) if _worth_trying(c, weight)]
        options[name] = [Option(bits, error) for _, bits, error, _ in trials[name]]
        count += weight.numel()
    least = sum(min(o.bits for o in row) for row in options.values() if row)
    if all(options.values()) and int(budget * count) < least:
        raise UserError(f"A budget of {budget:g} bits a weight cannot be met: the smallest that the {len(candidates)} candidates reach "
                        f"is {math.ceil(1000 * least / count) / 1000:.3f}.")
    picked = zip(options, allocate([*options.values()], int(budget * count)), strict=True)
    return {name: _fixed(candidates, trials[name][i]) for name, i in picked}


def _fixed(candidates: Sequence[ReALLM], trial: Sequence[Any]) -> ReALLM:
    """The candidate of a trial, its columns ordered as it was found there."""
    number, _, _, ordered = trial
    return replace(candidates[number], permute="always" if ordered else "never")


def _trial(number: int, candidate: ReALLM, name: str, weight: Tensor) -> list[Any]:
    weight = weight.detach().float()
    generator = torch.Generator().manual_seed(derive_seed(0, "plan", name))
    packed = replace(candidate, turns=min(candidate.turns, TURNS), weighting="none")(weight, None, generator)
    energy = float(weight.square().sum(dtype=torch.float64))
    error = float((weight - packed.dequantise()).square().sum(dtype=torch.float64)) / energy if energy > 0 else 0.0
    return [number, sum(packed.bits().values()), error, "permutation" in packed.tensors]


def _worth_trying(candidate: ReALLM, weight: Tensor) -> bool:
    """Networks cost minutes and win only on matrices with a pattern."""
    return not isinstance(candidate.code, Autoencoder) or smoothness(permute(weight.float(), order_columns(weight))) < SMOOTH
