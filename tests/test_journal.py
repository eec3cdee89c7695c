"""The journal against its promises: bits, torn lines, cuts, readers beside a writer, kill -9, a full disk."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.errors import UserError
from tracking.journal import Journal, frame, read

ROOT = Path(__file__).parent.parent
NAMES = st.text(min_size=1, max_size=12)
REPORTS = st.lists(st.tuples(st.integers(-5, 10**12), st.integers(0, 2**45),
                             st.dictionaries(NAMES, st.floats() | st.integers(-2**70, 2**70), max_size=4)), max_size=8)


def bits(value: float | int) -> bytes | int:
    """Equality that tells -0.0 from 0.0; every NaN counts as the one that Python writes."""
    if isinstance(value, int):
        return value
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


def same(entries, reports) -> bool:
    return ([(e.step, e.time_ms, {k: bits(v) for k, v in e.values.items()}) for e in entries]
            == [(step, time_ms, {k: bits(v) for k, v in values.items()}) for step, time_ms, values in reports])


def write(path, reports) -> list[int]:
    """Write a new journal and return the offset after each line."""
    path.unlink(missing_ok=True)
    ends = []
    with Journal(path) as journal:
        for step, time_ms, values in reports:
            journal.append(step, values, time_ms)
            ends.append(journal.offset)
        assert journal.lines == len(reports)
    return ends


@given(REPORTS)
def test_every_bit_comes_back(tmp_path_factory, reports):
    path = tmp_path_factory.getbasetemp() / "bits.jsonl"
    ends = write(path, reports)
    assert same(read(path), reports)
    assert [e.end for e in read(path)] == ends


@given(REPORTS, st.data())
def test_cut_at_any_byte(tmp_path_factory, reports, data):
    """Whatever byte a crash cut at: the whole lines before it are there, and the journal goes on after them."""
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    ends = write(path, reports)
    cut = data.draw(st.integers(0, path.stat().st_size))
    os.truncate(path, cut)
    whole = sum(end <= cut for end in ends)
    assert same(read(path), reports[:whole])
    with Journal(path) as journal:
        assert (journal.lines, journal.offset) == (whole, ends[whole - 1] if whole else 0)
        journal.append(7, {"x": 0.1}, 8)
    assert same(read(path), [*reports[:whole], (7, 8, {"x": 0.1})])


@given(REPORTS.filter(bool), st.data())
def test_cut_back_to_a_checkpoint(tmp_path_factory, reports, data):
    path = tmp_path_factory.getbasetemp() / "checkpoint.jsonl"
    ends = [0, *write(path, reports)]
    cut = data.draw(st.integers(0, ends[-1] + 2))
    before = path.read_bytes()
    if cut in ends:
        with Journal(path, truncate_at=cut) as journal:
            assert (journal.offset, journal.lines) == (cut, ends.index(cut))
        assert same(read(path), reports[:ends.index(cut)])
    else:
        with pytest.raises(UserError, match="in the middle of a line" if cut <= ends[-1] else f"has {ends[-1]} bytes"):
            Journal(path, truncate_at=cut)
        assert path.read_bytes() == before


def test_a_cut_journal_is_a_new_file(tmp_path):
    """A reader that follows the journal by offset must be able to tell that its offset means nothing any more."""
    path = tmp_path / "journal.jsonl"
    ends = write(path, [(i, i, {"x": i / 3}) for i in range(3)])
    old = path.stat().st_ino
    with open(path, "rb"):  # keeps the old inode from being given to the new file
        Journal(path, truncate_at=ends[-1]).close()
        assert path.stat().st_ino == old
        Journal(path, truncate_at=ends[0]).close()
        assert path.stat().st_ino != old


def test_numbers_of_other_libraries(tmp_path):
    numpy = pytest.importorskip("numpy")
    write(tmp_path / "j", [(numpy.int64(3), numpy.int64(4), {"a": numpy.float32(0.1), "b": numpy.int64(5), "c": True})])
    entry = next(read(tmp_path / "j"))
    assert entry[:3] == (3, 4, {"a": float(numpy.float32(0.1)), "b": 5.0, "c": 1.0})


def test_garbage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    ends = write(path, [(i, i, {"x": 1.5}) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[ends[0] + 3] = 0
    path.write_bytes(data)
    entries = read(path)
    assert next(entries).step == 0
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2 is not a report"):
        next(entries)
    with pytest.raises(UserError, match="line 2"):  # the number counts from the top of the file, wherever reading began
        list(read(path, ends[0]))
    assert [e.step for e in read(path, ends[1])] == [2, 3]


@pytest.mark.parametrize("tail", [b"\0" * 40 + b"\n", b"{}\n", b'{"step":"1","time_ms":1,"values":{}}\n', b"[1]\n"])
def test_garbage_as_last_line_is_torn(tmp_path, tail):
    """A machine that lost power can leave a block of zeros: that is a torn line, newline or not."""
    path = tmp_path / "journal.jsonl"
    ends = write(path, [(1, 1, {"x": 1.0}), (2, 2, {"x": 2.0})])
    with open(path, "ab") as file:
        file.write(tail)
    assert [e.step for e in read(path)] == [1, 2]
    with Journal(path) as journal:
        assert (journal.offset, journal.lines) == (ends[-1], 2)


def test_frame(tmp_path):
    path = tmp_path / "j"
    write(path, [(1, 10, {"a": 0.5}), (2, 20, {"a": 0.25, "b": 3}), (2, 21, {"b": 4})])
    table = frame(path)
    assert list(table.columns) == ["step", "time_ms", "a", "b"]
    assert table["step"].tolist() == [1, 2, 2]
    assert table["a"].isna().tolist() == [False, False, True]
    assert table["b"].isna().tolist() == [True, False, False]
    assert frame(tmp_path / "absent").empty
    assert list(frame(tmp_path / "absent").columns) == ["step", "time_ms"]


def test_a_reader_beside_a_writer(tmp_path):
    """A reader in another process that follows the growing file sees every line once and nothing torn."""
    path = tmp_path / "journal.jsonl"
    code = textwrap.dedent(f"""
        from tracking.journal import Journal
        with Journal({str(path)!r}) as journal:
            for i in range(20000):
                journal.append(i, {{"x": i / 7, "y": "x" and i * 1e-300}}, i)
    """)
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    seen, end = [], 0
    while True:
        over = writer.poll() is not None
        for entry in read(path, end):
            seen.append(entry.values["x"])
            end = entry.end
        if over:
            break
    assert writer.returncode == 0
    assert seen == [i / 7 for i in range(20000)]


def test_kill_loses_no_report(tmp_path):
    """What ``append`` has returned from is in the file, although nobody flushed."""
    path = tmp_path / "journal.jsonl"
    code = textwrap.dedent(f"""
        import sys
        from tracking.journal import Journal
        journal = Journal({str(path)!r})
        i = 0
        while True:
            journal.append(i, {{"x": 1.0}})
            sys.stdout.write(f"{{i}}\\n"); sys.stdout.flush()
            i += 1
    """)
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    told = [int(writer.stdout.readline()) for _ in range(500)][-1]
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split("\n")[:-1]  # what it still said before it died
    told = int(rest[-1]) if rest else told
    steps = [e.step for e in read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) in (told + 1, told + 2)


def test_full_disk_leaves_whole_lines(tmp_path):
    """A real write error (the process may not make files larger than 1000 bytes), then room again."""
    path = tmp_path / "journal.jsonl"
    code = textwrap.dedent(f"""
        import resource
        from tracking.journal import Journal, read
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        journal, done = Journal({str(path)!r}), 0
        try:
            while True:
                journal.append(done, {{"x": 0.5}}, 0)
                done += 1
        except OSError:
            pass
        assert [e.step for e in read({str(path)!r})] == list(range(done)) and journal.lines == done
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.append(done, {{"x": 0.5}}, 0)
        print(done + 1)
    """)
    done = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              cwd=ROOT).stdout)
    assert done > 10
    assert [e.step for e in read(path)] == list(range(done))
