"""Parameters: the bounds on each declared field hold, and what is refused is refused in words a person can act on.

The cases are generated from the declarations of every registered method and task, so a new one is covered by existing.
"""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

import pydantic
import pytest

from tracking.errors import UserError
from workbench import registry
from workbench.params import Field, Params, allowed, bounds, choices, from_text, parse, table

OWNERS = {f"method {id}": (registry.load_method, id) for id in registry.methods()} | {
    f"task {entry.cls}": (registry.load_task, id) for id, entry in registry.tasks().items()
}
TINY = 1e-9


@functools.cache
def declared(owner: str) -> type[Params]:
    """The parameters of a method or a task; imported when a test asks, for every process that shares the tests collects them all."""
    load, id = OWNERS[owner]
    return load(id).Params


def refused(owner: str, name: str, value: Any) -> str:
    """The message for one wrong value; it must be one line that names the field, the value and what is allowed."""
    with pytest.raises(UserError) as caught:
        parse(declared(owner), {name: value}, owner)
    text = str(caught.value)
    assert "\n" not in text, "one mistake, one line"
    assert text.startswith(f"{owner}: {name} = {value!r} is refused")
    assert f"Allowed: {allowed(declared(owner).model_fields[name])}." in text
    return text


def message(owner: str, name: str, value: Any) -> str:
    """What is said about a value: nothing when all is well; a rule over several fields may have a word about a legal one."""
    try:
        parse(declared(owner), {name: value}, owner)
    except UserError as error:
        return str(error)
    return ""


def step(kind: type, bound: float) -> float:
    """A distance that surely leads over a bound of this kind."""
    return 1 if kind is int else max(TINY, abs(bound) * 1e-6)


@pytest.mark.parametrize("owner", OWNERS)
def test_every_field_is_described_and_its_default_is_valid(owner, subtests):
    for name, field in declared(owner).model_fields.items():
        with subtests.test(name):
            assert field.description, "a field without a description makes a form without words"
            assert not field.description.endswith(".")
            default = field.get_default(call_default_factory=True)
            assert getattr(parse(declared(owner), {name: default}, owner), name) == default


@pytest.mark.parametrize("owner", OWNERS)
def test_numbers_are_held_to_their_bounds(owner, subtests):
    for name, field in declared(owner).model_fields.items():
        if field.annotation in (int, float):
            with subtests.test(name):
                kind, limits = field.annotation, bounds(field)
                for sign, bound in limits.items():
                    outwards = -1 if sign in ("gt", "ge") else 1
                    beyond = kind(bound + outwards * step(kind, bound)) if sign in ("ge", "le") else kind(bound)
                    text = refused(owner, name, beyond)
                    figure = str(bound) if isinstance(bound, int) else f"{bound:g}"
                    assert figure in text.split("Allowed:")[1], "the bound is named"
                    inside = kind(bound) if sign in ("ge", "le") else kind(bound - outwards * step(kind, bound))
                    at_bound = message(owner, name, inside)
                    # a rule between fields may forbid it beside the others' defaults: then it names another field
                    others = set(declared(owner).model_fields) - {name}
                    assert "is refused" not in at_bound or others & set(re.findall(r"\w+", at_bound)), at_bound
                for wrong in (math.nan, math.inf, -math.inf):
                    # nan is not equal to itself, so its message is looked at here
                    with pytest.raises(UserError, match=f"{name} = {wrong!r} is refused"):
                        parse(declared(owner), {name: wrong}, owner)
                for wrong in ("3", "", None, [1], True, "nan"):
                    if wrong == [1]:
                        with pytest.raises(UserError, match=rf"{name} = \(1,\) is refused"):
                            parse(declared(owner), {name: wrong}, owner)
                    else:
                        refused(owner, name, wrong)


@pytest.mark.parametrize("owner", OWNERS)
def test_booleans_are_booleans(owner, subtests):
    for name, field in declared(owner).model_fields.items():
        if field.annotation is bool:
            with subtests.test(name):
                for value in (True, False):
                    assert getattr(parse(declared(owner), {name: value}, owner), name) is value
                for wrong in ("false", "true", "False", "yes", 0, 1, None, ""):
                    refused(owner, name, wrong)


@pytest.mark.parametrize("owner", OWNERS)
def test_options_are_closed(owner, subtests):
    for name, field in declared(owner).model_fields.items():
        if choices(field):
            with subtests.test(name):
                options = choices(field)
                for wrong in {None, 0, "nothing like it"} - set(options):
                    text = refused(owner, name, wrong)
                    assert all(repr(o) in text for o in options)
                longest = max((o for o in options if isinstance(o, str)), key=len, default="")  # numbers have no slip of the finger
                if len(longest) >= 4:  # a slip of the finger
                    assert f"Did you mean {longest!r}?" in refused(owner, name, longest[:-1])


@pytest.mark.parametrize("owner", OWNERS)
def test_misspelt_names_are_refused_with_the_nearest(owner):
    model = declared(owner)
    for name in model.model_fields:
        wrong = name + "x"
        with pytest.raises(UserError) as caught:
            parse(model, {wrong: 1}, owner)
        assert f"has no parameter {wrong!r}" in str(caught.value)
        assert f"Did you mean {name!r}?" in str(caught.value)
        assert all(known in str(caught.value) for known in model.model_fields)


@pytest.mark.parametrize("owner", OWNERS)
def test_round_trip_through_python_and_json(owner):
    """What a run records is what a run can be asked for with."""
    p = parse(declared(owner), None, owner)
    assert parse(declared(owner), p.model_dump(), owner) == p
    assert parse(declared(owner), json.loads(json.dumps(p.model_dump(mode="json"))), owner) == p
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(p, next(iter(declared(owner).model_fields)), 1)


@pytest.mark.parametrize("owner", OWNERS)
def test_the_command_line_reads_what_is_printed(owner):
    """Every default, written as text, comes back as itself."""
    model = declared(owner)
    p = parse(model, None, owner)
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in p.model_dump(mode="json").items()}
    assert parse(model, from_text(model, texts), owner) == p


class Rules(Params):
    """Fields of every kind, and a rule over two of them."""

    count: int = Field(1, ge=0, lt=16_777_217, description="a number of things")
    rate: float = Field(0.5, gt=0, le=1, description="a share")
    low: float = Field(0.0, description="lower end")
    high: float = Field(1.0, description="upper end")
    name: str = Field("a", description="text")
    steps: tuple[int, ...] = Field((), description="moments")
    pairs: tuple[tuple[int, float], ...] = Field((), description="moments and figures")

    @pydantic.model_validator(mode="after")
    def _order(self) -> Rules:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} must not exceed high = {self.high}")
        return self


def test_rules_over_several_fields_speak_for_themselves():
    with pytest.raises(UserError) as caught:
        parse(Rules, {"low": 2, "high": 1}, "method 'rules'")
    assert str(caught.value) == "method 'rules': low = 2.0 must not exceed high = 1.0."


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        parse(Rules, {"count": -1, "rate": 2, "nmae": "b"}, "it")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert [any(word in line for line in lines) for word in ("count = -1", "rate = 2", "Did you mean 'name'?")] == [
        True
    ] * 3


def test_integers_serve_as_floats_and_lists_as_tuples_but_nothing_else_is_bent():
    p = parse(Rules, {"rate": 1, "steps": [1, 2], "pairs": [[1, 2]]}, "it")
    assert (p.rate, type(p.rate), p.steps, p.pairs) == (1.0, float, (1, 2), ((1, 2.0),))
    for wrong in ({"count": 1.0}, {"steps": [1.5]}, {"steps": "12"}, {"steps": 1}, {"name": 3}, {"pairs": [[1]]}):
        with pytest.raises(UserError, match="is refused"):
            parse(Rules, wrong, "it")


@pytest.mark.parametrize("wrong", ["epochs=3", ["epochs"], 3, {1: 2}])
def test_what_is_no_mapping_of_names_is_refused(wrong):
    with pytest.raises(UserError):
        parse(Rules, wrong, "it")


def test_bounds_are_written_in_full():
    assert allowed(Rules.model_fields["count"]) == "whole number, 0 <= x < 16777217"
    assert allowed(Rules.model_fields["rate"]) == "number, 0 < x <= 1"
    assert allowed(Rules.model_fields["low"]) == "number"
    assert allowed(Rules.model_fields["name"]) == "text"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5e-3", -0.0025),
        ("true", True),
        ("false", False),
        ("[1, 2]", [1, 2]),
        ("null", None),
        ("abc", "abc"),
        ("", ""),
        ("True", "True"),
        ('"3"', "3"),
        ("1_000", "1_000"),
        ("[1,", "[1,"),
    ],
)
def test_text_is_json_where_it_is_json(text, value):
    read = from_text(Rules, {"rate": text})["rate"]
    assert read == value
    assert type(read) is type(value)


def test_text_for_a_text_field_is_left_alone():
    assert from_text(Rules, {"name": "3"}) == {"name": "3"}
    assert from_text(Rules, {"unknown": "3"}) == {"unknown": 3}  # refused later, by name
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        with pytest.raises(UserError, match="finite"):
            parse(Rules, from_text(Rules, {"rate": text}), "it")


def test_the_table_tells_what_the_declaration_tells():
    rows = {row["name"]: row for row in table(Rules)}
    assert list(rows) == list(Rules.model_fields)
    assert rows["rate"] == {"name": "rate", "default": 0.5, "allowed": "number, 0 < x <= 1", "description": "a share"}
