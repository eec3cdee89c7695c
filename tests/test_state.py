"""State trees: what a State holds comes back bit for bit, in place, through a file that holds plain data alone."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import io
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from workbench.state import restore, snapshot, state_bytes, tensors


def through_file(tree: Any) -> Any:
    """What a checkpoint gives back: plain data, or torch refuses to load it."""
    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


def same(a: Any, b: Any) -> bool:
    """Equality to the bit and the type, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (
            a.shape == b.shape
            and a.dtype == b.dtype
            and a.detach().contiguous().numpy().tobytes() == b.detach().contiguous().numpy().tobytes()
        )
    if isinstance(a, (np.ndarray, np.generic)):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


# --- plain values -------------------------------------------------------------------------------------------

NUMPY_TYPES = ["bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", ">i4", ">f8"]
ARRAYS = st.sampled_from(NUMPY_TYPES).flatmap(
    lambda t: npst.arrays(np.dtype(t), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
TORCH_TYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)
TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(TORCH_TYPES),
    st.integers(0, 99),
)
SCALARS = st.sampled_from(
    [np.float32(0.1), np.float64(0.1), np.int8(-3), np.float16(1.5), np.bool_(True), np.uint64(2**63)]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | TENSORS
    | ARRAYS
    | SCALARS
)
KEYS = st.text(max_size=3) | st.integers(-5, 5) | st.tuples(st.text(max_size=2), st.integers(0, 3))
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def native(value: Any) -> Any:
    """As it is restored: arrays come back in the machine's byte order."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, dict):
        return {k: native(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(native(v) for v in value)
    return value


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_any_value_comes_back_whatever_was_there(value):
    """Restored over an equal value, over nothing, and over something else."""
    tree = through_file(snapshot(value))
    for before in (copy.deepcopy(value), None, [1, 2]):
        assert same(restore(before, tree), native(value))


@settings(max_examples=50, deadline=None)
@given(TREES, TREES)
def test_any_value_comes_back_over_any_other(value, other):
    """A tensor replaced by one of another type keeps the device and the need of a gradient of the old one, which is no."""
    assert same(restore(copy.deepcopy(other), through_file(snapshot(value))), native(value))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(6)[::-1],
        np.array(2.5),
        np.zeros((0, 3)),
        np.broadcast_to(np.ones(3), (2, 3)),
    ],
    ids=["transposed", "reversed", "scalar", "empty", "read-only"],
)
@pytest.mark.filterwarnings("error")
def test_arrays_of_any_layout(array):
    back = restore(None, through_file(snapshot({"a": array})))["a"]
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    back += 1  # and it can be written to


# --- live objects -------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Inner:
    momentum: torch.Tensor
    rng: random.Random
    table: np.ndarray


@dataclasses.dataclass(frozen=True)
class Frozen:
    level: float


@dataclasses.dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    noise: torch.Generator
    host: np.random.Generator
    w: torch.Tensor
    free: torch.optim.Optimizer
    inner: Inner
    frozen: Frozen
    queue: list
    clients: dict
    counts: collections.Counter
    lists: collections.defaultdict
    pair: Pair
    late: torch.Tensor | None = None
    scale: Any = 0.0
    done: int = 0


BITS = {"PCG64": np.random.PCG64, "MT19937": np.random.MT19937, "Philox": np.random.Philox, "SFC64": np.random.SFC64}


def build(rule: str, bits: str) -> State:
    """A fresh State, as a method's init makes it: always the same."""
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    optimizer = getattr(torch.optim, rule)(
        model.parameters(), lr=0.01, **({"momentum": 0.9} if rule in ("SGD", "RMSprop") else {})
    )
    w = torch.ones(3, requires_grad=True)
    return State(
        model,
        optimizer,
        torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        torch.Generator().manual_seed(2),
        np.random.Generator(BITS[bits](3)),
        w,
        torch.optim.SGD([w], lr=0.1, momentum=0.9),
        Inner(torch.zeros(3), random.Random(4), np.zeros(2)),
        Frozen(0.5),
        [torch.Generator().manual_seed(5)],
        {"a": torch.Generator().manual_seed(6)},
        collections.Counter(),
        collections.defaultdict(list),
        Pair(torch.zeros(2), 0),
    )


def advance(s: State, steps: int) -> list[float]:
    """Use everything the State holds; the figures depend on all of it."""
    figures = []
    for _ in range(steps):
        x = torch.randn(8, 3, generator=s.noise)
        s.optimizer.zero_grad()
        loss = s.model(x).square().mean() + (s.w * x.mean(0)).sum()
        s.free.zero_grad()
        loss.backward()
        s.optimizer.step()
        s.schedule.step()
        s.free.step()
        s.inner.momentum.mul_(0.9).add_(s.w.detach())
        s.inner.table = s.inner.table + s.host.normal(size=2)
        s.frozen = Frozen(s.frozen.level * 0.9)
        s.late = s.w.detach().clone() if s.late is None else s.late + s.w.detach()
        s.scale = np.float32(s.scale) + np.float32(0.1)  # stays in single precision only if its type comes back
        s.counts["steps"] += 1
        s.lists[s.done % 2].append(s.inner.rng.random())
        s.clients[f"b{s.done}"] = torch.rand(2, generator=s.clients["a"])
        s.pair = Pair(s.pair.first + torch.rand(2, generator=s.queue[0]), s.pair.second + 1)
        s.done += 1
        figures += [
            float(loss.detach()),
            float(s.inner.momentum.sum()),
            float(s.inner.table.sum()),
            s.frozen.level,
            float(s.late.sum()),
            float(s.scale),
            s.lists[0][-1],
            float(s.pair.first.sum()),
            s.optimizer.param_groups[0]["lr"],
            float(s.counts["steps"]),
            s.counts["nothing"],
            float(s.clients[f"b{s.done - 1}"].sum()),
        ]
    return figures


@pytest.mark.parametrize(
    ("rule", "bits"),
    [("SGD", "PCG64"), ("Adam", "MT19937"), ("AdamW", "Philox"), ("RMSprop", "SFC64"), ("Adagrad", "PCG64")],
)
def test_a_restored_state_goes_on_as_if_nothing_had_happened(rule, bits):
    whole = build(rule, bits)
    advance(whole, 5)
    tree = through_file(snapshot(whole))
    expected = advance(whole, 5)
    fresh = build(rule, bits)
    w, parameters = fresh.w, list(fresh.model.parameters())
    again = restore(fresh, tree)
    assert advance(again, 5) == expected
    assert again.w is w
    assert again.free.param_groups[0]["params"][0] is w, (
        "the optimiser still moves the very tensor that the State holds"
    )
    assert w.requires_grad
    assert all(a is b for a, b in zip(again.model.parameters(), parameters, strict=True))
    assert (type(again.counts), type(again.lists), type(again.pair)) == (
        collections.Counter,
        collections.defaultdict,
        Pair,
    )


def test_a_tensor_of_another_shape_is_replaced():
    old = torch.zeros(0, dtype=torch.int64)
    new = restore(old, snapshot(torch.arange(3)))
    assert new is not old
    assert new.tolist() == [0, 1, 2]
    assert restore(torch.zeros(1, requires_grad=True), snapshot(torch.ones(2))).requires_grad


def test_what_init_does_not_build_cannot_be_resumed_and_says_so():
    """A generator that appeared later would come back as its bare bytes, and the run would go wrong in silence."""
    for late in (torch.Generator(), np.random.default_rng(0), random.Random(0), nn.Linear(1, 1)):
        for before, value in ((None, late), ([], [late]), ({}, {"g": late})):
            with pytest.raises(TypeError, match="init did not build"):
                restore(before, through_file(snapshot(value)))


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        (lambda: 0, "function"),
        (torch.float32, "dtype"),
        (collections.deque([1]), "deque"),
        (1j, "complex"),
        (Colour.RED, "Colour"),
        (np.array(["a"]), "ndarray"),
        (np.array([object()]), "ndarray"),
        (np.datetime64("2020-01-01"), "datetime64"),
        (State, "type"),
    ],
)
def test_what_cannot_be_kept_is_named(value, named):
    for holder in (value, [value], {"a": (1, value)}):
        with pytest.raises(TypeError, match=rf"A State cannot hold a {named}: use tensors, numbers"):
            snapshot(holder)


@pytest.mark.parametrize("key", [torch.zeros(1), Colour.RED, (1, object()), frozenset()])
def test_keys_that_a_file_cannot_hold_are_refused(key):
    with pytest.raises(TypeError, match="as key"):
        snapshot({key: 1})


# --- size ---------------------------------------------------------------------------------------------------


def test_shared_storage_is_counted_once():
    base = torch.zeros(100)
    assert state_bytes(snapshot({"a": base, "b": base, "rows": list(base.view(10, 10)), "part": base[50:]})) == 400
    assert state_bytes(snapshot([base, base.clone()])) == 800
    assert state_bytes(snapshot([torch.empty(0), 3, "text", None])) == 0
    tied = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False)})
    tied["b"] = tied["a"]
    assert state_bytes(snapshot(tied)) == 64


def test_all_that_is_remembered_counts():
    """A linear layer of 4 x 3 + 3 weights under Adam: weights, two moments and a step count for each parameter, all float32."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    assert state_bytes(snapshot((model, optimizer))) == 4 * 15
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert state_bytes(snapshot((model, optimizer))) == 4 * 15 * 3 + 4 * 2
    assert state_bytes(snapshot({"table": np.zeros((5, 7), np.float64)})) == 280
    assert state_bytes(snapshot([b"12345"])) == 5
    assert state_bytes(snapshot(torch.Generator())) == torch.Generator().get_state().numel()


@given(st.lists(st.integers(1, 50), max_size=6))
@settings(deadline=None)
def test_size_is_the_sum_over_separate_tensors(sizes):
    tree = snapshot({str(i): {"x": [torch.zeros(n, dtype=torch.int16)]} for i, n in enumerate(sizes)})
    assert state_bytes(tree) == 2 * sum(sizes)
    assert sum(t.numel() for t in tensors(tree)) == sum(sizes)


def test_a_snapshot_copies_nothing():
    w = torch.zeros(3, requires_grad=True)
    tree = snapshot({"w": w})
    assert tree["w"].data_ptr() == w.data_ptr()
    assert not tree["w"].requires_grad


@pytest.mark.gpu
def test_tensors_come_back_to_the_device_they_were_on(tmp_path):
    """Also those that init leaves as None, whose device is known from the file alone."""
    from tracking.folder import RunFolder
    from workbench import checkpoint

    folder = RunFolder(tmp_path)
    checkpoint.save(
        folder,
        {"late": torch.ones(2, device="cuda"), "host": torch.ones(2), "g": torch.Generator("cuda").manual_seed(1)},
        {},
    )
    for device in ("cuda", "cpu"):
        back = (
            restore(
                {"late": None, "host": None, "g": torch.Generator(device)}, checkpoint.load(folder, device)["state"]
            )
            if device == "cuda"
            else checkpoint.load(folder, device)["state"]
        )
        assert back["late"].device.type == device
        assert back["host"].device.type == "cpu"
