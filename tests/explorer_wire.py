"""What the explorer sends to a browser, counted; and made-up runs of any length for it to draw."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import comm
import numpy as np
from comm.base_comm import BaseComm

from tracking.folder import RunFolder
from tracking.journal import Journal
from workbench.explorer.listed import ListedRun
from workbench.explorer.session import Session


class Wire:
    """Bytes of all messages of widgets: JSON and binary parts, by what they are for (``comm_open``, ``comm_msg``)."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.traits: set[str] = set()
        """Every trait whose new value was sent, other than ``None``."""

    def take(self) -> dict[str, int]:
        """What was sent since the last call."""
        found, self.bytes = self.bytes, {}
        return found


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Count what widgets that are made in the block send, as long as it lasts."""
    counted, make = Wire(), comm.create_comm

    class Counting(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            size = len(json.dumps(data, default=str)) + sum(memoryview(b).nbytes for b in buffers or ())
            counted.traits |= {name for name, value in ((data or {}).get("state") or {}).items() if value is not None}
            counted.bytes[msg_type] = counted.bytes.get(msg_type, 0) + size

    comm.create_comm = Counting
    try:
        yield counted
    finally:
        comm.create_comm = make


def made_run(folder: Path, number: int, reports: int) -> RunFolder:
    """The folder of a finished run of method ``toy`` with that many reports of six metrics each."""
    run = RunFolder(folder / f"{number:016x}")
    spec = {"method": "toy", "task": "toy", "params": {"steps": reports, "lr": 0.1}, "task_params": {}, "seed": number, "device": "cpu",
            "threads": 1, "budget": {}, "code": "c0ffee"}
    run.write_run({"key": run.path.name, "name": f"toy toy s{number}", "spec": spec, "tags": {}, "provenance": {}, "created": 1e9 + number})
    noise = np.random.default_rng(number).normal(size=reports)
    with Journal(run.journal_path) as journal:
        for step in range(1, reports + 1):
            loss = 1 / step + 0.01 * noise[step - 1]
            journal.append(step, {"train/loss": loss, "eval/loss": loss, "train/samples": 5.0 * step, "clock/wall_s": 0.01 * step,
                                  "comm/up_bytes": 100.0 * step, "train/lr": 0.1}, time_ms=step)
    run.write_status("finished")
    return run


def shown(session: Session, folders: list[RunFolder]) -> list[ListedRun]:
    """Put runs on the list and read them whole, without the session's threads."""
    session._wake = lambda: None
    runs = [session.show(folder) for folder in folders]
    for r in runs:
        while r.poll():
            pass
    return runs
