"""Peak memory of a run: the CUDA allocator's, or the process's resident set on CPU."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

_PROC = Path("/proc/self")


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc): what earlier runs of a process left is not this run's.

    Many small payloads leave the heap full of holes that it would keep.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Highest memory since construction. On CPU it is the whole process, so runs side by side in one process share it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._resets = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        give_back()
        try:
            (_PROC / "clear_refs").write_text("5")  # Linux: puts VmHWM back to the present size
        except OSError:
            self._resets = False

    def read(self) -> int | None:
        """Bytes, or ``None`` where the system gives no peak that begins with this run."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self._resets:
            return None
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
