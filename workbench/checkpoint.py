"""Checkpoints: all that a run resumes from, in one file that is replaced as a whole."""

from __future__ import annotations

import io
from typing import Any

import torch

from tracking.errors import UserError
from tracking.folder import RunFolder, write_atomic
from workbench.state import snapshot


def save(folder: RunFolder, state: Any, engine: dict[str, Any]) -> None:
    """Write the State and the engine's own counters; after a crash the file is the old one or the new one."""
    buffer = io.BytesIO()
    torch.save({"state": snapshot(state), "engine": engine}, buffer)
    write_atomic(folder.checkpoint_path, buffer.getbuffer())


def load(folder: RunFolder, device: str | torch.device = "cpu") -> dict[str, Any] | None:
    """``{"state": tree, "engine": counters}``, or ``None`` when there is no checkpoint.

    What was saved from a CUDA device comes back on ``device``, the rest on the CPU, where it was.
    """
    if not folder.checkpoint_path.is_file():
        return None

    def place(storage: torch.UntypedStorage, saved_on: str) -> torch.UntypedStorage:
        return storage if saved_on == "cpu" else storage.to(device=torch.device(device))

    try:
        return torch.load(folder.checkpoint_path, map_location=place, weights_only=True)
    except Exception as error:
        raise UserError(f"{folder.checkpoint_path} is damaged ({type(error).__name__}). "
                        "Delete it, or run with fresh=True, to start this run again.") from None
