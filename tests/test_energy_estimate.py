"""Estimates: single layers by hand, orders that must hold, and figures of VGG-Small in the literature's setting."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracking import energy_model as em
from tracking.energy_model import plan as plans
from tracking.energy_model import scenario as scenarios
from tracking.energy_model.passes import PASSES
from tracking.energy_model.search import compulsory_bits
from tracking.errors import UserError

PUBLISHED_ASCEND_BOLD = 3.64  # per cent of FP32 on VGG-Small, no batch norm (Nguyen et al., NeurIPS 2024, Table 2; recollection)


def vgg_small(norm: bool) -> nn.Module:
    """VGG-Small with one fully connected layer."""
    layers, c = [], 3
    for channels in (128, 256, 512):
        for pool in (False, True):
            layers += [nn.Conv2d(c, channels, 3, padding=1, bias=False), *[nn.MaxPool2d(2)] * pool, *[nn.BatchNorm2d(channels)] * norm,
                       nn.ReLU()]
            c = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8192, 10, bias=False))


@pytest.fixture(scope="module")
def vgg() -> tuple[em.Layer, ...]:
    with torch.device("meta"):
        return em.trace(vgg_small(norm=True), (100, 3, 32, 32))


@pytest.fixture(scope="module")
def vgg_without_norm() -> tuple[em.Layer, ...]:
    with torch.device("meta"):
        return em.trace(vgg_small(norm=False), (100, 3, 32, 32))


@pytest.fixture(scope="module")
def small() -> tuple[em.Layer, ...]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                          nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10))
    return em.trace(model, (8, 3, 16, 16))


# --- by hand ----------------------------------------------------------------------------------------------


def test_a_linear_layer_by_hand():
    # 8 samples, 32 inputs, 16 outputs: everything fits the second level, so each operand crosses once
    h = em.hardware("v100_like")
    e = em.estimate(nn.Linear(32, 16, bias=False), (8, 32), "fp32", h)
    dram, l2 = h.levels[0], h.levels[1]
    into, out = dram.read.value + l2.write.value, dram.write.value + l2.read.value
    forward = 32 * ((8 * 32 + 32 * 16) * into + 8 * 16 * out)
    weight_gradient = 32 * ((8 * 16 + 8 * 32) * into + 16 * 32 * out)
    update = 512 * (128 * dram.read.value + 96 * dram.write.value)
    found = e.table().groupby(["pass", "level"])["energy_j"].sum()
    assert found["forward", "DRAM"] == pytest.approx(forward * 1e-12, rel=1e-12)
    assert found["weight_gradient", "DRAM"] == pytest.approx(weight_gradient * 1e-12, rel=1e-12)
    assert found["update", "DRAM"] == pytest.approx(update * 1e-12, rel=1e-12)
    # Horowitz (ISSCC 2014), 45 nm: multiplication 3.7 pJ, addition 0.9 pJ; Adam takes 4 additions and 10 multiplications a weight
    assert found["forward", "compute"] == pytest.approx(8 * 16 * 32 * 4.6e-12, rel=1e-12)
    assert found["update", "compute"] == pytest.approx(512 * (4 * 0.9 + 10 * 3.7) * 1e-12, rel=1e-12)
    assert set(found.index.get_level_values("pass")) == {"forward", "weight_gradient", "update"}  # no gradient to the data
    assert e.macs == 2 * 8 * 16 * 32
    assert e.moved_bytes()["DRAM"] == 4 * (8 * 32 + 512 + 128 + 128 + 256 + 512) + 512 * 28
    assert e.saved_activation_bytes == 4 * 8 * 32


@pytest.mark.parametrize(("norm_passes", "training", "passes"), [(1.3, True, 1.3), (5.0, True, 5.0), (5.0, False, 2.0)])
def test_a_norm_by_hand(norm_passes, training, passes):
    h = em.hardware("v100_like")
    scenario = dataclasses.replace(scenarios.named("as_trained"), norm_passes=norm_passes, count_update=False)
    e = em.estimate(nn.BatchNorm2d(6), (4, 6, 5, 5), "fp32", h, scenario, training)
    found = e.table().set_index("level")["energy_j"]
    price = (h.levels[0].read.value + h.levels[0].write.value) / 2
    assert found["DRAM"] == pytest.approx(passes * 600 * 32 * price * 1e-12, rel=1e-12)
    assert found["compute"] == pytest.approx((12 if training else 4) * 600 * 3.7e-12, rel=1e-12)  # 4 operations forward, 8 backward


def test_formats_reach_the_products():
    seen: list[em.Product] = []

    def cost_of(product: em.Product, hardware: em.Hardware, *, double_buffering: bool) -> em.Cost:
        seen.append(product)
        return em.Cost(1.0, {}, product=product)

    layers = em.trace(nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4))), (2, 8))
    em.estimate_layers(layers, plans.named("binarynet"), "v100_like", "one_bit_dx", cost_of=cost_of)
    first, forward, dx, dw = seen[0], seen[2], seen[3], seen[4]
    assert (first.a, first.b, first.acc, first.out) == ("fp32",) * 4
    assert (forward.a, forward.b, forward.acc, forward.out, forward.multiplied) == ("bool", "bool", "int16", "int16", ("bool", "bool"))
    assert (dx.a, dx.b, dx.acc, dx.out, dx.multiplied) == ("fp32", "bool", "fp32", "fp32", ("fp32", "bool"))
    assert (dw.a, dw.b, dw.acc, dw.out, dw.multiplied) == ("fp32", "bool", "fp32", "fp32", ("fp32", "fp32"))
    assert seen[-2].b == seen[-1].b == "fp32"
    seen.clear()
    override = dataclasses.replace(plans.named("fp32"), overrides=(("2", plans.BF16), ("*", plans.FP32)))
    em.estimate_layers(layers, override, "v100_like", cost_of=cost_of)
    assert [p.a for p in seen] == ["fp32"] * 2 + ["fp32"] * 3 + ["bf16"] * 3 + ["fp32"] * 3


def test_updates_move_the_bits_that_were_counted_by_hand():
    # weight, moments, gradient, working copy
    assert plans.FP32.update_bits() == (128, 96)
    assert sum(dataclasses.replace(plans.FP32, update="momentum").update_bits()) == 160
    assert sum(dataclasses.replace(plans.FP32, update="sgd").update_bits()) == 96
    assert sum(plans.named("binarynet").body.update_bits()) == 224 + 1
    assert sum(plans.BF16.update_bits()) == 32 * 6 + 16 + 16
    assert sum(plans.named("bold").body.update_bits()) == 16 + 16 + 16 + 2
    assert plans.named("askewsgd").body.update_bits() == plans.FP32.update_bits()
    assert plans.named("askewsgd").with_updates("sgd").body.update_bits() == (64, 32)
    assert sum(plans.named("inference_fp32_fp32").body.update_bits()) == 0


def test_a_shared_weight_is_updated_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.f(x))

    once, twice = (em.estimate(m, (4, 8), "fp32", "v100_like").table() for m in (nn.Linear(8, 8), Twice()))
    updates = [t[t["pass"] == "update"]["energy_j"].sum() for t in (once, twice)]
    assert updates[0] == updates[1] > 0


# --- orders -----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["int2", "int3", "int4", "int8"]), st.sampled_from(["int4", "int8", "int16"]),
       st.sampled_from(["v100_like", "ascend_like"]))
def test_energy_never_falls_with_bits(weights, activations, hardware):
    def total(w: str, a: str, s: str) -> float:
        return em.estimate_layers(linear(), plans.lowbit(w, a, s), hardware).total

    wider = f"int{2 * em.bits(weights)}"
    assert total(weights, activations, "int8") <= total(wider, activations, "int8") * (1 + 1e-12)
    assert total(weights, activations, "int8") <= total(weights, f"int{2 * em.bits(activations)}", "int8") * (1 + 1e-12)
    assert total(weights, activations, "int8") <= total(weights, activations, "int16") * (1 + 1e-12)


@functools.cache
def linear() -> tuple[em.Layer, ...]:
    return em.trace(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 10)), (32, 64))


@pytest.mark.parametrize("hardware", ["v100_like", "ascend_like", "cpu_like"])
def test_energy_grows_with_the_batch_and_falls_by_sample(hardware):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    found = [em.estimate(model, (n, 3, 8, 8), "fp32", hardware) for n in (2, 4, 8, 32)]
    assert all(a.total_j < b.total_j for a, b in itertools.pairwise(found))
    # weights, their gradients and the update are shared among samples
    assert all(a.per_sample_j > b.per_sample_j for a, b in itertools.pairwise(found))


def test_scenarios_move_the_total_the_right_way(small):
    total = {name: em.estimate_layers(small, "binaryconnect", "ascend_like", name).total for name in em.SCENARIOS}
    base = total["as_trained"]
    assert total["unfused"] > base > total["local"]
    assert total["without_update"] < base
    assert total["ordinary_hardware"] > total["one_bit_dx"] == base == total["fully_boolean"]  # its signals are real, its inputs too
    assert total["double_buffered"] >= base * (1 - 1e-12)
    idle = dataclasses.replace(scenarios.named("as_trained"), static_power_w=10.0)
    e = em.estimate_layers(small, "bf16_mixed", "ascend_like", idle)
    table = e.table().groupby("level")["energy_j"].sum()
    assert table["static"] == pytest.approx(e.total - em.estimate_layers(small, "bf16_mixed", "ascend_like").total, rel=1e-9)


def test_everything_on_the_chip_leaves_weights_alone_in_dram():
    # with locality a forward pass of a small network reads its weights and nothing else
    e = em.estimate_layers(linear(), plans.inference(), "ascend_like", "local")
    assert e.moved_bytes()["DRAM"] == 4 * (64 * 96 + 96 * 128 + 128 * 10)


@pytest.mark.parametrize("hardware", ["ascend_like", "v100_like"])
def test_order_of_methods_holds_in_every_scenario(vgg, hardware):
    order = {"fp32": "fp32", "binaryconnect": "binaryconnect", "xnor_net": "xnor_net", "bold": plans.bold(16)}
    frame = em.compare(vgg, order, hardware)
    assert set(frame.attrs["scenarios"]) == set(em.SCENARIOS)
    for scenario in em.SCENARIOS:
        assert frame[f"percent_{scenario}"].is_monotonic_decreasing
        assert frame[f"percent_{scenario}"].is_unique
    # real backward products leave a binary network the gain of its forward pass, at most one third, and half of the data movement
    assert frame.loc["xnor_net", "percent_ordinary_hardware"] > 100 * 2 / 3 * 0.85
    signals = [em.estimate_layers(vgg, plans.bold(s), hardware).total for s in (1, 8, 16, 32)]
    assert signals == sorted(signals)
    assert len(set(signals)) == 4


# --- VGG-Small, batch 100 ---------------------------------------------------------------------------------


def test_vgg_small_has_the_multiply_accumulates_of_the_literature(vgg):
    assert sum(layer.macs for layer in vgg) / 100 == pytest.approx(607.6e6, rel=1e-4)
    e = em.estimate_layers(vgg, "fp32", "ascend_like")
    assert e.macs / sum(layer.macs for layer in vgg) == pytest.approx(2.994, abs=5e-4)  # the first layer has no gradient to the data
    assert {w.which for w in e.works if w.layer.name == "0"} == {"forward", "weight_gradient", "update"}


EARLIER = {  # an earlier implementation of the same equations: per cent of FP32
    "ascend_like": (1.02, {"bc": 53.5, "bnn": 22.7, "bnn one_bit_dx": 46.7, "bnn ordinary_hardware": 69.9, "bold8": 3.9, "bold1": 3.0}),
    "v100_like": (1.35, {"bc": 59.1, "bnn": 29.4, "bnn one_bit_dx": 50.1, "bnn ordinary_hardware": 70.5, "bold8": 9.9, "bold1": 8.3}),
}


@pytest.mark.parametrize("hardware", EARLIER)
def test_vgg_small_agrees_with_an_earlier_implementation(vgg, vgg_without_norm, hardware):
    """Within 20 %: it took other tile grids and another price of narrow additions. At 16-bit signals two earlier ones are apart."""
    joules, shares = EARLIER[hardware]
    base = em.estimate_layers(vgg, "fp32", hardware)
    assert base.total_j == pytest.approx(joules, rel=0.1)
    for name, percent in shares.items():
        method, _, scenario = name.partition(" ")
        plan = {"bc": plans.named("binaryconnect"), "bnn": plans.named("binarynet"), "bold8": plans.bold(8), "bold1": plans.bold(1)}[method]
        layers = vgg_without_norm if method.startswith("bold") else vgg
        found = 100 * em.estimate_layers(layers, plan, hardware, scenario or "as_trained").total / base.total
        assert found == pytest.approx(percent, rel=0.2), name


def test_boolean_training_with_wide_signals_lies_between_two_earlier_implementations(vgg, vgg_without_norm):
    found = em.estimate_layers(vgg_without_norm, plans.bold(16), "ascend_like").total / em.estimate_layers(vgg, "fp32", "ascend_like").total
    assert 5.0 <= 100 * found <= 9.1  # fixed dataflow with prices from the chip's efficiency; searched tiles with unscaled 45 nm prices


def test_published_ratio_of_bold_on_ascend_lies_in_the_band(vgg, vgg_without_norm):
    traces = {"fp32": vgg, "bold": vgg_without_norm}
    band = em.compare(traces, {"fp32": "fp32", "bold": plans.bold(16)}, "ascend_like", ("as_trained", "fully_boolean")).loc["bold"]
    assert band.percent_low < PUBLISHED_ASCEND_BOLD < band.percent_high
    assert band.percent == band.percent_as_trained == band.percent_high
    assert band.percent_low > PUBLISHED_ASCEND_BOLD / 2


# --- objects ----------------------------------------------------------------------------------------------


def test_table_adds_up_and_names_its_assumptions(small):
    e = em.estimate_layers(small, "luq", "h100_like", "unfused")
    table = e.table()
    assert list(table.columns) == ["layer", "kind", "pass", "level", "energy_j"]
    assert table["energy_j"].sum() == pytest.approx(e.total_j, rel=1e-12)
    assert (table["energy_j"] >= 0).all()
    assert set(table["pass"]) <= set(PASSES)
    assert {"compute", *(level.name for level in e.hardware.levels)} == set(table["level"])
    assert e.per_sample_j == e.total_j / 8
    for word in ("h100_like", "unfused", "luq", "modelled", "8 samples"):
        assert word in repr(e)
    assert table.attrs["hardware"] == "h100_like"
    assert table.attrs["scenario"] == "unfused"
    traffic = sum(sum(compulsory_bits(w.cost.product).values()) for w in e.works if w.cost)
    assert e.moved_bytes()["DRAM"] >= traffic / 8


def test_relative_hardware_says_that_it_has_no_joules(small):
    e = em.estimate_layers(small, "fp32", "eyeriss_like")
    assert e.unit == "MAC"
    assert "MAC" in repr(e)
    assert "energy_mac" in e.table()
    assert e.total > e.macs / 10
    with pytest.raises(UserError, match="not in joules"):
        _ = e.total_j


def test_inference_has_no_backward_pass(small):
    e = em.estimate_layers(small, "fp32", "v100_like", training=False)
    assert {w.which for w in e.works} == {"forward", "elementwise"}
    assert e.macs == sum(layer.macs for layer in small)
    assert e.saved_activation_bytes == 0
    quarter = em.estimate_layers(small, plans.inference("int4", "fp32"), "v100_like")
    assert not quarter.training
    assert quarter.total < e.total
    with pytest.raises(UserError, match="inference only"):
        em.estimate_layers(small, plans.inference("int4"), "v100_like", training=True)


def test_draws_are_estimates_on_the_drawn_hardware(small):
    h = em.hardware("ascend_like")
    e = em.estimate_layers(small, "binarynet", h, "unfused")
    draws = e.draws(5, seed=3)
    rng = np.random.default_rng(3)
    for drawn in draws:  # a fresh search can only find cheaper schedules
        fresh = em.estimate_layers(small, "binarynet", h.sample(rng), "unfused").total
        assert fresh <= drawn * (1 + 1e-12)
        assert drawn < fresh * 1.5
    assert np.array_equal(draws, e.draws(5, seed=3))
    low, high, level, n = e.interval(50)
    assert 0 < low < high
    assert (level, n) == (0.9, 50)
    exact = h.at({name: constant.value for name, constant in h.constants().items()})
    known = em.estimate_layers(small, "binarynet", exact, "unfused")  # constants without intervals
    assert known.draws(3) == pytest.approx([e.total] * 3, rel=1e-12)


def test_compare_counts_constants_when_asked(small):
    plain = em.compare(small, {"real": "fp32", "one bit": "bold"}, "v100_like", ["as_trained"])
    drawn = em.compare(small, {"real": "fp32", "one bit": "bold"}, "v100_like", ["as_trained"], n=40)
    assert plain.loc["real", "percent"] == drawn.loc["real", "percent_low"] == drawn.loc["real", "percent_high"] == 100
    low, middle, high = drawn.loc["one bit", ["percent_low", "percent", "percent_high"]]
    assert low <= middle <= high
    assert low < high
    assert middle == plain.loc["one bit", "percent_low"] == plain.loc["one bit", "percent_high"]
    with pytest.raises(UserError, match="Unknown reference plan"):
        em.compare(small, {"real": "fp32"}, "v100_like", reference="reel")
    with pytest.raises(UserError, match="No trace for b"):
        em.compare({"a": small}, {"a": "fp32", "b": "bold"}, "v100_like")


def test_plans_survive_json_and_refuse_what_they_do_not_know():
    extra = dataclasses.replace(plans.named("luq"), overrides=(("layer4.*", plans.BF16),))
    for plan in (*em.PLANS.values(), extra):
        assert em.PrecisionPlan.from_json(plan.to_json()) == plan
        assert hash(em.PrecisionPlan.from_json(plan.to_json())) == hash(plan)
    data = json.loads(extra.to_json())
    for wrong, says in ((data | {"boddy": {}}, "Did you mean 'body'"), (data | {"body": {"weight": "fp32"}}, "Did you mean 'weights'"),
                        (data | {"body": {"weights": "int99"}}, "int1 to int64"), (data | {"body": {"update": "adan"}}, "adam"),
                        (data | {"body": {"projection_ops": -1}}, "0 <= x"), (data | {"overrides": [3]}, "pairs"), ([], "Allowed"),
                        ({}, "name")):
        with pytest.raises(UserError, match=says):
            em.PrecisionPlan.from_json(json.dumps(wrong))
    with pytest.raises(UserError, match="not JSON"):
        em.PrecisionPlan.from_json("{")
    with pytest.raises(UserError, match=r"Allowed: 1, 8, 16, 32"):
        plans.bold(4)


@pytest.mark.parametrize(("change", "says"), [
    ({"exploit_1bit_backward": "dx"}, "Did you mean 'dX'"), ({"signals": "int0"}, "refused"), ({"norm_passes": -1}, "0 <= x"),
    ({"static_power_w": float("nan")}, "0 <= x")])
def test_scenarios_refuse_what_they_do_not_know(change, says):
    with pytest.raises(UserError, match=says):
        em.Scenario("x", "y", **change)


def test_unknown_names_are_errors(small):
    for plan, hardware, scenario, says in (("fp23", "v100_like", "as_trained", "fp32"), ("fp32", "v100", "as_trained", "v100_like"),
                                           ("fp32", "v100_like", "astrained", "as_trained")):
        with pytest.raises(UserError, match=f"Did you mean '{says}'"):
            em.estimate_layers(small, plan, hardware, scenario)
    with pytest.raises(UserError, match="no layers"):
        em.estimate_layers((), "fp32", "v100_like")


def test_a_stored_trace_gives_the_same_estimate(small):
    again = em.from_json(em.to_json(small))
    assert em.estimate_layers(again, "bold", "ascend_like").total == em.estimate_layers(small, "bold", "ascend_like").total


# --- roofline ---------------------------------------------------------------------------------------------


def test_roofline_by_hand():
    h = em.hardware("v100_like")
    rate, width = h.extras["fp32_macs_per_s"].value, h.extras["dram_bytes_per_s"].value
    frame = em.roofline(em.estimate(nn.Linear(32, 16, bias=False), (8, 32), plans.inference(), h))
    moved = 4 * (8 * 32 + 32 * 16 + 8 * 16)
    assert frame.loc[0, "intensity_mac_per_byte"] == 4096 / moved
    assert frame.loc[0, "bound"] == "memory"
    assert frame.loc[0, "attainable_mac_per_s"] == pytest.approx(4096 / moved * width, rel=1e-12)
    big = em.roofline(em.estimate(nn.Linear(1024, 1024, bias=False), (2048, 1024), plans.inference(), h))
    assert big.loc[0, "bound"] == "compute"
    assert big.loc[0, "time_s"] == pytest.approx(1024 * 1024 * 2048 / rate, rel=1e-12)
    with pytest.raises(UserError, match="no peak rate for fp32"):
        em.roofline(em.estimate(nn.Linear(4, 4), (2, 4), "fp32", "ascend_like"))  # its cube multiplies 16 bits at most


def test_roofline_figure_shows_the_frame(small):
    e = em.estimate_layers(small, "bf16_mixed", "h100_like")
    figure, frame = em.roofline_figure(e), em.roofline(e)
    points = [t for t in figure.data if t.mode == "markers"]
    assert sorted(x for t in points for x in t.x) == sorted(frame.intensity_mac_per_byte)
    assert "[MAC/B]" in figure.layout.xaxis.title.text
    assert "[MAC/s]" in figure.layout.yaxis.title.text
    assert "h100_like" in figure.layout.title.text
    assert "as_trained" in figure.layout.meta["caption"]
    roof = max(y for t in figure.data if t.mode == "lines" for y in t.y)
    assert max(y for t in points for y in t.y) <= roof * (1 + 1e-12)
