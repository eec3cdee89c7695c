"""Packed products against F.linear and F.conv2d on +-1: equal integers, for every backend of this machine."""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from workbench.boolean.layers import BooleanConv2d, BooleanLinear
from workbench.boolean.packed import PackedConv2d, PackedLinear, backends, pack, unpack
from workbench.boolean.packed.words import pack_bools, to_lanes, unpack_bools

BACKENDS = ["torch", *(["numba"] if importlib.util.find_spec("numba") else [])]
NUMBA = pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
each = pytest.mark.parametrize("backend", BACKENDS)


def signs(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(autouse=True)
def small_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two threads share even these small products."""
    if "numba" in BACKENDS:
        from workbench.boolean.packed import host

        monkeypatch.setattr(host, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def weights(layer: BooleanLinear | BooleanConv2d, seed: int) -> None:
    layer.reset_parameters(torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 200), st.integers(1, 90), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_linear(rows: int, n: int, outputs: int, bias: bool, xor: bool, seed: int) -> None:
    layer = BooleanLinear(n, outputs, bias=bias, gate="xor" if xor else "xnor")
    weights(layer, seed)
    x = signs(rows, n, seed=seed)
    want = layer(x)
    for backend in BACKENDS:
        got = PackedLinear.of(layer, backend=backend)(pack(x))
        assert got.dtype == torch.int32
        assert torch.equal(got.float(), want)


@each
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 4)])
def test_linear_takes_any_leading_shape(shape: tuple[int, ...], backend: str) -> None:
    layer, x = BooleanLinear(70, 5), signs(*shape, 70)
    assert torch.equal(PackedLinear.of(layer, backend=backend)(pack(x)).float(), layer(x))


# channels, outputs, groups, kernel, stride, padding, dilation, height, width: tails, whole words, several words,
# uneven everything
CONVS = [
    (3, 5, 1, (3, 3), (1, 1), (1, 1), (1, 1), 8, 9),
    (64, 32, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4, 4),
    (70, 33, 1, (3, 2), (1, 2), (2, 0), (2, 1), 11, 8),
    (128, 64, 1, (3, 3), (1, 1), (1, 1), (1, 1), 5, 5),
    (12, 8, 4, (3, 3), (2, 1), (1, 2), (1, 2), 7, 9),
    (128, 34, 2, (3, 3), (1, 1), (2, 2), (2, 2), 6, 6),
    (6, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 5, 4),
    (9, 4, 1, (5, 5), (3, 3), (4, 4), (1, 1), 3, 2),  # windows larger than the map
]


@each
@pytest.mark.parametrize("pad_value", [0, -1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CONVS)
def test_conv(case: tuple, bias: bool, pad_value: int, backend: str) -> None:
    channels, outputs, groups, kernel, stride, padding, dilation, height, width = case
    layer = BooleanConv2d(channels, outputs, kernel, stride, padding, dilation, groups, bias, pad_value=pad_value)
    weights(layer, channels)
    packed = PackedConv2d.of(layer, backend=backend)
    for batch in (0, 2):
        x = signs(batch, channels, height, width)
        got = packed(pack(x.permute(0, 2, 3, 1).contiguous()))
        assert torch.equal(got.permute(0, 3, 1, 2).float(), layer(x))


def test_border_follows_the_size_of_the_map() -> None:
    layer = BooleanConv2d(5, 4, 3, padding=1)
    packed = PackedConv2d.of(layer)
    for size in ((4, 4), (6, 3), (4, 4)):
        x = signs(1, 5, *size)
        assert torch.equal(packed(pack(x.permute(0, 2, 3, 1).contiguous())).permute(0, 3, 1, 2).float(), layer(x))


@each
@pytest.mark.parametrize("outputs", [1, 32, 63, 65, 130])
def test_threshold_bits(outputs: int, backend: str) -> None:
    """Fused thresholds equal those of the sums, with zeros past the last output."""
    n, g = 77, torch.Generator().manual_seed(outputs)
    x, w = signs(6, n, seed=1), signs(outputs, n, seed=2)
    lanes = to_lanes(pack(w))
    room = lanes.shape[0] * 16
    shift, pattern = (
        torch.randint(-3, 4, (2, room), dtype=torch.int32, generator=g),
        torch.tensor([0, 1, 1], dtype=torch.int32),
    )
    bound = torch.full((room,), torch.iinfo(torch.int32).max, dtype=torch.int32)
    bound[:outputs] = torch.randint(-9, 9, (outputs,), generator=g)
    turned = torch.rand(outputs, generator=g) < 0.5
    sums = F.linear(x, w) + shift[[0, 1, 1, 0, 1, 1], :outputs]
    assert torch.equal(backends.product(pack(x), lanes, n, shift, pattern, backend=backend)[:, :outputs].float(), sums)
    bits = backends.product(pack(x), lanes, n, shift, pattern, bound, pack_bools(turned), backend=backend)
    assert torch.equal(bits, pack_bools((sums >= bound[:outputs]) ^ turned))


def real_error(x: torch.Tensor, n: int) -> torch.Tensor:
    """n - 1 additions, each within half an eps of a partial sum, which is at most sum |x|; the reference, in
    double, adds nothing.
    """
    return n * 2**-24 * x.abs().sum(-1, keepdim=True) + 1e-30


@each
@pytest.mark.parametrize(
    ("rows", "n", "outputs"), [(0, 3, 4), (1, 1, 1), (3, 31, 33), (4, 64, 32), (9, 500, 70), (5, 1030, 16)]
)
def test_real_inputs(rows: int, n: int, outputs: int, backend: str) -> None:
    x, w = torch.randn(rows, n, generator=torch.Generator().manual_seed(n)), signs(outputs, n)
    got = backends.real(x, to_lanes(pack(w)), backend=backend)[:, :outputs]
    assert got.dtype == torch.float32
    assert ((got - x.double() @ w.double().T).abs() <= real_error(x, n)).all()


@NUMBA
def test_votes_without_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of processors without AVX-512."""
    from workbench.boolean.packed import simd

    monkeypatch.setattr(simd, "PERMUTES", False)
    x, w = torch.randn(3, 75), signs(40, 75)
    got = backends.real(x, to_lanes(pack(w)), backend="numba")[:, :40]
    assert ((got - x.double() @ w.double().T).abs() <= real_error(x, 75)).all()


@each
@pytest.mark.parametrize(("pad_value", "groups"), [(0, 1), (-1, 1), (0, 2)])
def test_conv_of_real_inputs(pad_value: int, groups: int, backend: str) -> None:
    layer = BooleanConv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=True, pad_value=pad_value)
    x = torch.randn(2, 4, 7, 6)
    got = PackedConv2d.of(layer, real=True, backend=backend)(x)
    n = 36 // groups + 1
    scale = (
        F.conv2d(
            F.pad(x.abs(), (1, 1, 1, 1), value=abs(pad_value)),
            torch.ones(6, 4 // groups, 3, 3),
            stride=2,
            groups=groups,
        )
        + 1
    )
    assert got.shape == layer(x).shape
    assert ((got - layer.double()(x.double())).abs() <= n * 2**-24 * scale).all()


@NUMBA
def test_callers_in_many_threads_share_the_kernels() -> None:
    layer = BooleanLinear(300, 200)
    packed = PackedLinear.of(layer, backend="numba")
    inputs = [signs(7, 300, seed=i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda x: packed(pack(x)), inputs))
    assert all(torch.equal(s.float(), layer(x)) for s, x in zip(got, inputs, strict=True))


@NUMBA
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    from workbench.boolean.packed import host

    x, w = pack(signs(8, 64)), to_lanes(pack(signs(64, 64)))
    arguments = x, w, 64, torch.zeros(1, 64, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), None, None
    want = host.product(*arguments)  # starts the pool here
    results = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: results.put(bool((host.product(*arguments) == want).all()))
    )
    child.start()
    try:
        assert results.get(timeout=60)
    finally:
        child.kill()
        child.join()


@NUMBA
def test_one_instruction_counts_512_bits() -> None:
    """Where the processor can count the bits of sixteen words at once, the compiled kernel does; no lane leaves its
    vector.
    """
    import llvmlite.binding
    from numba import njit

    from workbench.boolean.packed import cpu

    if not llvmlite.binding.get_host_cpu_features().get("avx512vpopcntdq"):
        pytest.skip("this processor has no vpopcntd")
    flat, bits = np.zeros(64, np.int32), np.zeros(4, np.uint16)
    fresh = njit(cpu.rows.py_func)  # what comes from the disk does not show its code
    fresh(flat, flat, 2, 64, flat, 0, 0, 1, 0, 2, flat, flat[:0], bits, flat, bits)
    (code,) = fresh.inspect_asm().values()
    counts = re.findall(r"vpopcntd\s.*", code)
    # a tile of 4 x 2 and one of 1 x 2; the compiler may unroll either
    assert len(counts) >= 10
    assert all("%zmm" in line for line in counts)


def test_without_numba_and_triton_plain_torch_takes_over() -> None:
    """A compute node: nothing asks for the packages until a product runs, and nothing needs them where they are not."""
    program = """
import sys
import torch
before = set(sys.modules)
from tracking.errors import UserError
from workbench.boolean.layers import BooleanLinear
from workbench.boolean.packed import PackedLinear, pack
loaded = {name.split(".")[0] for name in set(sys.modules) - before} & {"numba", "llvmlite", "triton"}
assert not loaded, loaded
sys.modules["numba"] = sys.modules["llvmlite"] = sys.modules["triton"] = None
layer, x = BooleanLinear(70, 40), 2.0 * torch.randint(2, (3, 70)) - 1
assert torch.equal(PackedLinear.of(layer)(pack(x)).float(), layer(x))
try:
    PackedLinear.of(layer, backend="numba")
except UserError as error:
    assert "pip install numba" in str(error) and "'torch' needs nothing" in str(error), error
else:
    raise SystemExit("numba was not missed")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_refusals() -> None:
    packed = PackedLinear.of(BooleanLinear(70, 4))
    with pytest.raises(UserError, match=r"70 bits as 2 int64 words, not torch.float32 of shape \(3, 70\)"):
        packed(torch.zeros(3, 70))
    with pytest.raises(UserError, match=r"maps of 5 channels as int64 \(batch, height, width, 1\)"):
        PackedConv2d.of(BooleanConv2d(5, 4, 3))(torch.zeros(2, 8, 8, 2, dtype=torch.int64))
    with pytest.raises(UserError, match="2 x 2 are smaller than the window"):
        PackedConv2d.of(BooleanConv2d(5, 4, 3))(torch.zeros(1, 2, 2, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="Did you mean 'numba'"):
        PackedLinear(70, 4, backend="nunba")
    layer = BooleanLinear(70, 4)
    with torch.no_grad():
        layer.weight[1, 2] = 0.5
    with pytest.raises(
        UserError, match=r"body.fc.weight is not Boolean: 1 of its 280 values are not \+-1, for example 0.5"
    ):
        PackedLinear.of(layer, "body.fc")
    assert unpack_bools(torch.zeros(1, dtype=torch.int64), 3).tolist() == [False] * 3
    assert unpack(torch.full((1,), -1), 2).tolist() == [1, 1]
