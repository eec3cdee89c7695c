"""Codecs by name, for parameters and tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

from tracking.codecs.base import Codec
from tracking.codecs.dense import Dense
from tracking.codecs.lattice import Lattice
from tracking.codecs.levels import Levels
from tracking.codecs.mask import Mask
from tracking.codecs.natural import Natural
from tracking.codecs.power_sgd import PowerSGD
from tracking.codecs.qsgd import QSGD
from tracking.codecs.sign import Sign
from tracking.codecs.sparse import RandomK, TopK
from tracking.codecs.ternary import Ternary
from tracking.codecs.uniform import Uniform
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError, did_you_mean, unknown

CodecName = Literal[
    "dense_fp32",
    "dense_fp16",
    "dense_bf16",
    "levels",
    "int8",
    "int4",
    "qsgd",
    "sign",
    "top_k",
    "random_k",
    "natural",
    "ternary",
    "terngrad",
    "lattice",
    "mask",
    "power_sgd",
    "vq",
]
"""For a method's parameter: ``codec: CodecName = "dense_fp32"``, or a Literal of some of these names."""

_FIXED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dense_fp32": (Dense, {"form": "fp32"}),
    "dense_fp16": (Dense, {"form": "fp16"}),
    "dense_bf16": (Dense, {"form": "bf16"}),
    "levels": (Levels, {}),
    "int8": (Uniform, {"bits": 8}),
    "int4": (Uniform, {"bits": 4}),
    "qsgd": (QSGD, {}),
    "sign": (Sign, {}),
    "top_k": (TopK, {}),
    "random_k": (RandomK, {}),
    "natural": (Natural, {}),
    "ternary": (Ternary, {"rounding": "exact"}),
    "terngrad": (Ternary, {"rounding": "stochastic"}),
    "lattice": (Lattice, {}),
    "mask": (Mask, {}),
    "power_sgd": (PowerSGD, {}),
    "vq": (VectorQuantiser, {}),
}


def codec_names() -> tuple[str, ...]:
    """Every name that :func:`codec` knows."""
    return get_args(CodecName)


def codec(name: str, **options: Any) -> Codec | PowerSGD:
    """The codec of that name with these options, those of its class; ``power_sgd`` gives the factory whose
    ``of(tensor)`` is a codec.

    An unknown name or option, or a value out of range, raises :class:`tracking.errors.UserError`.
    """
    if name not in _FIXED:
        raise unknown("codec", name, _FIXED)
    make, fixed = _FIXED[name]
    parameters = inspect.signature(make).parameters
    allowed = [p for p in parameters if p not in fixed]
    for option in options:
        if option not in allowed:
            raise UserError(
                f"The codec {name!r} has no option {option!r}.{did_you_mean(option, allowed)} "
                f"It takes: {', '.join(allowed) or 'none'}."
            )
    for option in allowed:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise UserError(f"The codec {name!r} needs the option {option!r}.")
    try:
        return make(**fixed, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"The codec {name!r} cannot be made: {error}") from None
