"""Presets: every declared setting can be put into its form, and what is said of the two is what tells them apart."""

from __future__ import annotations

import pytest

from tests.conftest import TOY
from workbench import registry
from workbench.explorer import presets
from workbench.explorer.panel import Explorer
from workbench.params import parse

PUBLISHED = '''    example = {"task": "toy", "params": {"steps": 5}}
    published = {"source": "table 1", "task": "toy", "params": {"steps": 90, "lr": 0.3}, "task_params": {"dim": 7}}
'''


@pytest.mark.parametrize("id", [*registry.methods()])
def test_every_setting_fits_its_form_and_its_task(id):
    method = registry.load_method(id)
    both = presets.of_method(method)
    for name, preset in both.items():
        assert preset.label
        parse(method.Params, preset.params, id)
        if preset.task is not None:
            assert registry.task_entry(preset.task).literals.get("kind", "classification") in method.kinds
            parse(registry.load_task(preset.task).Params, preset.task_params, preset.task)
        assert presets.in_words(method, name, preset.task)
    assert (both["paper"].label == "declared defaults") == (not method.published)
    assert set(method.published) <= {"source", "task", "params", "task_params"}


def test_a_paper_setting_and_the_way_back(toy):
    toy.write_text(TOY.replace('    example = {"task": "toy", "params": {"steps": 5}}\n', PUBLISHED))
    ex = Explorer(tracking="off")
    ex.choose("toy")
    said = ex.toolbar.start
    assert "starts from the method" in said.value
    assert "steps 90; lr 0.3" in said.value
    ex.toolbar.preset.value = "paper"
    assert [label for label, _ in ex.toolbar.preset.options] == ["quick: a run of seconds", "paper: the authors' setting"]
    assert (ex.request().params, ex.request().task_params) == ({"steps": 90, "lr": 0.3}, {"dim": 7})
    assert "starts from table 1" in said.value
    assert "steps 5; lr 0.1" in said.value
    ex.set(steps=91)
    ex.reset()
    assert ex.request().params["steps"] == 90
    ex.preset("quick")
    assert ex.toolbar.preset.value == "quick"
    assert (ex.request().params, ex.request().task_params) == ({"steps": 5}, {})


def test_presets_that_are_the_same_are_told_so(toy):
    toy.write_text(TOY.replace('"params": {"steps": 5}}', '"params": {"steps": 20}}'))
    ex = Explorer(tracking="off")
    ex.choose("toy")
    assert "are the same" in ex.toolbar.start.value
    assert [label for label, _ in ex.toolbar.preset.options] == ["quick: a run of seconds", "declared defaults"]


def test_the_task_of_the_paper_is_chosen_unless_a_person_chose_one():
    ex = Explorer(tracking="off")
    ex.choose("gcn")
    assert ex.pickers.task.value == "sbm/node"
    ex.preset("paper")
    assert ex.pickers.task.value == "cora/node"
    assert "epochs 30" in ex.toolbar.start.value
    assert ex.forms["method"].check() == registry.load_method("gcn").Params()
    ex.choose("askewsgd")  # the preset stays, with the task that goes with it
    assert (ex.pickers.task.value, ex.toolbar.preset.value) == ("cifar10/vgg_small", "paper")
    ex.preset("quick")
    assert ex.pickers.task.value == "digits/mlp"
    ex.choose("askewsgd", "digits/cnn")
    ex.preset("paper")
    assert ex.pickers.task.value == "digits/cnn"
    assert "is for cifar10/vgg_small; the task chosen is another" in ex.toolbar.start.value
