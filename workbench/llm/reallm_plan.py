"""A shape of ReALLM for each matrix: every candidate is tried on every matrix, and the budget is shared out exactly.

That matrices get different shapes is the paper's principle (Bedin et al., arXiv:2405.13155); the candidates, the error that is added up
and the test of smoothness are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.llm.budget import Option, allocate
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


def plan(candidates: Sequence[ReALLM], matrices: Iterable[tuple[str, Tensor]], budget: float) -> dict[str, ReALLM]:
    """The candidates with the least sum of ``||W - W'||^2 / ||W||^2`` over all matrices, within ``budget`` bits a weight over all.

    Bits are those of the stored tensors. Whether columns are ordered is fixed in the trial, so that the final
    matrix has exactly these. A candidate that needs statistics is tried without them.

    Raises:
        UserError: the budget is below the smallest reachable, which is named.
    """
    names, options, shapes, count = [], [], [], 0
    for name, weight in matrices:
        tried = [trial for c in candidates if _worth_trying(c, weight) for trial in [_trial(c, name, weight)]]
        names.append(name)
        options.append([option for option, _ in tried])
        shapes.append([shape for _, shape in tried])
        count += weight.numel()
    least = sum(min(o.bits for o in row) for row in options if row) / max(count, 1)
    if all(options) and int(budget * count) < least * count:
        raise UserError(f"A budget of {budget:g} bits a weight cannot be met: the smallest that the {len(candidates)} candidates reach "
                        f"is {least:.3f}.")
    return {name: row[i] for name, row, i in zip(names, shapes, allocate(options, int(budget * count)), strict=True)}


def _trial(candidate: ReALLM, name: str, weight: Tensor) -> tuple[Option, ReALLM]:
    weight = weight.detach().float()
    generator = torch.Generator().manual_seed(derive_seed(0, "plan", name))
    packed = replace(candidate, turns=min(candidate.turns, TURNS), weighting="none")(weight, None, generator)
    energy = float(weight.square().sum(dtype=torch.float64))
    error = float((weight - packed.dequantise()).square().sum(dtype=torch.float64)) / energy if energy > 0 else 0.0
    fixed = replace(candidate, permute="always" if "permutation" in packed.tensors else "never")
    return Option(sum(packed.bits().values()), error), fixed


def _worth_trying(candidate: ReALLM, weight: Tensor) -> bool:
    """Networks cost minutes and win only on matrices with a pattern."""
    return not isinstance(candidate.code, Autoencoder) or smoothness(permute(weight.float(), order_columns(weight))) < SMOOTH
