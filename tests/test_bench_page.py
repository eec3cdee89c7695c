"""The page of the benchmarks: what was measured is on it, as figures where rows belong together."""

from __future__ import annotations

import numpy as np

from tests.bench import page


def rows():
    for clients in (10, 1000, 100):
        row = {"name": f"replay, {clients} clients", "ours": 1000 / clients, "peer": 7.0, "unit": "us", "n": 3}
        yield page.on_curve(row, "Cost <of> a step", clients, "clients", "replay", "loop")
    yield {"name": "no accelerator", "skipped": "want of a GPU"}


def test_rows_of_a_curve_are_points_in_order_on_both_lines():
    (name, figure), = page.figures(list(rows())).items()
    ours, peer = sorted(figure.data, key=lambda line: line.name, reverse=True)
    assert (name, ours.name, peer.name) == ("Cost <of> a step", "replay", "loop")
    np.testing.assert_array_equal([ours.x, ours.y], [[10, 100, 1000], [100, 10, 1]])
    np.testing.assert_array_equal(peer.y, [7, 7, 7])
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis.type, figure.layout.yaxis.title.text) == ("clients", "log", "[us]")
    assert ours.marker.symbol != peer.marker.symbol


def test_every_row_is_on_the_page_those_that_were_skipped_too(tmp_path):
    written = page.write(tmp_path / "bench.html", list(rows()), {"hardware": "a machine"}).read_text()
    for words in ("replay, 100 clients", "want of a GPU", "a machine", "Curve: Cost &lt;of&gt; a step"):
        assert words in written
