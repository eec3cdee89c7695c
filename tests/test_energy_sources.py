"""Sources of measured energy: a made-up tree of RAPL files and a made-up NVML; what cannot be read says why, and what to do."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch

from tracking.energy import EnergyMeter, Probe, ReplayClock, nvml, probe, rapl
from tracking.energy import sources as sources_module

# --- RAPL ---------------------------------------------------------------------------------------------------


def zone(root: Path, name: str, label: str, microjoules: int | str, most: int | None = 262_143_328_850) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in {"name": label, "energy_uj": microjoules, "max_energy_range_uj": most}.items():
        if content is not None:
            (folder / file).write_text(f"{content}\n")
    return folder


@pytest.fixture
def tree(monkeypatch):
    """A folder like /sys/class/powercap that every user may enter, and that the probe takes for it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        monkeypatch.setattr(rapl, "ROOT", Path(name))
        yield Path(name)


@pytest.fixture
def unprivileged():
    """Root reads everything: for the length of a test, be nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def server(root: Path) -> None:
    """Two sockets with their parts, the platform, and package 0 a second time by another way."""
    zone(root, "intel-rapl:0", "package-0", 5_000_000, 10_000_000)
    zone(root, "intel-rapl:1", "package-1-die-0", 1_000_000, 10_000_000)
    zone(root, "intel-rapl:2", "psys", 77_000_000)
    zone(root, "intel-rapl:0:0", "core", 88_000_000)  # beside its package, as the class folder has it
    zone(root, "intel-rapl:0/intel-rapl:0:0", "core", 88_000_000)  # and inside it: the same zone
    zone(root, "intel-rapl:0/intel-rapl:0:1", "uncore", 89_000_000)
    zone(root, "intel-rapl:0/intel-rapl:0:2", "dram", 99_000_000)
    zone(root, "intel-rapl-mmio:0", "package-0", 11_000_000)
    (root / "intel-rapl").mkdir()


def test_packages_are_metered_and_every_other_zone_stands_aside(tree):
    server(tree)
    found = probe("cpu")
    assert [(c.metric, c.source, c.read(), c.wrap_j, c.kind) for c in found.counters] == [
        ("energy/cpu_j", "RAPL package-0", 5.0, 10.0, "counter"),
        ("energy/cpu_j", "RAPL package-1-die-0", 1.0, 10.0, "counter"),
    ]
    aside = {s.name: (s.metric, s.counter.read()) for s in found.sources if s.status == "aside" and s.counter}
    assert aside == {
        "RAPL core of zone 0": ("energy/cpu_core_j", 88.0),
        "RAPL uncore of zone 0": ("energy/cpu_uncore_j", 89.0),
        "RAPL dram of zone 0": ("energy/dram_j", 99.0),
        "RAPL psys": ("energy/psys_j", 77.0),
    }
    assert found.missing == {}


def test_two_packages_through_a_wrap(tree):
    zone(tree, "intel-rapl:0", "package-0", 995_000_000, 1_000_000_000)
    zone(tree, "intel-rapl:1", "package-1", 1_000_000, 1_000_000_000)
    clock = ReplayClock()
    meter = EnergyMeter(probe("cpu").counters, clock=clock)
    meter.start()
    clock.sleep(0.1)
    (tree / "intel-rapl:0/energy_uj").write_text("2000000\n")  # wrapped at 1000 J: 5 J to the end and 2 J more, at 70 W
    (tree / "intel-rapl:1/energy_uj").write_text("1500000\n")
    assert meter.stop() == {"energy/cpu_j": 7.5}


def test_a_reset_is_no_wrap(tree):
    """Down by 4 of 262143 J within 10 ms: as a wrap that would be 26 MW."""
    folder = zone(tree, "intel-rapl:0", "package-0", 5_000_000)
    clock = ReplayClock()
    meter = EnergyMeter(probe("cpu").counters, clock=clock)
    meter.start()
    clock.sleep(0.01)
    (folder / "energy_uj").write_text("1000000\n")
    assert meter.stop() == {}
    assert "so it was reset" in meter.lost["energy/cpu_j"]


def test_a_range_that_is_not_known_is_told_and_loses_the_figure_when_it_is_needed(tree):
    folder = zone(tree, "intel-rapl:0", "package-0", 5_000_000, most=None)
    found = probe("cpu")
    assert found.counters[0].wrap_j is None
    assert "range is not known" in found.sources[-1].detail
    meter = EnergyMeter(found.counters, clock=ReplayClock())
    meter.start()
    (folder / "energy_uj").write_text("6000000\n")
    assert meter.stop() == {"energy/cpu_j": 1.0}
    meter.start()
    (folder / "energy_uj").write_text("500000\n")
    assert meter.stop() == {}
    assert "a range that is not known" in meter.lost["energy/cpu_j"]


def test_root_only_is_explained_and_one_closed_package_spoils_the_sum(tree, unprivileged_files, unprivileged):
    found = probe("cpu")
    assert found.counters == []
    by_name = {s.name: s for s in found.sources}
    closed = by_name["RAPL package-0"]
    assert closed.status == "unusable"
    for word in ("readable by root only", "PLATYPUS", f"chmod a+r {tree / 'intel-rapl:0/energy_uj'}"):
        assert word in closed.detail
    assert by_name["RAPL package-1"].status == "unusable"
    assert by_name["RAPL package-1"].counter is None
    assert "too small" in by_name["RAPL package-1"].detail
    assert "root only" in found.missing["energy/cpu_j"]


@pytest.fixture
def unprivileged_files(tree):
    zone(tree, "intel-rapl:0", "package-0", 1)
    zone(tree, "intel-rapl:1", "package-1", 1)
    (tree / "intel-rapl:0/energy_uj").chmod(0o400 if os.geteuid() == 0 else 0o000)


def test_a_file_without_a_number_is_unusable(tree):
    zone(tree, "intel-rapl:0", "package-0", "no data")
    (source,) = [s for s in probe("cpu").sources if s.metric == "energy/cpu_j"]
    assert source.status == "unusable"
    assert "ValueError" in source.detail


@pytest.mark.parametrize(
    ("platform", "virtual", "contained", "words"),
    [
        ("linux", True, True, ("virtual machine", "bare machine")),
        ("linux", False, True, ("container", "mounted into it")),
        ("linux", False, False, ("modprobe intel_rapl_msr", "Zen")),
        ("darwin", False, False, ("macOS", "powermetrics")),
        ("win32", False, False, ("Windows", "WSL")),
    ],
)
def test_a_machine_without_packages_says_why(tree, monkeypatch, platform, virtual, contained, words):
    monkeypatch.setattr(rapl, "_virtual", lambda: virtual)
    monkeypatch.setattr(rapl, "_contained", lambda: contained)
    monkeypatch.setattr(sys, "platform", platform)
    (source,) = rapl.sources()
    assert source.status == "unusable"
    assert all(word in source.detail for word in (*words, "Remedy"))


def test_what_a_machine_is_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(rapl, "PROC", tmp_path)
    assert not rapl._virtual()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n")
    assert rapl._virtual()
    (tmp_path / "cpuinfo").write_text("model name\t: hypervisor\nflags\t\t: fpu vme\n")
    assert not rapl._virtual()
    (tmp_path / "1").mkdir()
    (tmp_path / "1/cgroup").write_text("0::/kubepods/burstable/x\n")
    assert rapl._contained()


# --- NVML ---------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Board:
    """One board as NVML shows it; an int in place of an answer is the error it raises."""

    def __init__(self, *, energy_mj=1000, mig=3, capability=(9, 0), virtual=0, compute=(), graphics=(), uuid="GPU-1"):
        self.energy_mj, self.mig, self.capability, self.virtual = energy_mj, mig, capability, virtual
        self.compute, self.graphics, self.uuid = compute, graphics, uuid


def module(*boards: Board, init: int = 0) -> types.ModuleType:
    """A ``pynvml`` with these boards. Numbers of errors are NVML's own."""
    fake = types.ModuleType("pynvml")
    fake.__spec__ = importlib.machinery.ModuleSpec("pynvml", None)
    fake.NVMLError = NVMLError
    names = {"NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "DRIVER_NOT_LOADED": 9, "LIBRARY_NOT_FOUND": 12, "LIB_RM_VERSION_MISMATCH": 18}
    for name, value in names.items():
        setattr(fake, f"NVML_ERROR_{name}", value)

    def raising(value):
        if isinstance(value, types.FunctionType):
            value = value()
        if isinstance(value, NVMLError):
            raise value
        return value

    def start():
        if init:
            raise NVMLError(init)

    def by_uuid(uuid):
        found = [b for b in boards if b.uuid == uuid]
        if not found:
            raise NVMLError(6)
        return found[0]

    fake.nvmlInit = start
    fake.nvmlDeviceGetCount = lambda: len(boards)
    fake.nvmlDeviceGetHandleByIndex = lambda i: boards[i]
    fake.nvmlDeviceGetHandleByUUID = by_uuid
    fake.nvmlDeviceGetName = lambda b: b"Board X"
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda b: raising(b.energy_mj)
    fake.nvmlDeviceGetMigMode = lambda b: raising(NVMLError(b.mig) if isinstance(b.mig, int) else b.mig)
    fake.nvmlDeviceGetCudaComputeCapability = lambda b: b.capability
    fake.nvmlDeviceGetVirtualizationMode = lambda b: b.virtual
    fake.nvmlDeviceGetComputeRunningProcesses = lambda b: [types.SimpleNamespace(pid=p) for p in raising(b.compute)]
    fake.nvmlDeviceGetGraphicsRunningProcesses = lambda b: [types.SimpleNamespace(pid=p) for p in raising(b.graphics)]
    return fake


@pytest.fixture
def install(monkeypatch):
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_a_board_is_read_in_joules(install):
    board = Board(energy_mj=12_345)
    install(module(board))
    found, power = nvml.sources()
    assert (found.status, found.metric, found.kind) == ("ok", "energy/gpu_j", "counter")
    assert found.counter.source == "NVML total energy, Board X"
    assert found.counter.read() == 12.345
    assert found.counter.period_s == 0.1
    assert "without its host" in found.counter.scope
    assert (power.status, power.kind, power.counter) == ("aside", "integrated", None)


def test_the_nvml_that_is_installed_has_every_name_the_code_and_the_made_up_one_use():
    real = pytest.importorskip("pynvml")
    fake = module()
    for name in vars(fake):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(real, name), name
    for name in ("NOT_SUPPORTED", "NO_PERMISSION", "DRIVER_NOT_LOADED", "LIBRARY_NOT_FOUND", "LIB_RM_VERSION_MISMATCH"):
        assert getattr(real, f"NVML_ERROR_{name}") == getattr(fake, f"NVML_ERROR_{name}")
    assert real.NVML_GPU_VIRTUALIZATION_MODE_VGPU == nvml._VGPU_GUEST
    assert real.NVMLError(12).value == 12


@pytest.mark.parametrize(
    ("board", "words"),
    [
        (Board(energy_mj=NVMLError(3), capability=(6, 1)), "older than Volta"),
        (Board(energy_mj=NVMLError(3), virtual=2), "virtual GPU"),
        (Board(energy_mj=NVMLError(3)), "newer driver"),
        (Board(energy_mj=NVMLError(4)), "may not ask"),
        (Board(energy_mj=NVMLError(15)), "NVML error 15"),
        (Board(mig=(1, 1)), "MIG"),
    ],
    ids=["Pascal", "vGPU", "unsupported", "permission", "lost", "MIG"],
)
def test_a_board_without_a_counter_says_why(install, board, words):
    install(module(board))
    found = nvml.sources()[0]
    assert found.status == "unusable"
    assert found.counter is None
    assert words in found.detail
    assert "Remedy" in found.detail


def test_mig_that_is_off_or_not_known_does_not_matter(install):
    install(module(Board(mig=(0, 0)), Board(mig=3)))
    assert [s.status for s in nvml.sources()] == ["ok", "ok", "aside"]


@pytest.mark.parametrize(
    ("platform", "error", "words"),
    [("linux", 12, "install its driver"), ("darwin", 12, "macOS"), ("linux", 9, "not loaded"), ("linux", 18, "restart the machine"),
     ("linux", 999, "NVML error 999")],
)
def test_a_driver_that_does_not_answer_says_why(install, monkeypatch, platform, error, words):
    install(module(init=error))
    monkeypatch.setattr(sys, "platform", platform)
    (found,) = nvml.sources()
    assert found.status == "unusable"
    assert words in found.detail
    assert "Remedy" in found.detail


def test_no_library_and_no_board_say_so(install):
    install(None)  # what Python has for a module that must not be found
    assert "pip install nvidia-ml-py" in nvml.sources()[0].detail
    install(module())
    assert "no board" in nvml.sources()[0].detail


def test_the_board_is_found_by_its_uuid(install, monkeypatch):
    """CUDA's first visible device may be NVML's second."""
    install(module(Board(energy_mj=1000, uuid="GPU-a"), Board(energy_mj=2000, uuid="GPU-b")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="b"))
    assert nvml.sources("cuda:0")[0].counter.read() == 2.0
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="MIG-c"))
    assert "MIG" in nvml.sources("cuda:0")[0].detail
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="c"))
    assert "MIG" in nvml.sources("cuda:0")[0].detail


ME = os.getpid()


@pytest.mark.parametrize(
    ("compute", "graphics", "expected"),
    [((ME,), (), False), ((ME,), (ME,), False), ((ME, 1), (), True), ((ME,), (1,), True), ((), (), None), ((-7,), (), None),
     ((-7, -8), (), True)],
    ids=["alone", "alone, drawing", "another", "a display", "nobody listed", "one, perhaps itself", "two, one of them another"],
)
def test_whether_others_are_on_the_board(install, compute, graphics, expected):
    install(module(Board(compute=compute, graphics=graphics)))
    assert nvml.sources()[0].counter.others() is expected


def test_a_driver_that_will_not_list_processes_leaves_it_open(install):
    install(module(Board(compute=NVMLError(4))))
    meter = EnergyMeter([nvml.sources()[0].counter], clock=(clock := ReplayClock()))
    with meter.window() as w:
        clock.sleep(10)
    assert w["energy/gpu_j"].shared is None


# --- the probe as a whole -----------------------------------------------------------------------------------


def test_work_on_the_cpu_is_not_billed_for_a_gpu(tree, install):
    install(module(Board()))
    zone(tree, "intel-rapl:0", "package-0", 1)
    assert [c.metric for c in probe("cpu").counters] == ["energy/cpu_j"]
    assert {c.metric for c in probe().counters} == {"energy/cpu_j", "energy/gpu_j"}
    counters, sources = probe("cpu")  # the probe can be taken apart
    assert Probe(counters, sources).missing == {}


def test_a_broken_driver_costs_the_figure_and_not_the_run(monkeypatch, tree):
    def broken(device):
        raise RuntimeError("driver/library version mismatch")

    monkeypatch.setattr(nvml, "sources", broken)
    zone(tree, "intel-rapl:0", "package-0", 1)
    found = sources_module.probe("cuda")
    assert [c.metric for c in found.counters] == ["energy/cpu_j"]
    assert "RuntimeError: driver/library version mismatch" in found.missing["energy/gpu_j"]


def test_doctor_prints_a_line_a_source(tree, install):
    from workbench.doctor import examine

    server(tree)
    install(module(Board(energy_mj=NVMLError(3), capability=(6, 1))))
    lines = [(r["check"], r["state"]) for r in examine() if r["check"].startswith("energy/")]
    assert lines == [
        ("energy/gpu_j", "absent"), ("energy/gpu_j", "aside"),
        ("energy/cpu_j", "ok"), ("energy/cpu_core_j", "aside"), ("energy/cpu_uncore_j", "aside"), ("energy/dram_j", "aside"),
        ("energy/cpu_j", "ok"), ("energy/psys_j", "aside"),
    ]


def test_every_unusable_source_of_this_machine_has_a_remedy():
    for source in probe().sources:
        assert source.status in ("ok", "aside", "unusable")
        assert source.status != "unusable" or "Remedy" in source.detail, source


@pytest.mark.gpu
def test_a_real_board():
    """Work for six seconds: between 10 and 1500 W, more than at rest, and updates at least every 0.3 s where they can be counted."""
    meter = EnergyMeter.on("cuda")
    a = torch.randn(4096, 4096, device="cuda")
    meter.measure_idle(6)
    work = meter.repeat_for(lambda: a @ a, 6)
    reading = work.reading("energy/gpu_j")
    if reading.joules is None:
        pytest.skip(reading.note)
    assert 10 < reading.mean_w < 1500
    if reading.n_updates is not None:  # a driver that answers slowly is looked at too seldom to count
        assert reading.n_updates >= reading.t_s / 0.3
    assert reading.mean_w > reading.idle_w[0]
    assert work.steps > 10
