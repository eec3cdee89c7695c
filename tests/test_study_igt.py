"""The study of IGT: its runs are legal, its errors and thresholds are the closed forms, its words say what its figures say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from tracking.figures import data_of
from workbench import claims
from workbench.comparison import Comparison
from workbench.graphs.expectation import gaussian_orders, mixing
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.grouping import Group
from workbench.spec import resolve
from workbench.studies import igt as paper
from workbench.studies.igt import concentration, phase_diagram

HERE = dict.fromkeys(("cora", "citeseer", "pubmed", "wikics", "amazon_photo"), True)
SMALL = paper.Bench("sbm", "random", ("igt",), {"nodes": 120, "degree": 12.0, "val_size": 20, "train_per_class": 5})


class FakeRun:
    """An ended run of known figures."""

    def __init__(self, seed: int, **columns: list[float]) -> None:
        self.spec = {"seed": seed, "threads": 1}
        self.folder = SimpleNamespace(
            path=f"run {seed}", read_run=lambda: {"tags": {"workbench.hardware": "a machine"}}
        )
        self.table = pandas.DataFrame(columns)

    def frame(self) -> pandas.DataFrame:
        return self.table


def a_group(method: str, figures: dict[str, list[float]], **facts) -> Group:
    """Runs of one method, one a seed, with these last figures by metric."""
    seeds = range(len(next(iter(figures.values()))))
    runs = [FakeRun(s, **{name: [values[s]] for name, values in figures.items()}) for s in seeds]
    return Group(method, {"method": method, "task": "cora/node", **facts}, runs)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
def test_every_run_of_a_profile_is_legal_and_another(profile):
    runs = [r for b in paper.benches(profile, HERE) for r in b.runs()] + paper.size_runs((100, 200))
    assert len({resolve(**r, device="cpu").spec.key for r in runs}) == len(runs)
    assert {r["method"] for r in runs} == set(paper.METHODS)


def test_a_data_set_that_is_not_at_hand_is_left_out_and_digits_stand_in_for_all():
    assert {b.dataset for b in paper.benches("full", HERE | {"wikics": False})} == {
        "cora",
        "citeseer",
        "pubmed",
        "amazon_photo",
    }
    assert [b.name for b in paper.benches("quick", {})] == ["digits_graph, random"]


def test_at_full_size_settings_are_those_of_the_papers():
    benches = {b.name: b for b in paper.benches("full", HERE)}

    def params(bench: str, method: str):
        return resolve(**benches[bench].run(method), device="cpu").method.params

    gcn, dgi, gat = (params("cora, public", name) for name in ("gcn", "dgi", "gat"))
    assert (gcn.hidden, gcn.dropout, gcn.lr, gcn.weight_decay, gcn.epochs, gcn.patience) == (
        16,
        0.5,
        0.01,
        5e-4,
        200,
        10,
    )
    assert (dgi.hidden, dgi.lr, dgi.patience) == (512, 0.001, 20)
    assert (gat.heads, gat.hidden, gat.dropout, gat.lr, gat.patience) == (8, 8, 0.6, 0.005, 100)
    assert (params("pubmed, public", "gat").output_heads, params("pubmed, public", "dgi").hidden) == (8, 256)
    assert (params("citeseer, public", "grace").tau, params("cora, public", "grace").tau) == (0.9, 0.4)


def test_no_figure_of_igt_is_published_and_random_splits_have_none():
    assert not any("igt" in figures for figures in paper.PUBLISHED.values())
    assert set().union(*paper.PUBLISHED.values()) <= set(paper.METHODS)
    assert paper.Bench("cora", "random").published == {}
    assert paper.Bench("cora", "public").published["dgi"] == "82.3 ± 0.6"


# --- accuracy and orders ------------------------------------------------------------------------------------


def test_the_table_has_published_figures_beside_ours_and_gaps_where_nothing_is_known():
    public = paper.Bench("cora", "public", ("igt", "dgi", "gcn"))
    comparison = Comparison(
        [a_group("igt", {"eval/accuracy": [0.80, 0.82]}), a_group("dgi", {"eval/accuracy": [0.82, 0.82]})], []
    )
    other = paper.Bench("cora", "random", ("igt",))
    table = paper.accuracy_table([public, other], {"cora, public": comparison, "cora, random": Comparison([], [])})
    found = table.set_index("method").to_dict("index")
    assert pandas.isna(found["igt"]["cora, public: published [%]"])
    assert found["igt"]["cora, public: ours [%]"].startswith("81.0 ± ")
    assert found["dgi"]["cora, public: published [%]"] == "82.3 ± 0.6"
    assert pandas.isna(found["gcn"]["cora, public: ours [%]"])
    assert "cora, random: published [%]" not in table
    assert table["cora, random: ours [%]"].isna().all()


def test_claims_of_level_and_speed_follow_the_figures():
    bench = paper.Bench("cora", "public", ("igt", "dgi", "gcn"))

    def verdicts(igt, dgi, gcn):
        groups = [
            a_group("igt", {"eval/accuracy": igt, "clock/wall_s": [2.0, 2.0, 2.1]}),
            a_group("dgi", {"eval/accuracy": dgi, "clock/wall_s": [30.0, 31.0, 32.0]}),
            a_group("gcn", {"eval/accuracy": gcn}),
        ]
        comparison = Comparison(groups, [])
        return [c.verdict for c in (*paper.level_claims(bench, comparison), paper.speed_claim(bench, comparison))]

    near = [0.820, 0.821, 0.822]
    assert verdicts(near, near, [0.815, 0.816, 0.814]) == [claims.HOLDS] * 4
    assert verdicts([0.80, 0.801, 0.802], near, [0.75, 0.751, 0.752]) == [
        claims.FAILS,
        claims.HOLDS,
        claims.FAILS,
        claims.HOLDS,
    ]


def test_what_orders_add_is_the_paired_difference_in_words():
    base = np.array([0.6, 0.7, 0.8])  # splits differ by more than orders do
    frame = pandas.DataFrame(
        {
            "split": range(3),
            "raw": base,
            "S0": base,
            "S1": base,
            "S0+S1": base + np.array([0.02, 0.021, 0.022]),
            "S0+S1+S2": base + np.array([0.01, 0.012, 0.011]),
        }
    )
    gains = paper.gains(frame)
    assert list(gains["S1"].values()) == pytest.approx([0.02, 0.021, 0.022])
    row = paper.order_table({"a graph": frame}).iloc[0]
    assert (row["S1, in words"], row["S2, in words"]) == ("helps", "hurts")
    assert row["S1 adds [points]"].startswith("2.1 ± ")
    assert paper.in_words([0.01, -0.01, 0.0]) == "no difference seen"
    assert paper.in_words([0.5]) == "one split: nothing can be said"
    assert [c.verdict for c in paper.order_claims({"a graph": frame, "sbm, and so on": frame})] == [
        claims.HOLDS,
        claims.FAILS,
    ]


def test_learnt_filters_are_held_against_random_ones_split_by_split():
    base = np.array([0.5, 0.6, 0.7])
    learnt, drawn = (pandas.DataFrame({"split": range(3), "S1": base + d, "S0+S1": base}) for d in (0.0, 0.1))
    drawn["S1"] += [0.0, 0.001, 0.002]
    assert [c.verdict for c in paper.learning_claims({"g": learnt}, {"g": drawn})] == [claims.FAILS]
    assert [c.verdict for c in paper.learning_claims({"g": drawn}, {"g": learnt})] == [claims.HOLDS]
    row = paper.learning_table({"g": learnt}, {"g": drawn}).iloc[0]
    assert (row["S1, learning"], row["S0+S1, learning"]) == ("hurts", "no difference seen")
    assert row["S1, random [%]"].startswith("70.1 ± ")


def test_scores_of_orders_come_from_the_transform_and_from_new_graphs_where_they_are_generated():
    frame = paper.order_scores(SMALL, splits=2)
    assert list(frame["split"]) == [0, 1]
    assert ((frame.drop(columns="split") >= 0) & (frame.drop(columns="split") <= 1)).all(axis=None)
    assert frame["raw"].nunique() == 2
    pandas.testing.assert_frame_equal(frame, paper.order_scores(SMALL, splits=2))


# --- concentration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [6.0, 24.0])
def test_the_error_of_order_0_is_its_closed_form(degree):
    """A mean over D + 1 nodes, D Poisson: variance E 1 / (D + 1) = (1 - exp(-d)) / d; both communities have one variance in sum."""
    found = np.mean([paper.transform_errors(1500, degree, 0.2, seed, orders=0, samples=1000)[0] for seed in range(3)])
    # 4500 nodes with 16 features: the mean square has a relative error near 1 %, doubled as neighbourhoods overlap
    assert found == pytest.approx(((1 - np.exp(-degree)) / degree) ** 0.5, rel=0.03)


def test_what_errors_are_measured_against_is_the_closed_form_of_e_igt():
    rng = np.random.default_rng(0)
    graph, y, probabilities = concentration.drawn_graph(4000, 200.0, 0.3, rng)
    igt = InterferometricGraphTransform(1, dim=None, averaging="row", power=1, normalise="none", solver="none")
    igt.fit(graph)
    # each filter looks at two features of one community: the expectations of the two communities are far apart
    igt.filters_ = [torch.cat([torch.eye(16)[:, ::2], torch.eye(16)[:, 1::2]], 1)]
    spread = torch.from_numpy(concentration.deviations(np.arange(2)))
    mixture = mixing(torch.from_numpy(np.bincount(y)), torch.from_numpy(probabilities))
    exact = gaussian_orders(torch.zeros(2, 16), torch.diag_embed(spread**2), mixture, igt.filters_[0])
    for found, wanted in zip(igt.orders_of(graph), exact, strict=True):
        by_community = torch.stack([found[y == c].mean(0) for c in (0, 1)]).double()
        # means over 2000 nodes of a community, of deviation 1.5 at most: one standard error is 0.034, and beyond four and a
        # half of them lies none of 48 means
        torch.testing.assert_close(by_community, wanted, atol=0.15, rtol=0)
    assert (
        exact[1][0] - exact[1][1]
    ).abs().min() > 0.3  # twice the tolerance: communities taken for each other would show


def test_rates_are_slopes_and_their_claims_follow():
    rows = [
        {"degree": d, "nodes": 100 * d, "order": o, "seed": s, "error": (1 + s) * d**slope}
        for d in (4, 16, 64)
        for s in (0, 1, 2)
        for o, slope in ((0, -0.5), (1, -0.3 - 0.001 * s))
    ]
    frame = pandas.DataFrame(rows)
    assert paper.rates(frame, "degree") == {
        0: pytest.approx(dict.fromkeys(range(3), -0.5)),
        1: pytest.approx({0: -0.3, 1: -0.301, 2: -0.302}),
    }
    verdicts = [c.verdict for c in paper.rate_claims(frame, frame)]
    assert verdicts == [claims.HOLDS, claims.FAILS, claims.FAILS]
    table = paper.rate_table(frame, frame)
    assert list(table["predicted"]) == [-0.5, -0.5, 0.0, 0.0]
    shown = data_of(paper.error_figure({"mean degree": (frame, "degree"), "nodes": (frame, "nodes")}, "Errors"))
    assert {"S0", "S1", "S0, nodes", "S1, nodes", "predicted slope"} == set(shown["trace"])


# --- phases -------------------------------------------------------------------------------------------------


def test_the_threshold_is_where_signal_equals_noise():
    degrees = np.array([0.5, 1.0, 2.0, 9.0, 100.0])
    ratios = paper.threshold(degrees)
    assert np.isnan(ratios[0])
    for degree, ratio in zip(degrees[1:], ratios[1:], strict=True):
        c_in = 2 * degree / (1 + ratio)  # of many nodes
        assert phase_diagram.signal_to_noise(2, c_in, ratio * c_in) == pytest.approx(1)


def test_easy_graphs_are_found_from_edges_and_hopeless_ones_are_not():
    easy, hopeless = (paper.accuracies(200, 20.0, ratio, 0) for ratio in (0.0, 1.0))
    assert set(easy) == set(phase_diagram.KINDS)
    assert easy[phase_diagram.SPECTRAL] == 1.0
    # with equal probabilities labels are independent of the edges: 200 coin flips, named as fits best
    assert hopeless[phase_diagram.SPECTRAL] < 0.65


def test_claims_on_phases_use_cells_far_from_the_threshold():
    def frame(gain: float, below: float) -> pandas.DataFrame:
        rows = []
        for snr, spectral in ((0.1, below), (1.0, 0.1), (5.0, 0.97)):
            for seed in range(3):
                rows.append(
                    {
                        "degree": 1.0,
                        "ratio": snr,
                        "snr": snr,
                        "seed": seed,
                        **dict.fromkeys(phase_diagram.KINDS, 0.6),
                        phase_diagram.SPECTRAL: spectral + 0.001 * seed,
                        phase_diagram.ONE[0]: 0.6 + gain + 0.001 * seed,
                    }
                )
        return pandas.DataFrame(rows)

    assert [c.verdict for c in paper.phase_claims(frame(0.3, 0.52))] == [claims.HOLDS] * 3
    assert [c.verdict for c in paper.phase_claims(frame(0.05, 0.7))] == [claims.FAILS, claims.HOLDS, claims.FAILS]
    regions = paper.region_table(frame(0.3, 0.52))
    assert list(regions["graphs"]) == [3, 3, 3]
    assert regions[f"{phase_diagram.SPECTRAL} [%]"].str.split(" ").str[0].tolist() == ["52.1", "10.1", "97.1"]
    assert len(paper.phase_figure(frame(0.3, 0.5), "Phases").data) == 2 * len(phase_diagram.KINDS)
    assert set(data_of(paper.collapse_figure(frame(0.3, 0.5), "Collapse"))["trace"]) == {
        *phase_diagram.KINDS,
        "Kesten-Stigum threshold",
    }


# --- pictures and cost --------------------------------------------------------------------------------------


def test_principal_planes_keep_the_two_largest_variances():
    from workbench.studies.igt.pictures import principal_plane

    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 5)) @ np.diag([1, 5, 0.1, 3, 0.2]) @ np.linalg.qr(rng.standard_normal((5, 5)))[0]
    plane = principal_plane(torch.from_numpy(x))
    singular = np.linalg.svd(x - x.mean(0))[1]
    np.testing.assert_allclose((plane**2).sum(0), singular[:2] ** 2)
    assert plane[:, 0] @ plane[:, 1] == pytest.approx(0, abs=1e-8)
    found, labels = paper.planes(SMALL)
    drawn = data_of(paper.plane_figure(found, labels, "Planes"))
    assert len(drawn) == 3 * len(labels)


def test_the_exponent_of_time_is_a_slope_over_large_graphs():
    sizes = (1000, 10_000, 100_000)
    times = {1000: 0.5, 10_000: 1.0, 100_000: 9.0}
    groups = [
        a_group(
            "igt",
            {"clock/wall_s": [t, 2 * t, 3 * t], "memory/peak_bytes": [1e9] * 3, "memory/state_bytes": [n] * 3},
            **{"task.nodes": n},
        )
        for n, t in times.items()
    ]
    comparison = Comparison(groups, [])
    assert paper.size_exponents(comparison, sizes) == pytest.approx(dict.fromkeys(range(3), np.log10(9)))
    assert paper.size_claim(comparison, sizes).verdict == claims.HOLDS
    assert paper.size_exponents(comparison, (1000, 10_000)) == {}
    assert paper.size_claim(comparison, (1000,)).verdict == claims.ABSENT
    drawn = data_of(paper.size_figure(comparison, sizes, "Cost"))
    assert set(drawn["trace"]) == {"time to fit", "process, highest", "state"}
