"""Tables that a notebook shows with their texts whole."""

from __future__ import annotations

import pandas

import workbench
from tracking.frame import ReadableFrame
from workbench.catalogue import parameter_rows


def test_a_notebook_shows_every_description_whole():
    shown = workbench.describe("askewsgd")._repr_html_()
    longest = max((row["description"] for row in parameter_rows("askewsgd")), key=len)
    assert len(longest) > 50  # what pandas would cut
    assert longest in shown
    assert longest not in pandas.DataFrame(workbench.describe("askewsgd"))._repr_html_()


def test_it_is_a_data_frame_in_all_else():
    plain = pandas.DataFrame({"a": [1.5, 2.5], "b": ["x" * 80, "y"]})
    ours = ReadableFrame(plain)
    pandas.testing.assert_frame_equal(pandas.DataFrame(ours.loc[ours.a > 2]), plain.loc[plain.a > 2])
    assert "x" * 80 in ours.loc[:0]._repr_html_()
    assert pandas.get_option("display.max_colwidth") == 50
