"""Figures: what they hold is compared with the numbers that went in, and their readability rules are checked as rules."""

from __future__ import annotations

import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.graph_objects import Figure, FigureWidget

from tracking.errors import UserError
from tracking.figures import INK, bars_with_intervals, curves, data_of, histogram, pareto_figure, style_of, thin
from tracking.labels import label_places
from tracking.statistics import interval
from tracking.styles import colours_of


def _frame(accuracy, up=10.0):
    epochs = np.arange(1, len(accuracy) + 1)
    return pandas.DataFrame({"step": epochs, "train/epoch": epochs.astype(float), "comm/up_bytes": up * epochs, "eval/accuracy": accuracy})


def _named(figure, start):
    return next(t for t in figure.data if (t.name or "").startswith(start))


# --- styles ---------------------------------------------------------------------------------------------------

words = st.text("abcdefgh", min_size=1, max_size=6)


@given(st.sets(words, min_size=1, max_size=7))
@settings(max_examples=60)
def test_up_to_seven_methods_have_different_colours(methods):
    styles = style_of(methods)
    assert len({s.colour for s in styles.values()}) == len(methods)
    assert len({(s.dash, s.marker) for s in styles.values()}) == len(methods)


@given(st.lists(words, min_size=1, max_size=6, unique=True), words)
@settings(max_examples=60)
def test_a_later_method_changes_no_earlier_one(methods, extra):
    before, after = style_of(methods), style_of([*methods, extra])
    for m in methods:
        if m <= extra:
            assert before[m] == after[m]


@given(st.permutations(["a x=1", "a x=2", "b", "c"]))
def test_variants_share_the_colour_and_differ_in_the_cue(names):
    styles = style_of(names)
    assert styles["a x=1"].colour == styles["a x=2"].colour
    assert len({s.marker for s in styles.values()}) == 4
    assert len({s.dash for s in styles.values()}) == 4
    assert styles["b"].colour == style_of(["a", "b", "c"])["b"].colour  # variants take no colour from another method


def test_variants_of_the_only_method_differ_in_colour_too_and_stay():
    names = [f"run {i}" for i in range(1, 8)]
    styles = style_of(names)
    assert len({s.colour for s in styles.values()}) == 7
    for count in range(1, 8):
        assert style_of(names[:count]) == {n: styles[n] for n in names[:count]}


@pytest.mark.parametrize("count", [1, 7, 8, 21])
def test_where_colour_is_the_only_cue_it_is_another_for_each_method(count):
    names = [f"m{i}" for i in range(count)]
    found = colours_of(names)
    assert [*found] == names
    assert len(set(found.values())) == count
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in found.values())
    if count <= 7:
        assert found == {name: style.colour for name, style in style_of(names).items()}
    assert colours_of(f"m{i}" for i in range(30)), "looks alike then, but is one"


def test_many_names_still_get_styles():
    styles = style_of(f"m{i}" for i in range(100))
    assert len(styles) == 100


def test_ink_reads_on_white_and_black():
    """WCAG 2.1 contrast ratio, 4.5 : 1 for text, from the definition of relative luminance."""
    c = int(INK[1:3], 16) / 255
    luminance = ((c + 0.055) / 1.055) ** 2.4
    assert 1.05 / (luminance + 0.05) >= 4.5
    assert (luminance + 0.05) / 0.05 >= 4.5


# --- decimation -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 60))
def test_thin_keeps_ends_and_extremes_within_the_limit(values, limit):
    y = np.array(values)
    kept = thin(y, limit)
    assert len(kept) <= max(limit, 1)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    assert y[kept].min() == y.min()
    assert y[kept].max() == y.max()


def test_a_spike_in_a_long_curve_survives():
    accuracy = np.linspace(0, 0.5, 50_000)
    accuracy[31_234] = 0.99
    figure = curves({"a": [_frame(accuracy)]}, "eval/accuracy")
    assert all(len(t.x) <= 2000 for t in figure.data)
    assert max(_named(figure, "a").y) == 0.99


# --- curves ---------------------------------------------------------------------------------------------------


def test_curves_hold_mean_band_n_units_and_caption():
    seeds = [[0.1, 0.5, 0.7], [0.3, 0.4, 0.9]]
    figure = curves({"a": [_frame(s) for s in seeds], "b": [_frame([0.2, 0.3, 0.4])]}, "eval/accuracy", "comm/up_bytes", note="Some CPU")
    assert type(figure) is Figure
    assert not isinstance(figure, FigureWidget)
    line = _named(figure, "a")
    assert line.name == "a (n=2)"
    assert list(line.x) == [10, 20, 30]
    assert list(line.y) == pytest.approx(np.mean(seeds, 0))
    low, high = (t for t in figure.data if t.name is None)
    half = [interval(column).half_width for column in zip(*seeds, strict=True)]
    assert list(high.y) == pytest.approx(np.clip(np.mean(seeds, 0) + half, 0, 1))  # beyond there is no accuracy
    assert list(low.y) == pytest.approx(np.clip(np.mean(seeds, 0) - half, 0, 1))
    assert figure.layout.xaxis.title.text == "comm/up_bytes [B]"
    assert figure.layout.yaxis.title.text == "eval/accuracy [fraction]"
    assert figure.layout.title.subtitle.text == "Some CPU"
    assert "eval/accuracy" in figure.layout.meta["caption"]
    assert "cut at 0 and 1" in figure.layout.meta["caption"]
    assert _named(figure, "b").name == "b (n=1)"  # and no band: two bandless edges were found above


def test_seeds_are_averaged_only_as_far_as_all_go():
    figure = curves({"a": [_frame([0.1, 0.2]), _frame([0.3, 0.4, 0.5])]}, "eval/accuracy")
    assert list(_named(figure, "a").x) == [1, 2]


def test_line_joins_means_only_where_seeds_report_together():
    same = curves({"a": [_frame([0.1, 0.2]), _frame([0.3, 0.4])]}, "eval/accuracy", "comm/up_bytes")
    apart = curves({"a": [_frame([0.1, 0.2, 0.3]), _frame([0.3, 0.4, 0.5], up=7.0)]}, "eval/accuracy", "comm/up_bytes")
    assert _named(same, "a").line.shape == "linear"
    assert _named(apart, "a").line.shape == "hv"
    assert list(_named(apart, "a").x) == [10, 14, 20, 21]
    assert list(_named(apart, "a").y) == pytest.approx([0.2, 0.25, 0.3, 0.35])


def test_log_scales_leave_out_what_they_cannot_show():
    frames = [_frame([0.0, 0.1, 0.2]), _frame([0.0, 0.5, 0.9])]
    figure = curves({"a": frames}, "eval/accuracy", log_x=True, log_y=True)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert all((np.array(t.y) > 0).all() for t in figure.data)
    assert list(_named(figure, "a").x) == [2, 3]


def test_nothing_to_draw_says_what_there_is():
    with pytest.raises(UserError, match="comm/up_bytes, eval/accuracy"):
        curves({"a": [_frame([0.1])]}, "eval/loss")
    with pytest.raises(UserError, match="Did you mean"):
        curves({"a": [_frame([0.1])]}, "eval/acuracy")


# --- other figures --------------------------------------------------------------------------------------------

POINTS = pandas.DataFrame({
    "method": ["a", "b", "c", "d"], "n": [3, 3, 3, 1], "eval/accuracy": [0.9, 0.8, 0.7, np.nan],
    "eval/accuracy ±": [0.01, 0.02, np.nan, np.nan],
    "comm/up_bytes": [100.0, 10.0, 50.0, 1.0],
})


def test_who_has_no_place_on_a_logarithmic_axis_is_named():
    points = pandas.DataFrame({"method": ["silent", "cheap", "dear"], "n": 1, "comm/up_bytes": [0.0, 10.0, 14.0],
                               "eval/accuracy": [0.9, 0.8, 0.95]})
    figure = pareto_figure(points, "comm/up_bytes", "eval/accuracy", log_x=True, note="a machine")
    assert {t.name for t in figure.data} == {"Pareto front of the means", "cheap (n=1)", "dear (n=1)"}
    assert list(figure.data[0].x) == [14.0]  # silent is better and costs less than cheap, drawn or not
    told = "Not drawn, because these axes have no place for it: silent."
    assert figure.layout.title.subtitle.text == f"a machine. {told}"
    assert told in figure.layout.meta["caption"]
    sent = {"a": [0, 0], "b": [3, 6]}
    frames = {m: [pandas.DataFrame({"step": [1, 2], "comm/up_bytes": b, "eval/accuracy": [0.1, 0.2]})] for m, b in sent.items()}
    drawn = curves(frames, "eval/accuracy", "comm/up_bytes", log_x=True)
    assert [t.name for t in drawn.data] == ["b (n=1)"]
    assert drawn.layout.title.subtitle.text.endswith("no place for it: a.")
    with pytest.raises(UserError, match="above zero"):
        pareto_figure(points[:1], "comm/up_bytes", "eval/accuracy", log_x=True)


def test_pareto_figure_draws_front_points_and_bars():
    figure = pareto_figure(POINTS, "comm/up_bytes", "eval/accuracy", log_x=True)
    front = _named(figure, "Pareto")
    assert list(zip(front.x, front.y, strict=True)) == [(10, 0.8), (100, 0.9)]
    assert {t.name for t in figure.data[1:]} == {"a (n=3)", "b (n=3)", "c (n=3)"}  # d was not measured
    assert list(_named(figure, "b (").error_y.array) == [0.02]
    assert _named(figure, "c (").error_y.array is None
    assert "On the front: b, a." in figure.layout.meta["caption"]


def test_histogram_shares_sum_to_one_in_common_bins():
    rng = np.random.default_rng(0)
    groups = {"a": rng.normal(size=500), "b": np.sign(rng.normal(size=300))}
    figure = histogram(groups, bins=40)
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 40)
    for trace, values in zip(figure.data, groups.values(), strict=True):
        assert np.allclose(trace.x, edges)
        assert np.allclose(np.array(trace.y)[:-1] * len(values), np.histogram(values, edges)[0])
    with pytest.raises(UserError, match="finite"):
        histogram({"a": [np.nan]})
    with pytest.raises(UserError, match="bins"):
        histogram({"a": [1.0]}, bins=5000)


def test_bars_show_figure_interval_and_n():
    figure = bars_with_intervals(POINTS, "eval/accuracy")
    assert [t.x[0] for t in figure.data] == ["a (n=3)<br>0.9 ± 0.01", "b (n=3)<br>0.8 ± 0.02", "c (n=3)<br>0.7"]
    assert [(t.y[0], t.error_y.array and t.error_y.array[0]) for t in figure.data] == [(0.9, 0.01), (0.8, 0.02), (0.7, None)]
    # a hatch without a ground of its own is drawn on nothing
    assert all(t.marker.pattern.bgcolor == t.marker.color for t in figure.data)
    assert len({t.marker.pattern.shape for t in figure.data}) == 3
    assert figure.layout.yaxis.rangemode == "tozero"


def test_data_of_gives_back_what_was_drawn():
    data = data_of(pareto_figure(POINTS, "comm/up_bytes", "eval/accuracy"))
    b = data[data["trace"] == "b (n=3)"].iloc[0]
    assert (b["comm/up_bytes [B]"], b["eval/accuracy [fraction]"], b["±"]) == (10, 0.8, 0.02)
    line = data_of(curves({"a": [_frame([0.1, 0.5]), _frame([0.3, 0.4])]}, "eval/accuracy"))
    assert line["step"].tolist() == [1, 2]
    assert line["±"].tolist() == pytest.approx([interval([0.1, 0.3]).half_width, interval([0.5, 0.4]).half_width])


def test_data_of_keeps_both_distances_names_of_points_and_each_panel_s_axes():
    figure = Figure()
    figure.add_scatter(x=[1, 2], y=[3, 4], name="a", error_x={"array": [0.5, 1], "arrayminus": [0.1, 0.2]}, hovertext=["p", "q"])
    figure.add_scatter(x=[5, None, 6], y=[7, 7, 8], name="b", xaxis="x2", yaxis="y2")
    figure.update_layout(xaxis_title="x [s]", yaxis_title="y [J]", xaxis2={"title": {"text": "z [B]"}}, yaxis2={"matches": "y"})
    data = data_of(figure)
    a, b = (data[data["trace"] == name] for name in "ab")
    assert a[["x [s]", "y [J]", "−", "+", "point"]].to_numpy().tolist() == [[1, 3, 0.1, 0.5, "p"], [2, 4, 0.2, 1, "q"]]
    assert b[["z [B]", "y [J]"]].to_numpy().tolist() == [[5, 7], [6, 8]]  # a gap in a line is no figure


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
@settings(max_examples=60)
def test_labels_take_the_usual_place_unless_something_is_there(points):
    x, y = zip(*points, strict=True)
    places = label_places(x, y, ["name"] * len(points))
    assert len(places) == len(points)
    if all(abs(a[0] - b[0]) * 700 > 100 for i, a in enumerate(points) for b in points[:i]):
        assert set(places) == {"top center"}


def test_labels_of_near_points_part():
    # of two points 10 pixels above one another, neither label can stand between them
    assert label_places([0.5, 0.5], [0.5, 0.525], ["lower", "upper"]) == ["bottom center", "top center"]


def test_names_are_plain_text():
    figure = curves({"a<b>&": [_frame([0.1])]}, "eval/accuracy", title="<i>")
    assert figure.data[0].name == "a&lt;b&gt;&amp; (n=1)"  # plotly reads tags in labels
    assert figure.layout.title.text == "&lt;i&gt;"
    assert data_of(figure)["trace"].tolist() == ["a<b>& (n=1)"]
