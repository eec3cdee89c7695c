"""The run folder: whole files or none, one process a run, and one word of control."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tracking.errors import UserError
from tracking.folder import RunFolder, write_atomic

ROOT = Path(__file__).parent.parent


def test_write_is_whole_or_not_at_all(tmp_path):
    """A reader beside a writer only ever sees one of the contents; a failed write leaves the old one and no litter."""
    path, contents = tmp_path / "f", [bytes([i]) * 200_000 for i in range(4)]
    write_atomic(path, contents[0])
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(10):
        for content in contents:
            write_atomic(path, content)
    over.set()
    reader.join()
    assert seen <= set(contents)
    with pytest.raises(TypeError):
        write_atomic(path, 3)
    assert path.read_bytes() == contents[-1]
    assert os.listdir(tmp_path) == ["f"]


def test_status_and_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.read_status() is None
    with pytest.raises(UserError, match="has no run"):
        folder.read_run()
    assert not folder.path.exists()
    folder.write_status("paused", "by hand")
    status = folder.read_status()
    assert (status["status"], status["reason"], status["pid"]) == ("paused", "by hand", os.getpid())
    folder.write_run({"key": "a", "params": {"lr": 0.1}})
    assert folder.read_run() == {"key": "a", "params": {"lr": 0.1}}
    with pytest.raises(UserError, match="Did you mean 'finished'"):
        folder.write_status("finnished")
    folder.run_path.write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        folder.read_run()


def test_control(tmp_path):
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    assert folder.control() == "run"
    for word in ("pause", "run", "stop"):
        other.write_control(word)
        assert folder.control() == word
    with pytest.raises(UserError, match="Did you mean 'stop'"):
        other.write_control("stopp")
    folder.control_path.write_text("  PAUSE\n")  # written by hand, with echo
    assert folder.control() == "pause"
    folder.control_path.write_text("halt")
    assert folder.control() == "pause"
    folder.control_path.unlink()
    assert folder.control() == "run"


HOLD = """
import sys
from tracking.folder import RunFolder
folder = RunFolder(sys.argv[1])
with folder.lock():
    folder.write_status("running")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_a_run(tmp_path):
    """The second process is told who holds the run; the lock of a killed holder is free at once."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"held by process {holder.pid} on "), RunFolder(tmp_path).lock():
        pass
    holder.kill()
    holder.communicate()
    with RunFolder(tmp_path).lock(), pytest.raises(UserError, match="is held by"), RunFolder(tmp_path).lock():
        pass
    with RunFolder(tmp_path).lock():
        pass
