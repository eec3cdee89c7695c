"""Measured energy: the NVML total-energy counter of NVIDIA boards and the RAPL counter of CPU packages.

A source that is not there gives no figure; it never gives zero. What a figure covers: ``energy/gpu_j`` is the whole board (GPU, memory,
regulators; not the host) of the one device a run uses, ``energy/cpu_j`` the CPU packages with every process on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RAPL = Path("/sys/class/powercap")


@dataclass
class Counter:
    """An energy counter: ``read`` returns joules since some fixed moment, modulo ``wrap_j`` when it wraps."""

    metric: str
    source: str
    read: Callable[[], float]
    wrap_j: float | None = None


class EnergyMeter:
    """Adds up counters between :meth:`start` and :meth:`stop`; windows accumulate.

    A figure with a window that is not known (a counter failed, or was reset by its driver) is dropped for good: what is left
    would be too small. NVML counters move about ten times a second, so a total made of few windows shorter than 0.1 s is coarse.
    """

    def __init__(self, counters: list[Counter]) -> None:
        self.counters = list(counters)
        self.totals: dict[str, float] = {}
        self._open: list[float | None] | None = None

    def start(self) -> None:
        """Open a window."""
        self._open = [_read(c) for c in self.counters]

    def stop(self) -> None:
        """Close the window and add it to the totals."""
        if self._open is None:
            raise RuntimeError("stop() without start()")
        lost = set()
        for counter, before in zip(self.counters, self._open, strict=True):
            after = _read(counter)
            if before is not None and after is not None and after < before and counter.wrap_j:
                after += counter.wrap_j
            if before is None or after is None or after < before:
                lost.add(counter.metric)
            else:
                self.totals[counter.metric] = self.totals.get(counter.metric, 0.0) + after - before
        self._open = None
        self._drop(lost)

    def resume(self, totals: dict[str, float], begun: bool) -> None:
        """Go on from the totals of an interrupted run; ``begun`` says that it had made a step.

        A figure that one of the two parts cannot have is dropped.
        """
        if begun:
            self.totals = dict(totals)
            self._drop(set(totals) ^ set(self.sources))

    @property
    def sources(self) -> dict[str, str]:
        """Where each figure comes from, by metric name."""
        found: dict[str, str] = {}
        for c in self.counters:
            found[c.metric] = f"{found[c.metric]} + {c.source}" if c.metric in found else c.source
        return found

    def _drop(self, metrics: set[str]) -> None:
        self.counters = [c for c in self.counters if c.metric not in metrics]
        self.totals = {name: joules for name, joules in self.totals.items() if name not in metrics}


def _read(counter: Counter) -> float | None:
    try:
        return counter.read()
    except Exception:  # a driver's failure costs the figure, never the run
        return None


def probe(device: str) -> tuple[list[Counter], list[str]]:
    """The counters this machine lets us read for a run on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``), and why others are missing."""
    counters: list[Counter] = []
    missing: list[str] = []
    for find in (lambda: _nvml(device) if device.startswith("cuda") else [], _rapl):
        try:
            counters += find()
        except Exception as error:  # a driver's failure costs the figure, never the run
            missing.append(f"{type(error).__name__}: {error}")
    return counters, missing


def _nvml(device: str) -> list[Counter]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    # the visible ordinal is not NVML's: the UUID is the same in both
    uuid = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises where the board has no counter
    name = pynvml.nvmlDeviceGetName(handle)
    return [Counter("energy/gpu_j", f"NVML total energy, {name}",
                    lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)]


def _rapl(root: Path = RAPL) -> list[Counter]:
    counters = []
    for zone in sorted(root.glob("intel-rapl:*")):
        # packages only: core and uncore are parts of a package, psys is more than one
        if zone.name.count(":") != 1 or not (zone / "name").read_text().startswith("package"):
            continue
        file = zone / "energy_uj"
        try:
            file.read_text()
        except PermissionError:
            raise PermissionError(f"{file} is readable by root only; ask for read permission to measure CPU energy") from None
        counters.append(Counter("energy/cpu_j", f"RAPL {(zone / 'name').read_text().strip()}",
                                lambda file=file: int(file.read_text()) / 1e6,
                                int((zone / "max_energy_range_uj").read_text()) / 1e6))
    return counters
