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


def load(folder: RunFolder) -> dict[str, Any] | None:
    """``{"state": tree, "engine": counters}`` on the CPU, or ``None`` when there is no checkpoint."""
    if not folder.checkpoint_path.is_file():
        return None
    try:
        return torch.load(folder.checkpoint_path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{folder.checkpoint_path} is damaged ({type(error).__name__}). "
                        "Delete it, or run with fresh=True, to start this run again.") from None
