"""State trees: from a State of live objects to plain tensors and numbers, and back.

A State is a dataclass whose fields are modules, optimisers, generators, tensors, numbers, strings, or lists, tuples,
dictionaries and dataclasses of these. What can be loaded in place (``load_state_dict``, ``set_state``) is; everything else is replaced.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, str, bytes, type(None))
_NUMPY = "__numpy__"


def snapshot(value: Any) -> Any:
    """A tree of tensors, numbers, strings, lists and dictionaries that holds all of ``value``; tensors are not copied."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, random.Random):
        return list(value.getstate())
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return snapshot(dict(value.state_dict()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: snapshot(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return {_NUMPY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: snapshot(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(snapshot(v) for v in value)
    if isinstance(value, list):
        return [snapshot(v) for v in value]
    if isinstance(value, PLAIN):
        return value
    raise TypeError(f"A State cannot hold a {type(value).__name__}: use tensors, numbers, generators, modules, optimisers, "
                    "or lists, dictionaries and dataclasses of these.")


def restore(value: Any, tree: Any) -> Any:
    """Bring ``value`` (freshly built) to what ``tree`` holds, in place where possible; return it or its replacement."""
    if isinstance(value, torch.Generator):
        value.set_state(tree.cpu())
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = tree
    elif isinstance(value, random.Random):
        value.setstate((tree[0], tuple(tree[1]), tree[2]))
    elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        value.load_state_dict(_plain(tree))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            object.__setattr__(value, f.name, restore(getattr(value, f.name), tree[f.name]))
    elif isinstance(value, torch.Tensor) and isinstance(tree, torch.Tensor):
        if value.shape == tree.shape and value.dtype == tree.dtype:
            with torch.no_grad():  # in place: an optimiser may hold the same tensor
                value.copy_(tree)
            return value
        return tree.to(value.device, copy=True).requires_grad_(value.requires_grad)
    elif isinstance(value, dict) and isinstance(tree, dict) and value.keys() == tree.keys():
        return {k: restore(v, tree[k]) for k, v in value.items()}
    elif isinstance(value, (list, tuple)) and isinstance(tree, (list, tuple)) and len(value) == len(tree):
        return type(value)(restore(v, t) for v, t in zip(value, tree, strict=True))
    else:
        return _plain(tree)
    return value


def _plain(tree: Any) -> Any:
    """Undo the one encoding that a plain tree has: NumPy arrays."""
    if isinstance(tree, dict):
        return tree[_NUMPY].numpy() if set(tree) == {_NUMPY} else {k: _plain(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_plain(v) for v in tree)
    return tree


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
