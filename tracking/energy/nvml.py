"""NVIDIA boards: the total-energy counter of NVML, through NVIDIA's own nvidia-ml-py (module ``pynvml``).

``nvmlDeviceGetTotalEnergyConsumption`` is millijoules since the driver was loaded, for Volta and later (NVML API reference). It covers the
whole board: GPU, memory and regulators, not the host. It is renewed about every 0.1 s (ml.energy blog, "Measuring GPU energy", 2023), and
on A100 and H100 the sensor behind it looks at about a quarter of the time (Yang, Adamek, Armour, SC 2024, arXiv:2312.02741): a single
kernel or a periodic load can be read wrongly by more than the resolution.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tracking.energy.counter import Counter
from tracking.energy.sources import Source

METRIC = "energy/gpu_j"
NAME = "NVML total energy"
PERIOD_S = 0.1
SCOPE = "GPU board, without its host"
VOLTA = (7, 0)  # compute capability
_VGPU_GUEST = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
POWER = Source("NVML power", METRIC, "integrated", "aside",
               "not used: power is averaged over up to 1 s on most boards since Ampere, and an integral of it is another kind of "
               "number than the energy counter's")


def sources(device: str | None = None) -> list[Source]:
    """The board of ``device`` (every board for ``None``), with the reason where its counter cannot be used."""
    if device is not None and not device.startswith("cuda"):
        why = f"not used: the work is on {device}, and the energy of a GPU at rest beside it is not its own"
        return [Source(NAME, METRIC, "counter", "aside", why)]
    try:
        import pynvml
    except ImportError:
        return [_unusable("the Python package nvidia-ml-py is not installed. Remedy: pip install nvidia-ml-py")]
    try:
        pynvml.nvmlInit()
        handles = _handles(pynvml, device)
    except _MIG as slice_:
        return [_unusable(str(slice_))]
    except pynvml.NVMLError as error:
        return [_unusable(_words(pynvml, error))]
    if not handles:
        return [_unusable("the driver knows of no board on this machine. Remedy: see what nvidia-smi says; a container must be given one")]
    return [*(_board(pynvml, handle) for handle in handles), POWER]


class _MIG(Exception):
    def __str__(self) -> str:
        return ("the device is a slice of a board in MIG mode: the counter covers the whole board with all its slices, so no joule can be "
                "told to be this one's. Remedy: a whole board (an administrator: nvidia-smi -mig 0)")


def _unusable(why: str, name: str = NAME) -> Source:
    return Source(name, METRIC, "counter", "unusable", why)


def _handles(pynvml: Any, device: str | None) -> list[Any]:
    if device is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    import torch

    # the visible ordinal is not NVML's: the UUID is the same in both
    uuid = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
    if uuid.startswith("MIG-") or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-"):
        raise _MIG
    return [pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")]


def _board(pynvml: Any, handle: Any) -> Source:
    board = _text(pynvml.nvmlDeviceGetName(handle))
    name = f"{NAME}, {board}"
    try:
        if _ask(pynvml, lambda: pynvml.nvmlDeviceGetMigMode(handle)[0]) == 1:
            return _unusable(str(_MIG()), name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises where the board has no counter
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return _unusable(_no_counter(pynvml, handle, board), name)
        return _unusable(_words(pynvml, error), name)
    counter = Counter(METRIC, name, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, period_s=PERIOD_S, scope=SCOPE,
                      others=lambda: _others(pynvml, handle))
    return Source(name, METRIC, "counter", "ok", f"{SCOPE}; renewed about every {PERIOD_S} s", counter)


def _no_counter(pynvml: Any, handle: Any, board: str) -> str:
    capability = _ask(pynvml, lambda: tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
    if capability is not None and capability < VOLTA:
        return (f"{board} (compute capability {capability[0]}.{capability[1]}) is older than Volta (7.0), with which the energy "
                "counter came. Remedy: a newer board")
    if _ask(pynvml, lambda: pynvml.nvmlDeviceGetVirtualizationMode(handle)) == _VGPU_GUEST:
        return f"{board} is a virtual GPU, and its host keeps the energy counter to itself. Remedy: a board passed through whole"
    return f"the driver says that {board} has no energy counter. Remedy: a newer driver, if the board is Volta or later"


def _words(pynvml: Any, error: Any) -> str:
    """An NVML failure in words, with the remedy."""
    value = error.value
    if value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        if sys.platform == "darwin":
            return "macOS has no NVIDIA driver. Remedy: a Linux or Windows machine with an NVIDIA board"
        return ("NVML, which comes with the NVIDIA driver, is not on this machine. Remedy: where there is an NVIDIA board, install its "
                "driver; in a container, give it the GPUs with the 'utility' capability")
    if value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return ("the NVIDIA driver is installed but not loaded. Remedy: see what nvidia-smi says; an administrator loads it, or restarts "
                "the machine")
    if value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was replaced while its predecessor is still running. Remedy: restart the machine"
    if value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not ask the NVIDIA driver. Remedy: an administrator grants access to the devices /dev/nvidia*"
    return f"NVML fails: {error}. Remedy: see what nvidia-smi says"


def _others(pynvml: Any, handle: Any) -> bool | None:
    """Whether other processes have the board open; ``None`` where that cannot be told.

    Inside a container the driver may list the numbers that processes have outside, or none at all: then this process is not found
    in the list, and a single entry may be itself.
    """
    seen: set[int] = set()
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        seen |= {p.pid for p in ask(handle)}
    if os.getpid() in seen or len(seen) > 1:
        return len(seen) > 1
    return None


def _ask(pynvml: Any, question: Any) -> Any:
    """An answer that not every board has: ``None`` then."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
