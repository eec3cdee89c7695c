"""The Triton kernels: in Triton's interpreter on the processor, and on CUDA where there is one (``make gpu``)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it comes with PyTorch for CUDA)"
)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# rows, inputs, outputs: one, tails, whole words, more than a tile of each
SHAPES = [(1, 1, 1), (0, 64, 5), (3, 63, 33), (4, 64, 32), (5, 65, 64), (7, 1100, 70), (33, 300, 40)]


def compare(device: str) -> None:
    """Every product against F.linear and F.conv2d in double precision; the program of the interpreter's process too."""
    from workbench.boolean.layers import BooleanConv2d
    from workbench.boolean.packed import PackedConv2d, backends, pack
    from workbench.boolean.packed.words import pack_bools, to_lanes, unpack_bools

    def signs(*shape: int) -> torch.Tensor:
        return (2.0 * torch.randint(2, shape) - 1).to(device)

    torch.manual_seed(0)
    for rows, n, outputs in SHAPES:
        x, w = signs(rows, n), signs(outputs, n)
        lanes = to_lanes(pack(w))
        room = lanes.shape[0] * 16
        pattern = torch.tensor([0] if rows % 3 else [0, 1, 1], dtype=torch.int32, device=device)
        shift = torch.randint(-3, 4, (2, room), dtype=torch.int32, device=device)
        want = (
            F.linear(x.double(), w.double()).int()
            + shift[pattern.long()].repeat(-(-rows // len(pattern)), 1)[:, :outputs]
        )
        got = backends.product(pack(x), lanes, n, shift, pattern, backend="triton")
        assert torch.equal(got[:, :outputs], want), (rows, n, outputs)
        bound = torch.full((room,), torch.iinfo(torch.int32).max, dtype=torch.int32, device=device)
        bound[:outputs] = torch.randint(-5, 5, (outputs,), device=device)
        turned = torch.rand(outputs, device=device) < 0.5
        bits = backends.product(pack(x), lanes, n, shift, pattern, bound, pack_bools(turned), backend="triton")
        assert torch.equal(unpack_bools(bits, outputs), (want >= bound[:outputs]) ^ turned), (rows, n, outputs)
        assert torch.equal(bits, pack_bools((want >= bound[:outputs]) ^ turned)), (rows, n, outputs)
        # the interpreter takes bfloat16 for the integers that hold it
        for kind in (torch.float32, torch.bfloat16 if device == "cuda" else torch.float16):
            real = torch.randn(rows, n, device=device).to(kind)
            error = (
                backends.real(real, lanes, backend="triton")[:, :outputs] - F.linear(real.double(), w.double())
            ).abs()
            # products of +-1 are exact in either type; n additions in float32, each within half an eps of sum |x|. A
            # tensor core adds with fewer guard bits: allow it a few eps
            assert (error <= 4 * n * 2**-23 * real.double().abs().sum(1, keepdim=True)).all(), (rows, n, outputs, kind)
    for groups in (1, 2):
        conv, x = BooleanConv2d(6, 8, 3, (2, 1), 1, (1, 2), groups, bias=True).to(device), signs(2, 6, 7, 8)
        with torch.no_grad():
            packed = PackedConv2d.of(conv, backend="triton")(pack(x.permute(0, 2, 3, 1).contiguous()))
            assert torch.equal(packed.permute(0, 3, 1, 2).double(), conv.double()(x.double()))


@TRITON
def test_in_the_interpreter() -> None:
    """A process of its own: whether Triton interprets is settled when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_packed_gpu import compare; compare('cpu')"],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@TRITON
@pytest.mark.gpu
@CUDA
def test_on_cuda() -> None:
    compare("cuda")


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_exported_network_on_cuda(batch_norm: bool, backend: str) -> None:
    from workbench.boolean.networks import BooleanOptions, booleanise
    from workbench.boolean.packed import export
    from workbench.datasets.models import vgg_small

    net = booleanise(vgg_small((3, 32, 32), 10, 1.0), BooleanOptions(batch_norm=batch_norm)).cuda()
    x = torch.randn(8, 3, 32, 32, device="cuda")
    # cuDNN may choose Winograd's transform, whose sums of +-1 are not quite integers; PyTorch's own convolution counts
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        net(x)
        net.eval()
        assert torch.equal(export(net, backend=backend)(x), net(x))


@TRITON
def test_kernels_compile_to_one_instruction_a_word() -> None:
    """Without a GPU: PTX for compute capability 9.0 holds the bit count, and the products of 16-bit inputs use
    tensor cores.
    """
    program = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from workbench.boolean.packed import gpu

def ptx(kernel, pointers, integers, **constants):
    names = kernel.arg_names
    signature = {**pointers, **{k: "i32" for k in integers.split()}, **{k: "constexpr" for k in constants}}
    source = ASTSource(fn=kernel, signature=signature, constexprs={(names.index(k),): v for k, v in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

tensors = {k: "*i32" for k in "x w shift pattern bound flip out".split()}
for bits in (False, True):
    sizes = dict(ROWS=4, OUTPUTS=32, WORDS=64)
    text = ptx(gpu._xnor, tensors, "rows k n outputs period width", **sizes, BITS=bits, NATIVE=True)
    # 4 x 32 x 64 words for 128 threads
    assert text.count("popc.b32") == 64, text.count("popc.b32")
# a launch makes constants of arguments that are 1
ptx(gpu._xnor, tensors, "k outputs width", rows=1, n=1, period=1, ROWS=1, OUTPUTS=32, WORDS=2, BITS=True, NATIVE=True)
ptx(gpu._real, {"x": "*fp32", "w": "*i32", "out": "*fp32"}, "k outputs", rows=1, n=1, ROWS=16, OUTPUTS=32, WORDS=2)
text = ptx(gpu._real, {"x": "*bf16", "w": "*i32", "out": "*fp32"}, "rows n k outputs", ROWS=16, OUTPUTS=32, WORDS=2)
assert "mma" in text
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
