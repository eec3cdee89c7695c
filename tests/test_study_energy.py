"""The study of energy: tables against estimates and payloads made here, verdicts on altered tables, figures against the tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import workbench
from tracking import energy_model as em
from tracking.codecs.registry import codec, codec_names
from tracking.errors import UserError
from tracking.figures import data_of
from tracking.links import media, network_joules
from workbench import claims
from workbench.studies import energy as paper
from workbench.studies.energy import messages, rounds, verdicts
from workbench.studies.energy.messages import Update
from workbench.studies.energy.ratios import BAND, layers_of

HARDWARE = ("ascend_like", "v100_like")
PAIR = ("FP32", "BOLD 8-bit signals")


@pytest.fixture(scope="module")
def ratios():
    return {hw: paper.ratios(hw) for hw in HARDWARE}


@pytest.fixture(scope="module")
def update():
    """Weights of two layers, the second a convolution, and a change of them with a heavy tail as gradients have."""
    rng = np.random.default_rng(0)
    start = {"a": torch.tensor(rng.normal(size=(60, 40))).float(), "b": torch.tensor(rng.normal(size=(16, 8, 3, 3))).float()}
    end = {n: t + 0.3 * torch.tensor(rng.standard_t(3, size=tuple(t.shape))).float() for n, t in start.items()}
    return Update(start, end)


@pytest.fixture(scope="module")
def codings(update):
    return paper.coded(update.change, repeats=4)


@pytest.fixture(scope="module")
def round_table():
    return paper.round_energy("cpu_like", [m["medium"] for m in media()])


# --- ratios -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hw", HARDWARE)
def test_ratios_are_quotients_of_estimates_and_bands_hold_them(ratios, hw):
    frame = ratios[hw].set_index("method")
    assert list(frame.index) == list(paper.METHODS)
    for method in ("BinaryConnect", "BOLD 1-bit signals", "BOLD 16-bit signals, norm"):
        for scenario in ("as_trained", "ordinary_hardware"):
            own = em.estimate_layers(layers_of(method), paper.METHODS[method].plan, hw, scenario).total
            base = em.estimate_layers(paper.vgg_small(), "fp32", hw, scenario).total
            assert frame.loc[method, f"percent_{scenario}"] == pytest.approx(100 * own / base, rel=1e-12)
    percents = frame[[f"percent_{s}" for s in BAND]]
    assert (frame["scenario_low"] == percents.min(axis=1)).all()
    assert (frame["scenario_high"] == percents.max(axis=1)).all()
    assert (frame[["low", "high"]].to_numpy() == frame[["scenario_low", "scenario_high"]].to_numpy()).all()  # no draws
    assert "fully_boolean" not in frame.attrs["scenarios"]  # its signals are rows of their own


def test_norms_are_left_out_where_a_method_has_none():
    kinds = {m: {layer.kind for layer in layers_of(m)} for m in paper.METHODS}
    assert all(("norm" in found) == paper.METHODS[m].norm for m, found in kinds.items())
    assert kinds["BOLD 8-bit signals"] == kinds["FP32"] - {"norm"}


def test_drawn_constants_widen_the_band():
    few = ["FP32", "BOLD 8-bit signals"]
    plain, drawn = (paper.ratios("ascend_like", draws=n, methods=few).set_index("method").loc[few[1]] for n in (0, 6))
    assert drawn["low"] <= plain["low"] == drawn["scenario_low"]
    assert drawn["high"] > plain["high"] == drawn["scenario_high"]
    with pytest.raises(UserError, match="Did you mean 'BinaryNet'"):
        paper.ratios("ascend_like", methods=["FP32", "BinaryNett"])


def test_published_figures_stand_beside_and_say_how_well_they_are_known(ratios):
    # Nguyen et al., NeurIPS 2024, Table 2 (recollections): the text's own ratios agree with them
    ascend, volta = (paper.PUBLISHED[hw] for hw in HARDWARE)
    assert round(100 / volta["BOLD"]) == 36
    assert volta["BinaryNet"] / volta["BOLD"] > 15
    assert 26 < 100 / ascend["BOLD"] < 28
    assert max(ascend["BOLD + norm"], volta["BOLD + norm"]) < 5
    for hw, frame in ratios.items():
        families = [paper.METHODS[m].family for m in frame["method"]]
        assert list(frame["published"]) == [paper.PUBLISHED[hw][f] for f in families]
        assert all(("recollection" in s) == (f != "FP32") for s, f in zip(frame["standing"], families, strict=True))
        shown = paper.shown(frame)
        assert "published figure is" in shown
        assert "and constants [%]" not in shown  # nothing was drawn
    eyeriss = paper.ratios("eyeriss_like", methods=["FP32", "BOLD 1-bit signals"])
    assert eyeriss["published"].isna().all()


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hw", HARDWARE)
def test_the_order_is_checked_in_every_scenario(ratios, hw):
    assert paper.order_claim(ratios[hw]).verdict == claims.HOLDS
    for method, value in (("XNOR-Net", 99.9), ("BOLD 16-bit signals, norm", 40.0), ("BinaryConnect", 100.0)):
        altered = ratios[hw].copy()
        altered.loc[altered["method"] == method, "percent_unfused"] = value
        claim = paper.order_claim(altered)
        assert claim.verdict == claims.FAILS
        assert "unfused" in claim.how
        assert claim.ours == f"in {len(BAND) - 1} of {len(BAND)} scenarios"


def test_verdicts_of_the_published_ratios(ratios):
    found = {hw: {c.text.split(" of ")[1].split(" on ")[0]: c for c in paper.band_claims(frame)} for hw, frame in ratios.items()}
    failed = {hw: {f for f, c in own.items() if c.verdict == claims.FAILS} for hw, own in found.items()}
    assert failed == {"ascend_like": {"BinaryConnect"}, "v100_like": {"BinaryConnect", "BOLD", "BOLD + norm"}}
    assert all(set(own) == set(paper.PUBLISHED[hw]) - {"FP32"} for hw, own in found.items())
    assert all("recollection" in c.paper for own in found.values() for c in own.values())


@pytest.mark.parametrize(("published", "verdict", "where"), [
    (2.0, claims.FAILS, "below"), (4.0, claims.HOLDS, "inside"), (60.0, claims.FAILS, "above")])
def test_a_published_ratio_is_judged_by_the_band_over_all_widths(ratios, published, verdict, where):
    altered = ratios["ascend_like"].copy()
    altered["published"] = published
    claim = verdicts.band_claim(altered, "BOLD", "Because.")
    assert claim.verdict == verdict
    assert claim.how.endswith(f"3 signal widths; the published figure lies {where}. Because.")


def test_the_reasons_given_are_true(ratios):
    """What the sentences beside the verdicts say is not computed there, so it is here."""
    rows = {hw: frame.set_index("method") for hw, frame in ratios.items()}
    for suffix, family in (("", "BOLD"), (", norm", "BOLD + norm")):
        one, eight = (rows["ascend_like"].loc[f"BOLD {bits}-bit signals{suffix}", "percent"] for bits in (1, 8))
        assert one < paper.PUBLISHED["ascend_like"][family] < eight
    assert paper.parts("BinaryConnect", "ascend_like")["compute"] > paper.PUBLISHED["ascend_like"]["BinaryConnect"]
    parts = paper.parts("BinaryConnect", "v100_like")
    assert parts["compute"] + parts["registers"] > paper.PUBLISHED["v100_like"]["BinaryConnect"]
    for suffix, family in (("", "BOLD"), (", norm", "BOLD + norm")):
        assert paper.parts(f"BOLD 1-bit signals{suffix}", "v100_like")["registers"] > paper.PUBLISHED["v100_like"][family]
    works = paper.estimate_of("BOLD 1-bit signals", "v100_like").works
    registers = {x: sum(w.cost.memory_j["registers", x] for w in works if w.cost) for x in "abo"}
    assert registers["o"] > 0.5 * sum(registers.values())  # partial sums
    assert sum(parts.values()) == pytest.approx(rows["v100_like"].loc["BinaryConnect", "percent"], rel=1e-12)


def test_relative_prices_do_not_explain_the_v100_column():
    claim = paper.relative_claim(paper.ratios("eyeriss_like", methods=["FP32", "BOLD 1-bit signals"]))
    assert claim.verdict == claims.FAILS
    assert claim.paper.startswith("2.78 %")


# --- where the joules go, and what they depend on -----------------------------------------------------------


def test_levels_and_layers_add_up_to_the_estimate():
    found, layers = paper.by_level(PAIR, "ascend_like"), paper.by_layer(PAIR, "ascend_like")
    for method in PAIR:
        total = paper.estimate_of(method, "ascend_like").total_j
        assert found.loc[found["method"] == method, "energy"].sum() == pytest.approx(total, rel=1e-12)
        assert layers[f"{method} [mJ]"].sum() == pytest.approx(1000 * total, rel=1e-12)
        assert layers[f"{method} [%]"].sum() == pytest.approx(100, rel=1e-12)
    assert set(found["level"]) == {"compute", "DRAM", "L2", "L1", "L0"}
    assert layers["MAC an image [M]"].sum() == pytest.approx(sum(x.macs for x in paper.vgg_small()) / 1e8, rel=1e-12)
    assert len(layers) == 9 + 1  # six convolutions, three linear layers, and the rest
    drawn = data_of(paper.level_figure(found))
    assert drawn["share of the method's own total [%]"].sum() == pytest.approx(200, rel=1e-9)


def test_sensitivity_moves_the_right_way_and_meets_the_table(ratios):
    frame = paper.sensitivity("ascend_like", batches=(10, 100), dram=(3.9, 6.25, 11.7))
    by = {quantity: own.set_index("value")["percent"] for quantity, own in frame.groupby("quantity", sort=False)}
    assert list(by) == ["signals [bit]", "partial sums [bit]", "batch [images]", "DRAM [pJ/bit]"]
    for quantity in ("signals [bit]", "partial sums [bit]", "DRAM [pJ/bit]"):
        assert by[quantity].is_monotonic_increasing
    assert by["batch [images]"][10] > by["batch [images]"][100]  # weights and their update are shared among images
    row = ratios["ascend_like"].set_index("method")["percent"]
    assert by["signals [bit]"][16] == pytest.approx(row["BOLD 16-bit signals"], rel=1e-12)
    for same in (by["partial sums [bit]"][16], by["batch [images]"][100], by["DRAM [pJ/bit]"][6.25]):  # all as trained
        assert same == pytest.approx(row["BOLD 8-bit signals"], rel=1e-12)
    drawn = data_of(paper.sensitivity_figure(frame))
    for quantity, own in by.items():
        assert drawn.dropna(subset=[quantity])["energy [% of FP32]"].tolist() == own.tolist()


@pytest.mark.parametrize("hw", HARDWARE)
def test_the_tornado_repeats_what_draws_at_the_ends_give(hw):
    frame = paper.tornado(hw).set_index("constant")
    h = em.hardware(hw)
    outermost = h.levels[0].name
    names = [f"{outermost}.{way}" for way in ("read", "write")]
    for end in ("low", "high"):
        moved = {name: getattr(h.constants()[name], end) for name in names}
        exact = h.at({name: c.value for name, c in h.constants().items()} | moved)
        # draws of constants without intervals are the constants, at the schedules that were found before
        bold, real = (dataclasses.replace(paper.estimate_of(m, hw), hardware=exact).draws(1)[0] for m in reversed(PAIR))
        assert frame.loc[f"{outermost} access", f"at_{end}"] == pytest.approx(100 * bold / real, rel=1e-9)
    widths = (frame["at_high"] - frame["at_low"]).abs()
    assert widths.is_monotonic_decreasing
    assert frame["percent"].nunique() == 1
    assert not any("per_s" in name for name in frame.index)  # rates move no energy


# --- messages -----------------------------------------------------------------------------------------------


def test_every_codec_is_in_one_of_the_two_tables(update, codings):
    made = {name: c.of("a") for name, c in messages.codings(update.change).items()}
    assert set(codings["codec"]) == set(made)
    kinds = {own.name for own in made.values()}
    exact = set(paper.exact_messages(update)["codec"])
    assert kinds | exact == set(codec_names())
    assert not kinds & exact


def test_bytes_and_errors_are_those_of_the_payloads(update, codings):
    row = codings.set_index("codec")
    values = sum(t.numel() for t in update.change.values())
    size = sum(t.double().square().sum() for t in update.change.values())
    for name, own in (("int8", codec("int8")), ("top 10 %", codec("top_k", fraction=0.1)), ("sign", codec("sign"))):
        payloads = {n: own.encode(t) for n, t in update.change.items()}
        assert row.loc[name, "bytes"] == sum(map(len, payloads.values()))
        lost = sum((own.decode(payloads[n]).double() - t.double()).square().sum() for n, t in update.change.items())
        assert row.loc[name, "error"] == pytest.approx(float(lost / size), rel=1e-9)
        assert row.loc[name, "error_of_mean"] == pytest.approx(row.loc[name, "error"], rel=1e-9)  # the same each time
    assert row.loc["fp32", "error"] == 0
    assert row.loc["fp32", "bytes"] == 4 * values + sum(1 + 4 * t.dim() for t in update.change.values())
    assert (codings["bytes_a_value"] * values).tolist() == pytest.approx(codings["bytes"].tolist(), rel=1e-12)
    book = 2 * messages.CODEWORDS * messages.VECTOR
    assert row.loc["VQ 256 x 4", "bytes"] > book + values / messages.VECTOR


def test_verdicts_of_codecs(codings):
    assert [c.verdict for c in paper.codec_claims(codings, tolerance=0.2)] == [claims.HOLDS] * 2  # a small update, so wide
    biased = codings.assign(error_of_mean=codings["error"])
    assert paper.codec_claims(biased, tolerance=0.2)[0].verdict == claims.FAILS
    broken = codings.assign(bound=codings["error"] / 2)
    assert paper.codec_claims(broken, tolerance=0.2)[1].verdict == claims.FAILS


def test_exact_messages_stand_beside_their_bounds(update):
    table = paper.exact_messages(update).set_index("codec")
    assert (table["packed bytes"] * 8 / table["values"] == table["bits a value"]).all()
    assert (table["bits a value"] >= table["entropy bound [bits a value]"]).all()
    turned = sum(int(((update.start[n] >= 0) != (update.end[n] >= 0)).sum()) for n in update.start)
    p = turned / table["values"].iloc[0]
    # log2 C(n, k) is the entropy of the share up to a term of order log n
    assert table.loc["mask", "entropy bound [bits a value]"] == pytest.approx(-p * np.log2(p) - (1 - p) * np.log2(1 - p), rel=0.01)


def test_the_update_is_the_trained_state_less_the_start(own_home):
    run = workbench.run("full_precision", "digits/perceptron", params={"epochs": 1, "base": "adam", "lr": 0.01}, tracking="off", threads=1)
    found = paper.update_of(run)
    again = paper.update_of(run)
    trained = dict(run.state()[0].model.named_parameters())
    assert set(found.start) == set(trained)
    for name, value in trained.items():
        assert torch.equal(found.end[name], value.detach().cpu())
        assert torch.equal(found.start[name], again.start[name])  # drawn again from the seed
        # uniform with bound 1 / sqrt(fan in), for weights and biases
        inputs = trained[name.replace("bias", "weight")].shape[1]
        assert found.start[name].abs().max() <= inputs**-0.5
        assert found.change[name].abs().max() > 0
    assert paper.measured([run]).empty

    class Metered(type(run)):
        @property
        def metrics(self):
            return super().metrics | {"energy/cpu_j": 5.0}

    row = paper.measured([Metered(run.folder, run.status)]).iloc[0]
    from workbench.modelled import estimate_run

    assert row["measured_j"] == 5.0
    assert row["modelled_j"] == pytest.approx(run.metrics["train/samples"] * estimate_run(run, "cpu_like").per_sample_j)
    figure = paper.measured_figure(paper.measured([Metered(run.folder, run.status)]))
    assert f"{5.0 / row['modelled_j']:.3g} times" in figure.layout.meta["caption"]


# --- rounds -------------------------------------------------------------------------------------------------


def test_no_joules_of_a_network_unless_a_medium_is_named():
    plain = paper.round_energy("cpu_like")
    assert not [c for c in plain if "network_" in c or c == "ratio"]
    with pytest.raises(UserError, match="No medium was chosen"):
        paper.shown_rounds(plain)
    with pytest.raises(UserError, match="Did you mean 'ddr'"):
        paper.round_energy("cpu_like", ["drr"])
    with pytest.raises(UserError, match="not in joules"):
        paper.round_energy("eyeriss_like")


def test_a_round_is_its_steps_and_its_payloads(round_table):
    setting = rounds.ROUND
    dense = round_table[(round_table["network"] == "perceptron on MNIST") & (round_table["upload"] == "dense_fp32")]
    parameters = 784 * 32 + 32 + 32 * 10 + 10
    assert set(dense["parameters"]) == {parameters}
    assert set(dense["up_bytes"]) == {4 * parameters + 2 * (1 + 8) + 2 * (1 + 4)}  # two matrices and two vectors with their headers
    step = em.estimate_layers(rounds.network("perceptron on MNIST", setting.batch_size).layers, "fp32", "cpu_like").total_j
    assert set(dense["compute_j"]) == {setting.local_steps * step}
    row = dense[dense["medium"] == "fixed_access_2020"].iloc[0]
    expected = network_joules(int(row["down_bytes"] + row["up_bytes"]), "fixed_access_2020")
    assert (row["network_j"], row["network_low"], row["network_high"]) == (expected.joules, expected.low, expected.high)
    assert row["ratio"] == expected.joules / row["compute_j"]
    hop = dense[dense["medium"] == f"datacentre, {rounds.HOPS} hops"].iloc[0]
    assert hop["network_j"] == pytest.approx(rounds.HOPS * network_joules(int(row["down_bytes"] + row["up_bytes"]), "datacentre", 1).joules)
    from tracking.links.media import NOTE

    assert NOTE in paper.shown_rounds(round_table).caption
    assert NOTE in paper.round_figure(round_table).layout.meta["caption"]


def test_who_dominates_needs_the_whole_interval(round_table):
    altered = round_table.copy()
    altered["network_low"], altered["network_high"] = 2 * altered["compute_j"], 3 * altered["compute_j"]
    medium = altered["medium"] == "ddr"
    altered.loc[medium, "network_low"] = altered["compute_j"] / 2
    assert paper.medium_claim(altered).verdict == claims.FAILS  # nowhere does computing dominate for sure
    assert paper.dominates(altered)["ddr"] == "it depends"
    altered.loc[medium, "network_high"] = 0.9 * altered["compute_j"]
    assert paper.dominates(altered)["ddr"] == "compute"
    assert paper.medium_claim(altered).verdict == claims.HOLDS


def test_media_are_named_with_boundary_and_source():
    table = paper.media_table().data
    assert len(table) == len(media())
    assert table[["boundary", "source"]].map(len).min().min() > 20


# --- this machine, and the reader ---------------------------------------------------------------------------


def test_sources_of_joules_are_listed_with_a_reason():
    table = paper.probe_table()
    assert {"energy/gpu_j", "energy/cpu_j"} <= set(table["metric"])
    assert set(table["usable"]) <= {"yes", "left aside", "no"}
    assert (table.loc[table["usable"] == "no", "what is known"].map(len) > 20).all()
    assert "measured and modelled joules both" in paper.no_measurement()


def test_the_dropdowns_move_the_bars(capsys, monkeypatch):
    box = paper.explore("ascend_like", "as_trained")
    first = paper.totals("ascend_like", "as_trained")
    assert list(box.figure.data[0].y) == list(first.values())
    box.scenario.value = "ordinary_hardware"
    box.hardware.value = "v100_like"
    moved = paper.totals("v100_like", "ordinary_hardware")
    assert list(box.figure.data[0].y) == list(moved.values()) != list(first.values())
    assert box.figure.layout.title.subtitle.text == "v100_like, ordinary_hardware"
    with pytest.raises(UserError, match="Did you mean 'v100_like'"):
        paper.explore("v100_lik")
    monkeypatch.setattr("workbench.explorer.entry.in_batch", lambda: True)
    assert paper.explore() is None
    assert "JupyterLab" in capsys.readouterr().out


def test_figures_name_axes_units_and_assumptions(ratios, codings, round_table):
    frame = ratios["ascend_like"]
    figures = {
        "ratio": paper.ratio_figure(frame), "levels": paper.level_figure(paper.by_level(PAIR, "ascend_like")),
        "sensitivity": paper.sensitivity_figure(paper.sensitivity("ascend_like", (100,), (6.25,))),
        "tornado": paper.tornado_figure(paper.tornado("ascend_like")), "codecs": paper.codec_figure(codings),
        "round": paper.round_figure(round_table)}
    for name, figure in figures.items():
        titles = [axis.title.text for axis in figure.select_xaxes()]
        assert all(titles), name
        assert len(figure.layout.meta["caption"]) > 100
        assert not data_of(figure).empty
        assert "BOLD" in str(figure.to_json()) or name in ("codecs", "round")
    drawn = data_of(figures["ratio"])
    published = drawn[drawn["trace"].str.startswith("published")]
    assert published["energy [% of FP32]"].tolist() == frame["published"].tolist()
    assert "recollection" in figures["ratio"].layout.meta["caption"]
    bands = drawn[drawn["trace"] == "band over scenarios"]["energy [% of FP32]"].tolist()
    assert bands == frame[["scenario_low", "scenario_high"]].to_numpy().ravel().tolist()
