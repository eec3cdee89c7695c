"""Typed parameters: one declaration drives the form, the command line, the papermill check, MLflow and the errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import annotated_types
import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Field  # re-exported: method files import it from here

from tracking.errors import UserError, did_you_mean


class Params(BaseModel):
    """Base of every parameter model: frozen, strict, closed.

    Strict means that ``"false"`` is no boolean, ``"3"`` no integer and NaN no number, whoever injected them. An
    integer is accepted where a float is asked for. Unknown names are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


P = TypeVar("P", bound=Params)


def parse(model: type[P], values: Mapping[str, Any] | None, owner: str) -> P:
    """Validate ``values`` and return the parameter object.

    ``owner`` names what the parameters belong to, for the message. Raises :class:`tracking.errors.UserError` naming every
    wrong field with the value given and the bound or the nearest valid name.
    """
    if values is not None and not isinstance(values, Mapping):
        raise UserError(f"Parameters of {owner} must be a mapping of names to values, not {values!r}.")
    try:
        # JSON has no tuples, and papermill, the command line and a form all speak JSON
        return model.model_validate({k: _tuples(v) for k, v in (values or {}).items()})
    except pydantic.ValidationError as error:
        lines = [_explain(model, owner, e) for e in error.errors()]
        raise UserError("\n".join(lines)) from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def from_text(model: type[Params], pairs: Mapping[str, str]) -> dict[str, Any]:
    """Turn ``name=text`` pairs of a command line into values: JSON where the text is JSON, else the text itself."""
    values: dict[str, Any] = {}
    for name, text in pairs.items():
        try:
            values[name] = json.loads(text, parse_constant=float)
        except ValueError:
            values[name] = text
        field = model.model_fields.get(name)
        if field is not None and field.annotation is str:
            values[name] = text
    return values


def bounds(field: pydantic.fields.FieldInfo) -> dict[str, float]:
    """The numeric limits of a field as ``{"gt" | "ge" | "lt" | "le": number}``."""
    found: dict[str, float] = {}
    for item in field.metadata:
        for kind, cls in (("gt", annotated_types.Gt), ("ge", annotated_types.Ge),
                          ("lt", annotated_types.Lt), ("le", annotated_types.Le)):
            if isinstance(item, cls):
                found[kind] = getattr(item, kind)
    return found


def allowed(field: pydantic.fields.FieldInfo) -> str:
    """What a field accepts, in words: ``number, 0 < x <= 10`` or ``one of 'sgd', 'adam'``."""
    options = choices(field)
    if options is not None:
        return "one of " + ", ".join(repr(o) for o in options)
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    kind = names.get(field.annotation, str(field.annotation).replace("typing.", ""))
    limit = bounds(field)
    # whole bounds in full: %g would round 16777217
    text = {k: str(v) if isinstance(v, int) else f"{v:g}" for k, v in limit.items()}
    low = next((f"{text[k]} {sign} " for k, sign in (("gt", "<"), ("ge", "<=")) if k in limit), "")
    high = next((f" {sign} {text[k]}" for k, sign in (("lt", "<"), ("le", "<=")) if k in limit), "")
    return f"{kind}, {low}x{high}" if low or high else kind


def choices(field: pydantic.fields.FieldInfo) -> tuple[Any, ...] | None:
    """The options of a ``Literal`` field, or ``None``."""
    from typing import Literal, get_args, get_origin

    return get_args(field.annotation) if get_origin(field.annotation) is Literal else None


def table(model: type[Params]) -> list[dict[str, Any]]:
    """One row a parameter: name, default, what is allowed, description. The one source of every help text."""
    return [
        {"name": name, "default": field.get_default(call_default_factory=True), "allowed": allowed(field),
         "description": field.description or ""}
        for name, field in model.model_fields.items()
    ]


def _explain(model: type[Params], owner: str, error: Mapping[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return (f"{owner} has no parameter {name!r}.{did_you_mean(name, model.model_fields)} "
                f"Known: {', '.join(model.model_fields)}.")
    if name not in model.model_fields:  # a rule over several fields
        return f"{owner}: {error['msg'].removeprefix('Value error, ')}."
    where = ".".join(str(p) for p in error["loc"])
    given = error["input"]
    words = [option for option in choices(model.model_fields[name]) or () if isinstance(option, str)]
    near = did_you_mean(given, words) if isinstance(given, str) else ""
    return f"{owner}: {where} = {given!r} is refused ({error['msg'].lower()}). Allowed: {allowed(model.model_fields[name])}.{near}"
