"""Packing of signs into words: bit order, tails, layouts, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.codecs import bits
from tracking.errors import UserError
from workbench.boolean.packed import backends, pack, unpack
from workbench.boolean.packed.words import from_lanes, num_words, pack_bools, regroup, to_lanes, unpack_bools

pytestmark = pytest.mark.filterwarnings("error")


def signs(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)) - 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=2), st.integers(1, 200), st.integers(0, 2**31))
def test_roundtrip_and_tail(lead: list[int], n: int, seed: int) -> None:
    x = signs(*lead, n, seed=seed)
    words = pack(x)
    assert words.dtype == torch.int64
    assert words.shape == (*lead, -(-n // 64))
    assert torch.equal(unpack(words, n), x)
    # the tail is zero: as many ones as there are TRUEs
    ones = np.bitwise_count(words.numpy().view(np.uint64)).sum()
    assert ones == int((x > 0).sum())


def test_bit_order_is_that_of_the_codecs() -> None:
    x = torch.randn(5 * 64 + 13, generator=torch.Generator().manual_seed(0))
    octets = pack(x).numpy().view(np.uint8)
    coded = bits.pack_signs(x.numpy())
    assert np.array_equal(octets[: coded.size], coded)
    assert not octets[coded.size :].any()
    # value i is bit i mod 64 of word i // 64, by integer arithmetic
    words = [int(w) & (2**64 - 1) for w in pack(x)]
    assert [(words[i // 64] >> (i % 64)) & 1 for i in range(len(x))] == (x >= 0).int().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
def test_zero_is_true_and_nan_false(dtype: torch.dtype) -> None:
    x = torch.tensor([-1, 0, 1], dtype=dtype)
    assert unpack(pack(x), 3).tolist() == [-1, 1, 1]
    assert unpack(pack(x, tau=0.5), 3).tolist() == [-1, -1, 1]
    if dtype.is_floating_point:
        assert unpack(pack(torch.tensor([torch.nan, -0.0, torch.inf], dtype=dtype)), 3).tolist() == [-1, 1, 1]


def test_generic_formulas_equal_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for other devices, made to run here: a meta tensor knows no values, so the device is only said to
    be another.
    """
    x = signs(3, 130) > 0
    packed, unpacked = pack_bools(x), unpack_bools(pack_bools(x), 130)

    class Elsewhere(torch.Tensor):
        @property
        def device(self):  # what the branch is chosen by, and where it makes its constants
            return Named("cpu")

    class Named(str):
        type = "elsewhere"

    monkeypatch.setattr(torch, "arange", lambda *args, device=None, arange=torch.arange, **kw: arange(*args, **kw))
    assert torch.equal(pack_bools(x.as_subclass(Elsewhere)).as_subclass(torch.Tensor), packed)
    assert torch.equal(unpack_bools(packed.as_subclass(Elsewhere), 130).as_subclass(torch.Tensor), unpacked)


@pytest.mark.parametrize(("outputs", "n"), [(1, 1), (16, 64), (33, 65), (70, 200)])
def test_lanes(outputs: int, n: int) -> None:
    words = pack(signs(outputs, n))
    lanes = to_lanes(words)
    assert lanes.shape[0] % 2 == 0
    assert torch.equal(from_lanes(lanes, outputs), words)
    # output o, weight i: lane o mod 16 of block o // 16, bit i mod 32 of entry i // 32
    o, i = outputs - 1, n - 1
    bit = (int(lanes[o // 16, i // 32, o % 16]) >> (i % 32)) & 1
    assert bit == int(unpack_bools(words, n)[o, i])
    # all that is not a weight is 0
    ones = [np.bitwise_count(t.numpy().view(np.uint32)).sum() for t in (lanes, words)]
    assert ones[0] == ones[1]


@pytest.mark.parametrize(("channels", "groups"), [(128, 2), (12, 3), (192, 2), (64, 1), (5, 5)])
def test_every_group_begins_a_word(channels: int, groups: int) -> None:
    x = signs(2, 3, channels)
    parts = regroup(pack(x), channels, groups)
    assert parts.shape == (2, 3, groups, num_words(channels // groups))
    assert torch.equal(unpack(parts, channels // groups), x.unflatten(-1, (groups, -1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 70), st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.0, 0.1, -0.7]))
def test_packing_by_kernels(batch: int, channels: int, height: int, width: int, tau: float) -> None:
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(channels))
    x[..., :1] = tau if tau else -0.0
    want = pack(x.permute(0, 2, 3, 1).contiguous(), tau)
    for y in (x, x.to(memory_format=torch.channels_last), x.double()[:, :, ::1].float()):
        assert torch.equal(backends.pack_maps(y, tau), want)
    assert torch.equal(backends.pack_rows(x, tau), pack(x, tau))
    assert torch.equal(backends.pack_maps(x, tau, backend="torch"), want)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"130 bits take 3 int64 words a row, not torch.int64 of shape \(2,\)"):
        unpack(torch.zeros(2, dtype=torch.int64), 130)
    with pytest.raises(UserError, match=r"torch\.float32"):
        unpack(torch.zeros(3), 130)
    with pytest.raises(UserError, match="complex64"):
        pack(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(UserError, match="at least one dimension"):
        pack(torch.tensor(1.0))
