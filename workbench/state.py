"""State trees: from a State of live objects to plain tensors and numbers, and back.

A State is a dataclass whose fields are modules, optimisers, generators, tensors, numbers, strings, or lists, tuples,
dictionaries and dataclasses of these. What can be loaded in place (``load_state_dict``, ``set_state``) is; everything else is replaced.
A live object (module, optimiser, generator) can only be loaded in place: it must be where the method's ``init`` puts it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, str, bytes, type(None))
_NUMPY, _SCALAR, _BYTES, _LIVE = "__numpy__", "__numpy_scalar__", "__bytes__", "__live__"


def snapshot(value: Any) -> Any:
    """A tree of tensors, numbers, strings, lists and dictionaries that holds all of ``value``; tensors are not copied."""
    if isinstance(value, torch.Generator):
        return {_LIVE: value.get_state()}
    if isinstance(value, np.random.Generator):
        return {_LIVE: snapshot(value.bit_generator.state)}
    if isinstance(value, random.Random):
        return {_LIVE: value.getstate()}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {_LIVE: snapshot(dict(value.state_dict()))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: snapshot(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        # a copy where torch could not share the memory: strides, byte order, no right to write
        array = np.require(value, value.dtype.newbyteorder("="), ["C", "W"])
        return {_NUMPY if isinstance(value, np.ndarray) else _SCALAR: torch.from_numpy(array)}
    if type(value) is bytes:  # counts as memory, and torch refuses to load an empty one
        return {_BYTES: torch.from_numpy(np.frombuffer(value, np.uint8).copy())}
    if isinstance(value, Mapping):
        return {_key(k): snapshot(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(snapshot(v) for v in value)
    if isinstance(value, list):
        return [snapshot(v) for v in value]
    if type(value) in PLAIN:  # an enumeration is an int or a str, too, but a checkpoint holds no classes
        return value
    raise TypeError(f"A State cannot hold a {type(value).__name__}: use tensors, numbers, generators, modules, optimisers, "
                    "or lists, dictionaries and dataclasses of these.")


def _key(key: Any) -> Any:
    if type(key) in PLAIN or (type(key) is tuple and all(type(k) in PLAIN for k in key)):
        return key
    raise TypeError(f"A dictionary in a State cannot have a {type(key).__name__} as key: use numbers, strings, or tuples of these.")


def restore(value: Any, tree: Any) -> Any:
    """Bring ``value`` (freshly built) to what ``tree`` holds, in place where possible; return it or its replacement."""
    if isinstance(value, torch.Generator):
        value.set_state(tree[_LIVE].cpu())
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = _plain(tree[_LIVE])
    elif isinstance(value, random.Random):
        value.setstate(tree[_LIVE])
    elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        value.load_state_dict(_plain(tree[_LIVE]))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            object.__setattr__(value, f.name, restore(getattr(value, f.name), tree[f.name]))
    elif isinstance(value, torch.Tensor) and isinstance(tree, torch.Tensor):
        if value.shape == tree.shape and value.dtype == tree.dtype:
            with torch.no_grad():  # in place: an optimiser may hold the same tensor
                value.copy_(tree)
            return value
        return tree.to(value.device, copy=True).requires_grad_(value.requires_grad)
    elif isinstance(value, dict) and isinstance(tree, dict) and not _encoded(tree):
        restored = {k: restore(value[k], v) if k in value else _plain(v) for k, v in tree.items()}
        value.clear()  # in place: a defaultdict or a Counter stays one
        value.update(restored)
    elif isinstance(value, (list, tuple)) and type(tree) is (list if isinstance(value, list) else tuple) and len(value) == len(tree):
        items = [restore(v, t) for v, t in zip(value, tree, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    else:
        return _plain(tree)
    return value


def _plain(tree: Any) -> Any:
    """Undo the encodings of what can be made anew: NumPy arrays and scalars, bytes."""
    if isinstance(tree, dict):
        code = _encoded(tree)
        if code == _LIVE:
            raise TypeError("A State holds a module, an optimiser or a generator that the method's init did not build, so it "
                            "cannot be resumed: build it there.")
        if code:
            array = tree[code].numpy()
            return array if code == _NUMPY else array.tobytes() if code == _BYTES else array[()]
        return {k: _plain(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_plain(v) for v in tree)
    return tree


def _encoded(tree: dict) -> str | None:
    """Which encoding a dictionary of a snapshot is, ``None`` when it is a dictionary."""
    return next(iter(tree)) if len(tree) == 1 and next(iter(tree)) in (_NUMPY, _SCALAR, _BYTES, _LIVE) else None


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors of a snapshot."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for v in tree.values():
            yield from tensors(v)
    elif isinstance(tree, (list, tuple)):
        for v in tree:
            yield from tensors(v)


def state_bytes(tree: Any) -> int:
    """Bytes of the tensors of a snapshot, each storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(tree) if t.numel()}
    return sum(storages.values())
