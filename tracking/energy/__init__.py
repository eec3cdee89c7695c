"""Measured energy: the NVML total-energy counter of NVIDIA boards and the RAPL counters of CPU packages.

A source that is not there gives no figure and a reason; it never gives zero. What a figure covers: ``energy/gpu_j`` is the whole
board (GPU, memory, regulators; not the host) of the one device a run uses, ``energy/cpu_j`` the CPU packages with every process on them.

    meter = EnergyMeter.on("cuda")
    meter.measure_idle()
    with meter.window("training") as window:
        train()
    meter.measure_idle()
    print(window["energy/gpu_j"])

Rules of measuring that no meter can keep for its user: warm up to a steady temperature, alternate what is compared (A B B A), repeat and
report the spread, and note clocks and power limits.
"""

from tracking.energy.clock import Clock, SystemClock
from tracking.energy.counter import KINDS, Counter
from tracking.energy.meter import EnergyMeter, Repeated
from tracking.energy.reading import Reading, Resolution, shortest_window
from tracking.energy.replay import ReplayClock, ReplayCounter, ReplayMeter, Trace, read_trace, record_trace
from tracking.energy.sources import Probe, Source, probe
from tracking.energy.window import Window

__all__ = [
    "KINDS", "Clock", "Counter", "EnergyMeter", "Probe", "Reading", "Repeated", "ReplayClock", "ReplayCounter", "ReplayMeter", "Resolution",
    "Source", "SystemClock", "Trace", "Window", "probe", "read_trace", "record_trace", "shortest_window",
]
