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
from workbench.grouping import Group
from workbench.spec import resolve
from workbench.studies import igt as paper

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
    table = paper.learning_table({paper.FOUND: {"g": learnt}, paper.DRAWN: {"g": drawn}})
    rows = table.set_index("filters").to_dict("index")
    assert (rows[paper.FOUND]["S1, learning"], rows[paper.FOUND]["S0+S1, learning"]) == ("hurts", "no difference seen")
    assert rows[paper.DRAWN]["S1 [%]"].startswith("70.1 ± ")
    assert pandas.isna(rows[paper.DRAWN]["S1, learning"])


def test_scores_of_orders_come_from_the_transform_and_from_new_graphs_where_they_are_generated():
    frame = paper.order_scores(SMALL, splits=2)
    assert list(frame["split"]) == [0, 1]
    assert ((frame.drop(columns="split") >= 0) & (frame.drop(columns="split") <= 1)).all(axis=None)
    assert frame["raw"].nunique() == 2
    pandas.testing.assert_frame_equal(frame, paper.order_scores(SMALL, splits=2))
    # the first order is learnt before the second, so it is the same without it
    pandas.testing.assert_frame_equal(paper.order_scores(SMALL, 2, kinds=paper.ONES), frame[["split", *paper.ONES]])


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
