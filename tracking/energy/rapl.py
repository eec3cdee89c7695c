"""CPU packages: the RAPL energy counters that Linux shows as files (``Documentation/power/powercap``), on Intel and on AMD since Zen.

Zones of ``/sys/class/powercap``: ``package-*`` is a socket (or die) with all in it, every process included; ``core`` and ``uncore`` are
parts of a package; ``dram`` lies beside it on servers; ``psys`` is the platform, packages included. Only packages are added up.
Counters are renewed about every millisecond and come round at ``max_energy_range_uj``, within minutes at full power.
"""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path

from tracking.energy.counter import Counter
from tracking.energy.sources import Source

METRIC = "energy/cpu_j"
PERIOD_S = 0.001
MAX_W = 500.0  # of a package; twice that is still followed rightly
SCOPE = "CPU packages with every process on them, without memory"
ROOT = Path("/sys/class/powercap")
PROC = Path("/proc")
# by name of a sub-zone or zone: the metric a meter of one's own may call it, and why it is not part of energy/cpu_j
ASIDE = {
    "core": ("energy/cpu_core_j", "a part of its package, which has it already"),
    "uncore": ("energy/cpu_uncore_j", "a part of its package, which has it already"),
    "dram": ("energy/dram_j", "memory, which lies beside the packages"),
    "psys": ("energy/psys_j", "the whole platform, packages included"),
}


def sources(root: Path | None = None) -> list[Source]:
    """Every zone under ``root``, with the reason where it cannot be used. One package that cannot be read spoils the sum of all."""
    root = root or ROOT
    zones = {z.name: z for pattern in ("intel-rapl:*", "intel-rapl:*/intel-rapl:*:*") for z in sorted(root.glob(pattern))}
    found = [_zone(zone) for _, zone in sorted(zones.items())]
    packages = [s for s in found if s.metric == METRIC]
    if not packages:
        return [*found, Source("RAPL package", METRIC, "counter", "unusable", _why_none(root))]
    if any(s.status != "ok" for s in packages):
        why = "another package cannot be read, and the sum without it would be too small"
        found = [Source(s.name, METRIC, s.kind, "unusable", why) if s.metric == METRIC and s.status == "ok" else s for s in found]
    return found


def _zone(zone: Path) -> Source:
    try:
        label = (zone / "name").read_text().strip()
    except OSError as error:
        return Source(f"RAPL {zone.name}", METRIC, "counter", "unusable", f"its name cannot be read ({error})")
    name = f"RAPL {label}"
    if zone.name.count(":") > 1:
        name += f" of zone {zone.name.split(':')[1]}"
    package = zone.name.count(":") == 1 and label.startswith("package")
    metric, why_aside = (METRIC, "") if package else ASIDE.get(label, (f"energy/{label}_j", "of unknown relation to the packages"))
    file = zone / "energy_uj"
    try:
        read = _File(file)
        read()
    except PermissionError:
        return Source(name, metric, "counter", "unusable", _root_only(file))
    except (OSError, ValueError) as error:
        return Source(name, metric, "counter", "unusable", f"{file} cannot be read ({type(error).__name__}: {error})")
    try:
        wrap_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        wrap_j = None
    scope = SCOPE if package else why_aside
    counter = Counter(metric, name, read, wrap_j or None, PERIOD_S, scope=scope, max_w=MAX_W)
    if not package:
        return Source(name, metric, "counter", "aside", f"can be read, not part of {METRIC}: {why_aside}", counter)
    range_ = "" if counter.wrap_j else "; its range is not known, so a figure is lost when it comes round"
    return Source(name, metric, "counter", "ok", f"{scope}; renewed about every {PERIOD_S} s{range_}", counter)


class _File:
    """Joules from a file of microjoules, kept open: opening it anew takes longer than the counter itself."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def __call__(self) -> float:
        return int(os.pread(self._handle, 64, 0)) / 1e6


def _root_only(file: Path) -> str:
    return (f"{file} is readable by root only, as the kernel has it since 2020 (PLATYPUS, CVE-2020-8694: the counter leaks what other "
            f"programs compute). Remedy, where all users of the machine are trusted: an administrator runs chmod a+r {file} after each "
            "start, or has a udev or tmpfiles rule do it; in a container the file must be readable inside, too")


def _why_none(root: Path) -> str:
    """Why a machine shows no package."""
    if sys.platform == "darwin":
        return "macOS shows no RAPL counters; its powermetrics tells power to root alone and is not read here. Remedy: a Linux machine"
    if sys.platform == "win32":
        return "Windows shows no RAPL counters without a driver of its own. Remedy: Linux on the bare machine (WSL is a virtual machine)"
    if _virtual():
        return (f"this is a virtual machine, and its host keeps the CPU's energy counters to itself ({root} has no package). "
                "Remedy: run on the bare machine")
    if _contained():
        return (f"this container does not see the counters of its machine ({root} has no package). "
                "Remedy: have /sys/class/powercap and /sys/devices/virtual/powercap mounted into it, readable")
    return (f"{root} has no package: the CPU has no RAPL counters (Intel since Sandy Bridge, AMD since Zen), or the kernel's driver is not "
            "loaded. Remedy: an administrator runs modprobe intel_rapl_msr (for AMD, too)")


def _virtual() -> bool:
    try:
        return any(line.startswith("flags") and " hypervisor" in line for line in (PROC / "cpuinfo").read_text().splitlines())
    except OSError:
        return False


def _contained() -> bool:
    try:
        marks = (PROC / "1/cgroup").read_text()
    except OSError:
        marks = ""
    files = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(f.exists() for f in files) or any(w in marks for w in ("docker", "kubepods", "containerd"))
