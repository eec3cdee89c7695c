"""Two ways to seek codewords, kernels and matrix products: nearest ones, equal payloads and sums, for any shape and number of threads."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.codecs import bits
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError
from workbench.decoupled import OnlineVQ
from workbench.decoupled.vq_codec import LinkQuantiser, tally

BACKENDS = ["torch", *(["numba"] if importlib.util.find_spec("numba") else [])]
NUMBA = pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
each = pytest.mark.parametrize("backend", BACKENDS)
HEADER = 17 + 4  # four dimensions, and the mark of the codebook
# samples, groups, d, height, width, codewords: parts of a chunk of 64 vectors, of a tile of 6 codewords, of a byte; one position; big codes
SHAPES = [(1, 1, 1, 1, 1, 1), (3, 4, 4, 6, 5, 256), (2, 3, 5, 8, 8, 7), (70, 2, 16, 1, 1, 33), (5, 1, 3, 7, 9, 300), (130, 1, 2, 1, 1, 6)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(samples, groups, d, height, width, size, seed=0):
    return normal(samples, groups * d, height, width, seed=seed), normal(groups, size, d, seed=seed + 1)


def vectors(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.movedim(1, -1).reshape(-1, groups, x.shape[1] // groups)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three threads share even these small searches."""
    if "numba" in BACKENDS:
        from workbench.boolean.packed import host

        monkeypatch.setattr(host, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


# --- search -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(1, 18), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40),
       st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 2**31))
def test_codes_are_of_nearest_codewords(samples, groups, d, height, width, size, scale, seed):
    """In float64 no codeword is nearer than the one found, up to what float32 makes of d + 1 terms of a score."""
    x, book = made(samples, groups, d, height, width, size, seed)
    x, book = scale * x, scale * book
    v = vectors(x, groups).double()
    for backend in BACKENDS:
        codes = LinkQuantiser(book, backend=backend).codes(x)
        assert codes.dtype == torch.int64
        for g in range(groups):
            own = book[g].double()
            distances = torch.cdist(v[:, g], own, compute_mode="donot_use_mm_for_euclid_dist").square()
            found = distances.gather(1, codes[:, g:g + 1])[:, 0]
            terms = v[:, g].norm(dim=1) * own.norm(dim=1).max() + own.square().sum(1).max() / 2
            # each of two scores is off by (d + 1) roundings of at most half a unit in the last place, 6e-8; distances are twice scores
            assert (found <= distances.min(1).values + 4 * (d + 1) * 6e-8 * terms).all()


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_ties_go_to_the_first_codeword(shape, backend):
    """Small whole numbers, so that every score is exact, and each codeword at least twice."""
    samples, groups, d, height, width, size = shape
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.integers(-2, 3, (samples, groups * d, height, width)).astype(np.float32))
    half = rng.integers(-2, 3, (groups, -(-size // 2), d))
    book = torch.from_numpy(np.concatenate([half, half], 1).astype(np.float32))
    want = (vectors(x, groups)[:, :, None] - book).square().sum(-1).numpy().argmin(-1)
    np.testing.assert_array_equal(LinkQuantiser(book, backend=backend).codes(x).numpy(), want)


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_payloads_are_those_of_the_ledgers_quantiser(shape, backend):
    """The same bits for the same codes, and the same values back."""
    x, book = made(*shape)
    vq, peer = LinkQuantiser(book, backend=backend), VectorQuantiser(book)
    payload, codes = vq.coded(x)
    assert payload == vq.encode(x) == peer.payload(x, codes)
    assert len(payload) == HEADER + bits.packed_size(codes.numel(), vq.width)
    assert torch.equal(codes, vq.codes(x))
    assert torch.equal(vq.decode(payload), peer.decode(payload))
    assert torch.equal(vq.look_up(codes, tuple(x.shape)), peer.look_up(codes, tuple(x.shape)))
    assert torch.equal(vq.codes(x.to(memory_format=torch.channels_last)), codes), "strides do not matter"


@each
@pytest.mark.parametrize(("size", "flipped"), [(5, -1), (600, -1), (300, HEADER)])
def test_a_code_beyond_the_codebook_is_refused(size, flipped, backend):
    """Of all ones in the last byte (of high bits, where codes have more than eight), or in a low byte below a high bit."""
    x, book = normal(8, 4, 4, 4), normal(2, size, 2, seed=1)
    vq = LinkQuantiser(book, backend=backend)
    codes = torch.full((128, 2), size - 1)
    payload = bytearray(vq.payload(x, codes))
    payload[flipped] = 255
    with pytest.raises(ValueError, match=f"an index [0-9]+ into {size} codewords"):
        vq.decode(bytes(payload))
    for torn in (payload[:-1], payload + b"0"):
        with pytest.raises(ValueError, match="Torn or foreign"):
            vq.decode(bytes(torn))


@pytest.mark.parametrize("size", [2, 5, 16, 100, 256, 257, 4096])
def test_every_width_of_code(size):
    """One bit to twelve; beyond eight the low bytes come first."""
    x, book = normal(9, 4, 5, 5), normal(2, size, 2, seed=1)
    payloads = {LinkQuantiser(book, backend=b).encode(x) for b in BACKENDS}
    assert len(payloads) == 1
    codes = LinkQuantiser(book).codes(x).reshape(-1).numpy().astype(np.uint16)
    assert payloads.pop()[HEADER:] == bits.pack(codes, (size - 1).bit_length()).tobytes()


@each
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_what_is_not_finite_is_refused(backend, wrong, place):
    x, book = made(5, 2, 4, 9, 9, 12)
    x.view(-1)[place] = wrong
    with pytest.raises(ValueError, match=f"1 of {x.numel()} values are not finite"):
        LinkQuantiser(book, backend=backend).encode(x)


@each
def test_values_near_the_largest_are_no_fault(backend):
    """Their sum is beyond float32, they are not."""
    x, book = torch.full((2, 4, 3, 3), 3e38), torch.zeros(1, 1, 4)
    assert LinkQuantiser(book, backend=backend).codes(x).eq(0).all()


@NUMBA
def test_a_score_is_a_fused_product_of_sixteen_lanes() -> None:
    """On a processor with AVX-512 the loop over coordinates multiplies and adds 24 vectors in registers, and stores none."""
    from numba import njit

    from workbench.boolean.packed import simd
    from workbench.decoupled import vq_kernel

    if not simd.PERMUTES:
        pytest.skip("this processor has no AVX-512")
    fresh = njit(vq_kernel._search.py_func)  # what comes from the disk does not show its code
    codes, packed, x = np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.float32)
    fresh(x, (1, 1, 1), np.zeros(12, np.float32), 12, 1, 3, codes, packed, 0, 1)
    (code,) = fresh.inspect_asm().values()
    blocks = [block for block in re.split(r"\n\.LBB[\w]+:", code) if "vfmadd" in block]
    (loop,) = blocks
    products = re.findall(r"vfmadd\w+ps\s.*", loop)
    assert len(products) == 24
    assert all("%zmm" in line for line in products)
    assert not re.search(r"vmovu?a?ps\s+%zmm\d+, .*\(", loop)


@NUMBA
@pytest.mark.slow
@pytest.mark.parametrize(("processor", "features"), [("haswell", "+avx2,+fma"), ("generic", "")])
def test_processors_without_wide_registers_find_the_same(processor, features, tmp_path):
    """Compiled anew for them: a smaller tile, and without fused products where there are none."""
    program = """
import torch
from tracking.codecs.vq import VectorQuantiser
from workbench.boolean.packed import simd
from workbench.decoupled.vq_codec import LinkQuantiser
assert not simd.PERMUTES
for n, groups, d, side, size in ((3, 4, 4, 5, 256), (70, 2, 16, 1, 33), (2, 3, 5, 8, 7)):
    x, book = torch.randint(-3, 4, (n, groups * d, side, side)).float(), torch.randint(-3, 4, (groups, size, d)).float()
    assert LinkQuantiser(book, backend="numba").encode(x) == VectorQuantiser(book).encode(x)
"""
    given = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | given)
    assert done.returncode == 0, done.stderr


# --- learning -----------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_what_codebooks_learn_from(shape, backend):
    x, book = made(*shape)
    groups, size = shape[1], shape[5]
    codes = LinkQuantiser(book).codes(x)
    found = tally(x, codes, book, backend)
    v, own = vectors(x, groups).double(), book.double()
    hot = torch.nn.functional.one_hot(codes, size).double()
    assert torch.equal(found.counts, hot.sum(0).long())
    # at most 130 float32 terms of about 1 a sum
    torch.testing.assert_close(found.sums.double(), torch.einsum("vgk,vgd->gkd", hot, v), rtol=1e-5, atol=1e-5)
    seen = torch.stack([own[g][codes[:, g]] for g in range(groups)], 1)
    assert found.error == pytest.approx(float((v - seen).square().sum()), rel=1e-5)
    assert found.power == pytest.approx(float(v.square().sum()), rel=1e-5)


@NUMBA
def test_sums_do_not_depend_on_the_number_of_threads(monkeypatch):
    x, book = made(9, 4, 6, 7, 5, 11)
    codes = LinkQuantiser(book).codes(x)
    one, three = tally(x, codes, book), None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    three, same_codes = tally(x, codes, book), LinkQuantiser(book).codes(x)
    assert torch.equal(same_codes, codes)
    assert torch.equal(one.sums, three.sums)
    assert one[2:] == three[2:]


def test_a_codebook_learns_the_same_with_and_without_what_its_sender_has_counted():
    x = normal(6, 8, 4, 4)
    first, second = (OnlineVQ(8, 2, 12, seed=1) for _ in range(2))
    for vq in (first, second):
        vq.begin(x)
    codes = LinkQuantiser(first.codebook).codes(x)
    first.update(x, codes)
    second.update(x, codes, tally(x, codes, second.codebook))
    assert torch.equal(first.codebook, second.codebook)
    assert torch.equal(first.count, second.count)


# --- where Numba is not, or cannot help ---------------------------------------------------------------------


def test_other_numbers_go_the_other_way():
    x, book = made(4, 2, 3, 5, 5, 9)
    codes = LinkQuantiser(book.bfloat16().float()).codes(x.bfloat16())
    assert torch.equal(codes, LinkQuantiser(book.bfloat16().float(), backend="torch").codes(x.bfloat16()))


@NUMBA
def test_refusals():
    x, book = made(4, 2, 3, 5, 5, 9)
    with pytest.raises(UserError, match=r"float32 tensors on the processor, not on torch\.float64"):
        LinkQuantiser(book, backend="numba").codes(x.double())
    with pytest.raises(UserError, match="Did you mean 'numba'"):
        LinkQuantiser(book, backend="nunba")


def test_without_numba_plain_torch_takes_over() -> None:
    """A compute node: nothing asks for Numba until something is encoded, and nothing needs it where it is not."""
    program = """
import sys
import torch
before = set(sys.modules)
from tracking.codecs.vq import VectorQuantiser
from tracking.errors import UserError
from workbench.decoupled import Channel, OnlineVQ
from workbench.decoupled.vq_codec import LinkQuantiser
loaded = {name.split(".")[0] for name in set(sys.modules) - before} & {"numba", "llvmlite"}
assert not loaded, loaded
sys.modules["numba"] = sys.modules["llvmlite"] = None
x, book = torch.randn(3, 8, 4, 4), torch.randn(2, 5, 4)
assert LinkQuantiser(book).encode(x) == VectorQuantiser(book).encode(x)
channel = Channel("m", 10, quantiser=OnlineVQ(8, 2, 12))
seen, _ = channel.pass_on(x, torch.zeros(3, dtype=torch.int64))
assert seen.shape == x.shape and channel.figures()["error"] > 0
try:
    LinkQuantiser(book, backend="numba")
except UserError as error:
    assert "pip install numba" in str(error) and "'torch' needs nothing" in str(error), error
else:
    raise SystemExit("numba was not missed")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
