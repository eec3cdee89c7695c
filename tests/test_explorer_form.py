"""The explorer's form without a browser: controls, errors beside them, values that survive text and slider, pickers."""

from __future__ import annotations

import math
from typing import Any, Literal

import ipywidgets as w
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.explorer import fields
from workbench.explorer.form import Form
from workbench.params import Field, Params

few = settings(deadline=None, max_examples=30)  # an example builds a form of two dozen widgets


class Everything(Params):
    lr: float = Field(0.01, gt=0, le=100, description="rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="inertia")
    decay: float = Field(0.0, ge=0, le=1, description="shrinkage")
    shift: float = Field(-1.5, description="any number")
    steps: int = Field(10, ge=1, le=100_000, description="steps")
    layers: int = Field(2, ge=0, le=8, description="layers")
    base: Literal["adam", "sgd"] = Field("adam", description="rule")
    flag: bool = Field(False, description="flag")
    name: str = Field("x", description="name")
    epochs: tuple[int, ...] = Field((), description="epochs")
    words: tuple[str, ...] = Field(("a",), description="words")
    cap: float | None = Field(None, description="cap or nothing")


def everything(**start: Any) -> Form:
    return Form(Everything, "thing", start, lambda: None)


def test_controls_follow_the_declaration():
    form = everything()
    kinds = {name: type(f.control) for name, f in form.fields.items()}
    assert kinds == {**dict.fromkeys(Everything.model_fields, w.Text), "base": w.Dropdown, "flag": w.Checkbox}
    sliders = {name: type(f.slider) for name, f in form.fields.items() if f.slider is not None}
    assert sliders == {"lr": w.FloatLogSlider, "momentum": w.FloatSlider, "decay": w.FloatLogSlider, "steps": w.FloatLogSlider,
                       "layers": w.FloatSlider}
    assert [o[1] for o in form.fields["base"].control.options] == ["adam", "sgd"]
    for name, f in form.fields.items():
        for control in filter(None, (f.control, f.slider)):
            assert name in control.description
            assert control.tooltip
        assert f.slider is None or not f.slider.continuous_update  # a page would report each move of the code's, after what was typed since
        assert Everything.model_fields[name].description in f.note.value
    assert form.check() == Everything()


def test_form_starts_from_the_example_and_resets_to_it():
    form = everything(lr=0.5, epochs=[3, 4])
    assert form.changes() == {"lr": 0.5, "epochs": [3, 4]}
    form.set(lr=0.25, base="sgd", flag=True)
    assert form.changes() == {"lr": 0.25, "epochs": [3, 4], "base": "sgd", "flag": True}
    form.reset()
    assert form.changes() == {"lr": 0.5, "epochs": [3, 4]}


@pytest.mark.parametrize(("name", "text", "said"), [
    ("lr", "1e9", "Allowed: number, 0 < x <= 100"), ("lr", "nan", "finite"), ("lr", "fast", "valid number"), ("lr", "", "valid number"),
    ("steps", "1000000000", "Allowed: whole number, 1 <= x <= 100000"), ("steps", "2.5", "valid integer"),
    ("epochs", "1, two", "valid integer"),
])
def test_an_error_stands_beside_its_field_and_nothing_is_clamped(name, text, said):
    form = everything()
    form.fields[name].control.value = text
    assert form.fields[name].control.value == text
    assert form.check() is None
    assert set(form.errors) == {name}
    assert said in form.errors[name]
    note = form.fields[name].note.value
    assert "wb-bad" in note
    assert 'role="alert"' in note
    assert all("wb-bad" not in f.note.value for n, f in form.fields.items() if n != name)
    with pytest.raises(UserError, match=name):
        form.changes()


def test_the_value_in_use_is_shown_where_it_reads_differently():
    form = everything()
    form.fields["lr"].control.value = "3e-1"
    assert "uses 0.3" in form.fields["lr"].note.value
    form.fields["lr"].control.value = "0.3"
    assert "uses" not in form.fields["lr"].note.value


def test_a_rule_over_several_fields_is_shown_once():
    import pydantic

    class Pair(Params):
        low: int = Field(1, description="low")
        high: int = Field(2, description="high")

        @pydantic.model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    form = Form(Pair, "pair", {}, lambda: None)
    form.fields["low"].control.value = "3"
    assert "low must not exceed high" in form.rule.value
    assert set(form.errors) == {""}
    form.fields["high"].control.value = "3"
    assert form.check() == Pair(low=3, high=3)


@few
@given(value=st.floats(1e-5, 100, exclude_min=True))
def test_numbers_survive_text_and_slider(value):
    """What is set is what is used, bit for bit, although the slider beside it has 101 positions."""
    form = everything()
    form.set(lr=value)
    assert form.check().lr == value
    slider = form.fields["lr"].slider
    # a browser snaps the position to the grid of steps and reports its own rounding: nobody's wish
    snapped = slider.min + round((math.log10(slider.value) - slider.min) / slider.step) * slider.step
    slider.value = min(max(10.0**snapped * (1 + 1e-12), 10**slider.min), 10**slider.max)
    assert form.check().lr == value


@few
@given(position=st.integers(0, fields.STEPS), start=st.sampled_from([1e-5, 0.01, 100.0]))
def test_a_moved_slider_writes_its_number_into_the_box(position, start):
    form = everything(lr=start)
    slider = form.fields["lr"].slider
    place = slider.min + position * slider.step
    moved = abs(place - math.log10(start)) > 0.75 * slider.step
    slider.value = min(max(10**place, 10**slider.min), 10**slider.max)
    # three digits are written
    assert form.check().lr == (pytest.approx(10**place, rel=5e-3) if moved else start)


def test_the_left_end_of_a_slider_from_zero_up_is_zero():
    """A decay between 0 and 1 spans decades, and what most people want of it is none at all."""
    form = everything()
    slider = form.fields["decay"].slider
    assert (10**slider.min, 10**slider.max) == (pytest.approx(1e-6), 1)
    assert "0, then 1e-06 to 1" in slider.tooltip
    slider.value = 10 ** (slider.min + 50 * slider.step)
    assert form.check().decay == pytest.approx(1e-3)
    slider.value = 10**slider.min
    assert form.fields["decay"].control.value == "0.0"
    slider.value = 10 ** (slider.min + slider.step)
    assert form.check().decay == pytest.approx(10**-5.94, rel=5e-3)
    form.fields["lr"].slider.value = 10 ** form.fields["lr"].slider.min  # zero is refused here, so it is no end
    assert form.check().lr == pytest.approx(1e-5)
    form.fields["steps"].slider.value = 1
    assert form.check().steps == 1


def test_values_of_an_earlier_run_are_shown_even_where_they_fit_no_more():
    form = everything(lr=0.5, epochs=[3, 4])
    form.set(momentum=0.5)
    told = form.take({"lr": 0.25, "steps": 0, "base": "gone", "old": [1, 2], "words": ["b", "c"]})
    assert form.fields["steps"].control.value == "0"
    assert set(form.errors) == {"steps"}
    assert told == ["Thing has no parameter 'old' any more, which was 1, 2.",
                    "base was gone, which cannot be chosen here; on the form it is adam."]
    form.fields["steps"].control.value = "7"
    assert form.changes() == {"lr": 0.25, "steps": 7, "words": ["b", "c"]}  # what the run does not say is at its default
    form.reset()
    assert form.changes() == {"lr": 0.5, "epochs": [3, 4]}


@few
@given(values=st.fixed_dictionaries({
    "shift": st.floats(allow_nan=False, allow_infinity=False), "name": st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"])),
    "epochs": st.lists(st.integers(0, 10**6)), "words": st.lists(st.from_regex("[a-z]{1,5}", fullmatch=True)),
    "cap": st.none() | st.floats(allow_nan=False, allow_infinity=False), "flag": st.booleans(), "base": st.sampled_from(["adam", "sgd"]),
}))
def test_text_of_a_control_reads_back_as_the_value(values):
    form = everything()
    form.set(**values)
    used = form.check().model_dump(mode="json")
    assert {name: used[name] for name in values} == values


def test_verbs_refuse_and_leave_the_form_alone(ex):
    before = ex.python()
    for wrong, said in (({"lr": -1.0}, "lr = -1.0"), ({"stepz": 3}, "Did you mean 'steps'"), ({"steps": 3, "seed": -1}, "seed = -1"),
                        ({"device": "tpu"}, "device"), ({"task_params": {"size": 3}}, "size")):
        with pytest.raises(UserError, match=said):
            ex.set(**wrong)
        assert ex.python() == before
    with pytest.raises(UserError, match="Unknown method"):
        ex.choose("toi")
    with pytest.raises(UserError, match="runs on tasks of kind toy"):
        ex.choose("toy", "digits/mlp")


def test_only_tasks_of_the_methods_kind_are_offered(ex, toy):
    twin = toy.read_text().replace('dataset, title, kind, embedded = "toy"', 'dataset, title, kind, embedded = "other"').replace(
        '"A point in the plane", "toy"', '"Another", "strange"').split("@dataclass")[0]
    (toy.parent / "other.py").write_text(twin)
    ex.choose("toy")
    assert list(ex.pickers.task.options) == ["toy"]
    assert "Noisy descent on a quadratic" in ex.pickers.about.value


def test_family_narrows_the_methods(ex):
    ex.pickers.family.value = "testing"
    assert [value for _, value in ex.pickers.method.options] == ["toy"]
    assert ex.pickers.method.value == "toy"
    ex.choose("toy")
    ex.pickers.family.value = "all families"
    assert len(ex.pickers.method.options) > 1


def test_a_method_that_cannot_be_imported_is_said_and_the_explorer_goes_on(ex, toy):
    (toy.parent / "broken.py").write_text(
        'import no_such_module\nclass Broken:\n    """Broken."""\n    id, title, family, kinds = "broken", "Broken", "testing", ("toy",)\n')
    ex.choose("broken")
    assert "no_such_module" in ex.toolbar.status.value
    assert ex.toolbar.run.disabled
    ex.choose("toy")
    assert "no_such_module" not in ex.toolbar.status.value
    assert not ex.toolbar.run.disabled
