"""Quantisers by the names and settings of the bench's compression methods: ``compress(model, method("gptq", bits=3))``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tracking.errors import UserError, unknown
from workbench.llm.low_rank import Residual
from workbench.llm.packed import Packed

OF_A_RUN = {
    "budget": "budget", "sequences": "calibration", "length": "calibration", "output_errors": "calibration", "block_steps": "tuning",
    "block_lr": "tuning", "steps": "tune_model()", "tune_lr": "tune_model()", "tune_batch": "tune_model()", "report_every": "progress"}
"""Settings of a run that are no quantiser's, with what the library has in their place."""


def method(name: str, **settings: Any) -> Callable[..., Packed]:
    """The quantiser of a compression method, for :func:`workbench.llm.compress`.

    Args:
        name: such as ``rtn``, ``gptq`` or ``reallm``; ``workbench list`` shows all.
        settings: those of the method that concern one matrix, such as ``bits``, ``group_size`` and ``rank``; ``workbench describe
            gptq`` shows them with their defaults.
    """
    from workbench.method import Context
    from workbench.params import parse
    from workbench.registry import load_method, methods

    there = [entry.id for entry in methods().values() if entry.family == "compression"]
    if name not in there:
        raise unknown("compression method", name, there)
    for setting in settings:
        if setting in OF_A_RUN:
            raise UserError(f"{setting} is a setting of a run and not of {name}'s quantiser; the library has `{OF_A_RUN[setting]}`.")
    kind = load_method(name)
    params = parse(kind.Params, settings, name)
    quantiser = kind(params).quantiser(None, Context(torch.device("cpu"), 0))
    # one that plans has a low-rank part and a magnitude of its own
    if hasattr(quantiser, "plan") or not (params.rank or params.magnitude):
        return quantiser
    return Residual(quantiser, params.rank, params.magnitude)
