"""What is sent to the browser stays small, however long the runs are and however many there are: sizes, not times."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.conftest import WAIT_S
from tests.explorer_wire import made_run, shown, wire
from workbench.explorer.board import Board
from workbench.explorer.curves import ALL_POINTS
from workbench.explorer.session import Session

LONG, MANY = 30_000, 50


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("long"), 1, LONG)


def test_a_long_run_is_drawn_thin_and_read_in_pieces(long, toy):
    with wire() as sent:
        session = Session()
        board = Board(session, 2000)
        sent.take()
        (r,) = shown(session, [long])
        assert len(r.rows) == LONG
        board.refresh()
        first = sum(sent.take().values())
        board.refresh()
        assert sent.take() == {}  # nothing new, nothing sent
        trace = board.figure.data[0]
        assert len(trace.x) <= 2000
        # two arrays of float64, and the table, labels and lists
        assert first < 2000 * 2 * 8 * 1.4 + 30_000
        losses = r.rows.column(board.metric.value)
        assert min(trace.y) == losses.min()
        assert max(trace.y) == losses.max()
        r.rows.append({"step": LONG + 1, "eval/loss": 0.5, "train/loss": 0.5})
        r.version += 1
        board.refresh()
        assert trace.x[-1] == LONG + 1
        assert 0 < sum(sent.take().values()) < 2000 * 2 * 8 * 1.4 + 10_000


def test_fifty_runs_share_the_points_of_a_few(tmp_path, toy):
    folders = [made_run(tmp_path, n, 1000) for n in range(1, MANY + 1)]
    with wire() as sent:
        session = Session()
        board = Board(session, 2000)
        runs = shown(session, folders)
        board.refresh()
        points = sum(len(t.x) for t in board.figure.data)
        assert points <= ALL_POINTS
        assert all(len(t.x) > 400 for t in board.figure.data)
        sent.take()
        board.axis.value = "clock/wall_s"
        assert sum(sent.take().values()) < points * 2 * 8 * 1.4 + 100_000
        runs[7].rows.append({"step": 1001, "eval/loss": 0.5, "clock/wall_s": 99.0})
        runs[7].version += 1
        board.refresh()  # only the curve that has grown is sent again
        assert sum(sent.take().values()) < 2 * points / MANY * 2 * 8 * 1.4 + 20_000
        board.bands.value = True
        low, _, mean = board.figure.data
        expected = np.mean([r.rows.column("eval/loss")[:1000] for r in runs], axis=0)
        at = np.searchsorted(0.01 * np.arange(1, 1001), np.asarray(mean.x) - 1e-9)
        np.testing.assert_allclose(mean.y, expected[at], rtol=1e-9)
        assert (np.asarray(low.y) < np.asarray(mean.y)).all()


def test_what_is_drawn_is_sent_also_while_a_message_of_the_page_is_taken_in(tmp_path, toy):
    """A trait that is set and set back while changes are held is sent by nobody: without a lock this trace would be lost."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(dict):
        def __getitem__(self, key):
            entered.set()
            go_on.wait(WAIT_S)
            return super().__getitem__(key)

    with wire() as sent:
        session = Session()
        board = Board(session, 2000)
        shown(session, [made_run(tmp_path, 1, 10)])
        page = threading.Thread(target=lambda: board.figure.set_state(Slow(_js2py_pointsCallback=None)))
        page.start()
        assert entered.wait(WAIT_S)
        sent.traits.clear()
        drawing = threading.Thread(target=board.refresh)
        drawing.start()
        drawing.join(1.0)  # it waits for the message; one that did not wait would be done by now
        go_on.set()
        for thread in (page, drawing):
            thread.join(WAIT_S)
        assert "_py2js_addTraces" in sent.traits
        assert len(board.figure.data) == 1


def test_choosing_leaves_no_widgets_behind(ex):
    """A kernel remembers every widget that is not closed, and each page that is loaded again fetches them all."""
    from ipywidgets.widgets.widget import _instances

    ex.choose("askewsgd", "digits/mlp")
    before = len(_instances)
    for _ in range(3):
        ex.choose("toy", "toy")
        ex.choose("askewsgd", "digits/mlp")
    assert len(_instances) == before


def test_a_page_that_has_not_got_the_figure_gets_another_one(tmp_path, toy):
    """What a page asks for with its message: the same traces under the same layout, and it is drawn on from there."""
    session = Session()
    board = Board(session, 2000)
    (r,) = shown(session, [made_run(tmp_path, 1, 10)])
    board.refresh()
    before = board.figure
    x, y = before.data[0].x[-1], before.data[0].y[-1]
    assert f'data-traces="1" data-ends="{float(x) + float(y)!r}"' in board.drawn.value
    board.fit._handle_custom_msg({"redraw": True}, [])
    assert board.figure is not before
    assert board.figure in board._holder.children
    assert before not in board._holder.children
    assert board.figure.layout.yaxis.title == before.layout.yaxis.title
    for now, then in zip(board.figure.data, before.data, strict=True):
        assert (list(now.x), list(now.y), now.name, now.line, now.meta) == (list(then.x), list(then.y), then.name, then.line, then.meta)
    r.rows.append({"step": 11, "eval/loss": 0.5})
    r.version += 1
    board.refresh()
    assert board.figure.data[0].x[-1] == 11
    assert f'data-ends="{11 + 0.5!r}"' in board.drawn.value
