"""Modelled joules of runs: what is reported, kept, shared and worked out anew, and the formats that methods declare for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.test_contract import lasting, ran
from tracking.energy_model import PrecisionPlan, estimate, from_json, trace
from tracking.energy_model.passes import weighted_ends
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench import modelled, registry
from workbench.method import Context
from workbench.modelled import METRIC, Choice, chosen, joule_hardware, remodelled, reported_for
from workbench.runs import Run, run
from workbench.spec import resolve

SMALL = {"train_size": 200, "test_size": 100}
OTHERS = [Choice("v100_like"), Choice("cpu_like", "unfused"), Choice(scenario="without_update")]
EXACT = 1e-12  # a sum of a few dozen products in another order: some tens of roundings of 1e-16


def made(method: str = "binaryconnect", seed: int = 0, **params) -> Run:
    """A run of a fraction of a second; the batch of 60 does not divide the 200 samples of an epoch."""
    return run(method, "digits/mlp", {"epochs": 2, "batch_size": 60, "report_every": 1, **params}, task_params=SMALL, seed=seed, threads=1,
               device="cpu", tracking="off", progress=False)


def toy_run() -> Run:
    return run("toy", "toy", {"steps": 4}, threads=1, device="cpu", tracking="off", progress=False)


def with_network(toy, network: str) -> None:
    """Have the plugin declare that it trains ``network`` in fp32, on batches of 5 samples with 3 values."""
    declares = ("    def modelled(self, state, task):\n"
                "        from tracking.energy_model.plan import fp32\n"
                f"        return {network}, (5, 3), fp32()\n\n")
    toy.write_text(toy.read_text().replace("    def step(self", declares + "    def step(self"))


@pytest.fixture
def no_tracing(monkeypatch):
    def fail(*_):
        raise AssertionError("traced once more")

    return lambda: monkeypatch.setattr(modelled, "_trace", fail)


# --- what a run reports -------------------------------------------------------------------------------------


def test_joules_are_those_of_a_sample_times_the_samples():
    """Beside an estimate of a network of one's own: neither its weights nor the file in between matter."""
    frame = made("full_precision", base="sgd").frame()
    job = resolve("full_precision", "digits/mlp", {}, device="cpu", threads=1)
    job.task.setup(ctx := Context(device=torch.device("cpu"), seed=9))
    own = estimate(job.task.build_model(ctx), (60, *job.task.sample_shape), PrecisionPlan("own").with_updates("momentum"), "ascend_like")
    assert frame["train/samples"].iloc[-1] == 2 * SMALL["train_size"]
    np.testing.assert_allclose(frame[METRIC], own.total / 60 * frame["train/samples"], rtol=EXACT)
    assert len(frame) == 8


def test_formats_matter():
    """One-bit weights make the product and its traffic cheaper; the scenario that multiplies them in full width takes some of that back."""
    binary, dense = made(), made("full_precision")
    assert binary.metrics[METRIC] < dense.metrics[METRIC]
    assert binary.energy().total < binary.energy(scenario="ordinary_hardware").total
    assert dense.energy().total == dense.energy(scenario="ordinary_hardware").total


@pytest.mark.parametrize("choice", OTHERS, ids=str)
def test_another_choice_changes_them_by_the_ratio_of_estimates(choice):
    r = made()
    frame = r.frame()
    before, after = r.energy(), r.energy(*choice)
    assert before.per_sample_j != after.per_sample_j
    anew = remodelled(r, frame, *choice)
    np.testing.assert_allclose(anew[METRIC], frame[METRIC] * (after.total / before.total), rtol=EXACT)
    assert anew.drop(columns=METRIC).equals(frame.drop(columns=METRIC))
    assert remodelled(r, frame)[METRIC].equals(frame[METRIC])
    assert after.table()["energy_j"].sum() / after.samples == pytest.approx(after.per_sample_j, rel=EXACT)


def test_the_trace_is_kept_with_the_run_and_read_back():
    r = made()
    kept = json.loads((r.folder.artifacts_path / modelled.FILE).read_text())
    job = resolve("binaryconnect", "digits/mlp", {"batch_size": 60}, task_params=SMALL, device="cpu", threads=1)
    job.task.setup(ctx := Context(device=torch.device("cpu"), seed=0))
    model, input, plan = job.method.modelled(job.method.init(job.task, ctx), job.task)
    assert from_json(json.dumps(kept["trace"])) == trace(model, input)
    assert PrecisionPlan.from_json(json.dumps(kept["plan"])) == plan
    assert r.folder.read_run()["tags"]["energy.model"] == f"ascend_like, as_trained, plan {plan.name}"
    assert reported_for(r) == Choice()


def test_runs_that_differ_in_the_seed_share_a_trace(no_tracing):
    first = made()
    no_tracing()
    second = made(seed=1)
    assert second.metrics[METRIC] == first.metrics[METRIC]
    assert second.energy("v100_like") is first.energy("v100_like")  # worked out once
    failed = run("binaryconnect", "digits/mlp", {"epochs": 2, "batch_size": 50}, task_params=SMALL, threads=1, device="cpu", tracking="off",
                 wait=False).wait()
    assert (failed.status, failed.reason) == ("failed", "AssertionError: traced once more")  # another batch, another trace


def test_a_resumed_run_has_the_same_joules_from_the_kept_trace(tmp_path, monkeypatch, no_tracing):
    cls = registry.load_method("binaryconnect")
    whole = lasting(ran(cls, tmp_path / "whole"))
    assert all(values[METRIC] > 0 for _, values in whole)
    ran(cls, tmp_path / "parts", stop_at=2)
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "another"))  # the shared trace is gone, the run's own is not
    no_tracing()
    assert lasting(ran(cls, tmp_path / "parts")) == whole


# --- where there is nothing to model ------------------------------------------------------------------------


def test_a_method_that_declares_nothing_lacks_the_figure(toy):
    r = toy_run()
    assert METRIC not in r.metrics
    assert not (r.folder.artifacts_path / modelled.FILE).exists()
    assert "energy.model" not in r.folder.read_run()["tags"]
    assert METRIC not in remodelled(r, r.frame(), "v100_like")
    with pytest.raises(UserError, match="kept no trace of its network"):
        r.energy()


def test_a_plugin_is_modelled_by_declaring_its_network(toy):
    with_network(toy, "torch.nn.Linear(3, 2)")
    r = toy_run()
    np.testing.assert_allclose(r.frame()[METRIC], [n * r.energy().per_sample_j for n in (1, 2, 3, 4)], rtol=EXACT)
    assert r.energy().macs == 5 * (3 * 2) * 2  # forward, and the gradient of the weights: none is needed to the input


def test_a_network_that_cannot_be_traced_costs_the_figure_alone(toy):
    plain = toy_run()
    with_network(toy, "torch.nn.Linear(7, 2)")
    r = toy_run()
    assert r.status == "finished"
    assert lasting(r.folder) == lasting(plain.folder)
    assert METRIC not in r.metrics
    tag = r.folder.read_run()["tags"]["energy.model"]
    assert tag.startswith("absent: The model Linear cannot be traced on this input")
    assert len(tag) <= 500
    with pytest.raises(UserError, match=r"its tag energy\.model says why"):
        r.energy()


# --- choices ------------------------------------------------------------------------------------------------


def test_choices_are_checked_by_name(tmp_path):
    assert chosen() is None
    assert chosen("v100_like") == Choice("v100_like", "as_trained")
    assert chosen(scenario="unfused") == Choice("ascend_like", "unfused")
    assert str(chosen("v100_like", "unfused")) == "v100_like, unfused"
    for given, told in ((("v10_like", None), "Unknown hardware 'v10_like'. Did you mean 'v100_like'?"),
                        ((None, "as_trainde"), "Unknown scenario 'as_trainde'. Did you mean 'as_trained'?"),
                        (("eyeriss_like", None), "multiples of one multiply-accumulate, not in joules"),
                        ((str(tmp_path / "own.json"), None), "There is no file")):
        with pytest.raises(UserError) as error:
            chosen(*given)
        assert told in str(error.value)


def test_every_hardware_in_joules_can_be_chosen_and_the_other_counted():
    r = made()
    assert "ascend_like" in joule_hardware()
    assert "eyeriss_like" not in joule_hardware()
    for name in joule_hardware():
        assert chosen(name).description
        assert r.energy(name).per_sample_j > 0
    assert r.energy("eyeriss_like").unit == "MAC"
    assert r.energy("eyeriss_like").total > r.energy("eyeriss_like").macs  # moving the operands costs more than nothing


# --- formats that the low-bit methods declare ---------------------------------------------------------------


def formats(method: str, task: str = "digits/mlp", **params):
    """Precisions of the network's products, first to last, found by the names that the trace gives them."""
    job = resolve(method, task, params, task_params=SMALL, device="cpu", threads=1)
    job.task.setup(ctx := Context(device=torch.device("cpu"), seed=0))
    model, input, plan = job.method.modelled(job.method.init(job.task, ctx), job.task)
    assert plan.training
    layers = trace(model, input)
    ends = weighted_ends(layers)
    return [plan.of(layer.name, layer.kind, ends=ends) for layer in layers if layer.is_product]


def column(precisions, name: str) -> list:
    return [getattr(p, name) for p in precisions]


def test_full_precision_is_fp32_throughout():
    for p in formats("full_precision"):
        assert {p.weights, p.activations, p.signals, p.weight_gradients, p.accumulators} == {"fp32"}
        assert (p.latent, p.projection_ops) == (None, 0)


def test_binaryconnect_multiplies_by_one_bit_and_updates_a_latent_weight():
    found = formats("binaryconnect")
    assert column(found, "weights") == ["bool"] * 3
    assert column(found, "latent") == ["fp32"] * 3
    assert set(column(found, "activations") + column(found, "signals") + column(found, "weight_gradients")) == {"fp32"}


@pytest.mark.parametrize(("weights", "stored"), [("binary", "bool"), ("ternary", "int2"), ("2bit", "int3"), ("4bit", "int5"),
                                                 ("4bit16", "int4")])
def test_weights_have_as_many_bits_as_tell_their_levels_apart(weights, stored):
    """2, 3, 5, 17 and 16 levels: 1, 2, 3, 5 and 4 bits."""
    assert column(formats("binaryconnect", weights=weights), "weights") == [stored] * 3


@pytest.mark.parametrize("method", ["binaryconnect", "proxquant", "askewsgd", "adaste", "md_tanh", "projected", "luq"])
def test_inner_layers_alone_are_quantised_on_request(method):
    ends = formats("full_precision", "digits/cnn")
    found = formats(method, "digits/cnn", layers="inner")
    assert [found[0], found[-1]] == [ends[0], ends[-1]]
    assert all(p not in ends for p in found[1:-1])


@pytest.mark.parametrize(("activations", "taken"), [("fp32", "fp32"), ("binary", "bool"), ("4bit", "int4")])
def test_quantised_activations_reach_all_layers_but_the_first(activations, taken):
    found = formats("binaryconnect", activations=activations)
    assert column(found, "activations") == ["fp32", taken, taken]  # the first layer sees the image
    sums = "fp32" if taken == "fp32" else "int32"
    assert column(found, "accumulators") == ["fp32", sums, sums]
    assert column(found, "signals") == ["fp32"] * 3


def test_projected_remembers_the_projected_weight_alone():
    found = formats("projected")
    assert column(found, "weights") == ["bool"] * 3
    assert column(found, "latent") == [None] * 3
    assert column(formats("projected", projection="l2"), "weights") == ["fp32"] * 3  # a sphere's points are real numbers
    assert all(p.projection_ops > 0 for p in found)


@pytest.mark.parametrize("method", ["proxquant", "askewsgd", "adaste", "md_tanh"])
def test_methods_that_train_at_real_weights_multiply_in_full_precision(method):
    for p, plain in zip(formats(method), formats("full_precision"), strict=True):
        assert (p.weights, p.activations, p.signals) == ("fp32", "fp32", "fp32")
        assert p.projection_ops > plain.projection_ops


def test_luq_quantises_all_three_operands_where_asked():
    body = formats("luq", layers="all", weights="4bit16")
    assert {(p.weights, p.activations, p.signals, p.latent) for p in body} == {("int4", "int4", "int4", "fp32")}
    assert column(formats("luq", layers="all"), "weights") == ["int5"] * 3  # the authors' 17 levels
    assert column(formats("luq", layers="all", inputs=False), "activations") == ["fp32"] * 3
    assert column(formats("luq", layers="all", samples=0), "signals") == ["fp32"] * 3


def test_the_base_rule_is_that_of_the_update():
    for params, rule in (({}, "adam"), ({"base": "sgd"}, "momentum"), ({"base": "sgd", "momentum": 0.0}, "sgd")):
        assert column(formats("binaryconnect", **params), "update") == [rule] * 3


def test_a_folder_without_tag_says_that_it_does_not_know(tmp_path):
    folder = RunFolder(tmp_path / "old")
    folder.write_run({"spec": {}, "tags": {}})
    assert str(reported_for(Run(folder, "finished"))) == "unrecorded hardware, unrecorded scenario"
    assert reported_for(Run(folder, "finished")).description == "no description at hand"
