"""Packed layers: what :func:`workbench.boolean.packed.export` puts in the place of Boolean ones. For inference.

Between Boolean layers, words are passed: int64 rows ``(..., words)`` or maps ``(batch, height, width, words)``. A
layer returns its votes, int32 with the outputs last, or, once :meth:`~PackedLayer.fuse` gave it thresholds, the words
of their bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean.layers import BooleanLayer, BooleanLinear
from workbench.boolean.packed import backends
from workbench.boolean.packed.backends import Backend
from workbench.boolean.packed.passing import check_matrix
from workbench.boolean.packed.words import (
    LANES,
    num_blocks,
    num_words,
    pack,
    pack_bools,
    to_lanes,
)

NEVER = torch.iinfo(torch.int32).max
"""A bound no sum of votes reaches."""


def signs_of(layer: BooleanLayer, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a Boolean layer, an xor gate turned into xnor; :class:`UserError` where a value is not +-1."""
    for kind, p in layer.named_parameters(recurse=False):
        wrong = p.detach().abs() != 1
        if wrong.any():
            raise UserError(
                f"{name}.{kind} is not Boolean: {int(wrong.sum())} of its {p.numel()} values are not +-1, for example "
                f"{float(p.detach()[wrong][0]):.4g}. Only Boolean weights can be packed; set them to +1 and -1 first."
            )
    weight = layer.weight.detach()
    return -weight if layer.gate == "xor" else weight, None if layer.bias is None else layer.bias.detach()


class PackedLayer(nn.Module):
    """What the two packed layers share: buffers, bias, thresholds.

    Buffers (all there is; they are in the state dict): ``weight`` int32 lanes, a part for each group; ``bias`` int32;
    ``bound`` int32 and ``flip`` int64, the thresholds. The last three are ``None`` where absent.
    """

    def __init__(self, outputs: int, groups: int, width: int, *, real: bool, bias: bool, backend: Backend) -> None:
        super().__init__()
        backends.check(backend)
        self.outputs, self.groups, self.real, self.backend = outputs, groups, real, backend
        blocks = num_blocks(outputs // groups)
        self.register_buffer("weight", torch.zeros(groups, blocks, 2 * width, LANES, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32) if bias else None)
        self.register_buffer("bound", None)
        self.register_buffer("flip", None)
        self.matrix, self._shifts = False, (None, ())

    def _set(self, words: Tensor, bias: Tensor | None) -> None:
        """Take int64 rows of words, an output each."""
        self.weight = torch.stack([to_lanes(part) for part in words.chunk(self.groups)])
        self.bias = None if bias is None else bias.to(torch.int32)

    @property
    def fuses(self) -> bool:
        """Whether thresholds can be a part of this layer."""
        return self.groups == 1 and not self.real

    def fuse(self, bound: Tensor, flip: Tensor, matrix: bool = False) -> None:
        """From now on return words of the bits ``(s >= bound) ^ flip``; ``bound`` int, ``flip`` bool, one for each
        output. ``matrix``: inputs are to have two dimensions.
        """
        self.matrix = matrix
        room = self.weight.shape[1] * LANES
        self.bound = nn.functional.pad(bound.to(torch.int32), (0, room - self.outputs), value=NEVER).contiguous()
        self.flip = pack_bools(flip)

    def shifts(self, key: tuple, taps: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """For each group what is added to its votes, and by which pixel; kept until ``key`` changes.

        ``taps``: booleans ``(pixels, taps)``, where the window lies beyond a neutral border. Words there are FALSE, so
        each tap counted minus its weights: they are added back.
        """
        key = (*key, self.weight.device)
        if self._shifts[0] != key:
            rows, pattern = torch.zeros(1, 1), torch.zeros(1)
            if taps is not None:
                rows, pattern = torch.unique(taps.float(), dim=0, return_inverse=True)
            made, many = [], self.outputs // self.groups
            for i, lanes in enumerate(self.weight.cpu()):
                shift = torch.zeros(rows.shape[0], lanes.shape[0] * LANES)
                if taps is not None:
                    shift[:, :many] += rows @ self._tap_sums(lanes, many, rows.shape[1]).T  # small integers: exact
                if self.bias is not None:
                    shift[:, :many] += self.bias[i * many : (i + 1) * many].cpu()
                made.append(tuple(t.to(self.weight.device, torch.int32) for t in (shift, pattern)))
            self._shifts = key, made
        return self._shifts[1]

    def _tap_sums(self, lanes: Tensor, outputs: int, taps: int) -> Tensor:
        raise NotImplementedError

    def _words(self) -> str:
        return f"real={self.real}, threshold={self.bound is not None}, backend={self.backend!r}"

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        # thresholds are there once they were fused; a layer that has none yet takes them from what is loaded
        for name in ("bound", "flip"):
            if f"{prefix}{name}" in state:
                setattr(self, name, torch.empty_like(state[f"{prefix}{name}"], device=self.weight.device))
        self._shifts = (None, ())
        super()._load_from_state_dict(state, prefix, *args)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shifts": (None, ())}


class PackedLinear(PackedLayer):
    """Boolean linear layer on packed inputs ``(..., words)``, or on real ones ``(..., in_features)``.

    Args:
        pixels: the input is a flattened map: ``in_features / pixels`` channels of each pixel begin a word.
        real: the input is real; the result is then float32, added up in float32.
        backend: see :mod:`workbench.boolean.packed.backends`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        pixels: int = 1,
        real: bool = False,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            out_features, 1, num_words(in_features // pixels) * pixels, real=real, bias=bias, backend=backend
        )
        self.inputs, self.pixels = in_features, pixels

    @classmethod
    def of(
        cls,
        layer: BooleanLinear,
        name: str = "layer",
        *,
        pixels: int = 1,
        real: bool = False,
        backend: Backend = "auto",
    ) -> PackedLinear:
        """The packed form of a trained layer; ``name`` is what an error calls it."""
        weight, bias = signs_of(layer, name)
        made = cls(
            weight.shape[1], weight.shape[0], pixels=pixels, real=real, bias=bias is not None, backend=backend
        ).to(weight.device)
        # a flattened map counts channels first; packed pixels have their channels together
        made._set(pack(weight.unflatten(1, (-1, pixels)).transpose(1, 2)).flatten(1), bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if self.real:
            out = backends.real(x.reshape(-1, self.inputs), self.weight[0], backend=self.backend)[:, : self.outputs]
            return (out if self.bias is None else out + self.bias).to(x.dtype).reshape(*x.shape[:-1], self.outputs)
        width = num_words(self.inputs // self.pixels) * self.pixels
        if x.dtype != torch.int64 or x.shape[-1] != width:
            raise UserError(
                f"This packed layer takes {self.inputs} bits as {width} int64 words, not {x.dtype} of shape "
                f"{tuple(x.shape)}."
            )
        check_matrix(x, self.matrix)
        ((shift, pattern),) = self.shifts(())
        out = backends.product(
            x.reshape(-1, width),
            self.weight[0],
            self.inputs,
            shift,
            pattern,
            self.bound,
            self.flip,
            backend=self.backend,
        )
        out = out[:, : self.outputs] if self.bound is None else out
        return out.reshape(*x.shape[:-1], out.shape[1])

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, {self._words()}"
