"""Where a causal language model keeps its decoder blocks, and which of their matrices are compressed.

The layout of LLaMA (Mistral, Qwen2 and others share it) is found by name, others by rule: the decoder blocks are the
one list of equal modules that holds linear layers. What a block holds beside linear layers, norms and embeddings is
not passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tracking.errors import UserError, unknown

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KNOWN_LISTS = ("model.layers", "gpt_neox.layers", "model.decoder.layers", "transformer.h")
"""LLaMA-like, GPT-NeoX, OPT, and the layout of GPT-2 (whose own layers are refused by name, as they are no
``nn.Linear``)."""


@dataclass(frozen=True)
class Layout:
    """Names of the decoder blocks' list and, for each block, of the matrices to be compressed."""

    prefix: str
    """Name of the list of blocks, such as ``model.layers``."""
    names: tuple[tuple[str, ...], ...]
    """Full module names of the matrices, block by block, in the order they are compressed in."""

    @property
    def matrices(self) -> list[str]:
        """All names in order."""
        return [name for block in self.names for name in block]

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The list of decoder blocks itself."""
        return model.get_submodule(self.prefix)


def layout_of(model: nn.Module, targets: Iterable[str] | None = None, layers: Iterable[int] | None = None) -> Layout:
    """Find what to compress.

    Args:
        targets: last parts of the names of the linear layers to compress, such as ``q_proj``. ``None``: every linear
            layer of the decoder blocks, and a block that holds matrices of another kind is refused.
        layers: indices of the blocks; ``None``: all.
    """
    prefix = _list_name(model)
    blocks = model.get_submodule(prefix)
    chosen = _indices(layers, len(blocks))
    wanted = None if targets is None else (targets,) if isinstance(targets, str) else tuple(targets)
    names = []
    for i, block in enumerate(blocks):
        if i not in chosen:
            names.append(())
            continue
        linear = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        if wanted is None:
            _refuse_others(block, f"{prefix}.{i}")
        else:
            _check_targets(wanted, linear)
        names.append(tuple(f"{prefix}.{i}.{name}" for name in linear if wanted is None or name.rpartition(".")[2] in wanted))
    return Layout(prefix, tuple(names))


def tied_names(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of parameters that are one tensor in memory, such as input embedding and head."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return [tuple(names) for names in found.values() if len(names) > 1]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are; of one that is streamed, where those are that are there."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def _list_name(model: nn.Module) -> str:
    every = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    for name in KNOWN_LISTS:
        if name in every:
            return name
    lists = {name: module for name, module in every.items() if any(isinstance(m, nn.Linear) for m in module.modules())}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    equal = [name for name in outer if len({type(block) for block in lists[name]}) == 1]
    if len(equal) == 1:
        return equal[0]
    raise UserError(
        f"The decoder blocks of {type(model).__name__} were not recognised: "
        + (f"several lists could be them ({', '.join(equal)}). "
           f"" if equal else "no list of equal blocks holds nn.Linear layers. ")
        + f"Its layers: {', '.join(_outline(model))}. "
        f"Known layouts keep them in {', '.join(KNOWN_LISTS)}.")


def _outline(model: nn.Module) -> list[str]:
    """Layers two levels deep, the blocks of a list by the first of them."""
    found = []
    for name, child in model.named_children():
        found.append(f"{name} ({type(child).__name__})")
        found += [f"{name}.{inner} ({type(m).__name__}{f' of {type(m[0]).__name__}' if isinstance(m, nn.ModuleList) and len(m) else ''})"
                  for inner, m in child.named_children()]
    return found


def _refuse_others(block: nn.Module, prefix: str) -> None:
    """Name the modules with matrices of their own that no linear layer holds: they would stay uncompressed unseen."""
    strange = [f"{prefix}.{name} ({type(module).__name__})" for name, module in block.named_modules()
               if not isinstance(module, (nn.Linear, nn.Embedding)) and any(p.dim() >= 2 for p in module.parameters(recurse=False))]
    if strange:
        raise UserError(f"These layers were not recognised, as they hold matrices and are no nn.Linear: "
                        f"{', '.join(strange)}. Name the linear "
                        "layers to compress in `targets`; the others then stay as they are.")


def _check_targets(wanted: tuple[str, ...], linear: list[str]) -> None:
    there = {name.rpartition(".")[2] for name in linear}
    for name in wanted:
        if name not in there:
            raise unknown("target", name, there)


def _indices(layers: Iterable[int] | None, count: int) -> set[int]:
    if layers is None:
        return set(range(count))
    chosen = set(layers) if isinstance(layers, Iterable) else {layers}
    wrong = sorted((i for i in chosen if not isinstance(i, int) or not 0 <= i < count), key=repr)
    if wrong:
        raise UserError(f"layers = {wrong} is refused: the model's blocks are the whole numbers 0 to {count - 1}.")
    return chosen
