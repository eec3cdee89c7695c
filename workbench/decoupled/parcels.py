"""Payloads that stay where they were made, such as on a GPU: byte for byte those of :mod:`tracking.codecs`, and no wait for the host.

A parcel is ``(head, body)``: the bytes in front of a payload, and all that comes behind them as a tensor uint8 on the device. Kinds of
parcels work on any device. Where a message does leave the device, :func:`host` is what travels.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.base import MAX_VALUES, Codec, header, open_payload
from tracking.codecs.bits import packed_size
from tracking.codecs.dense import FORMATS, Dense
from tracking.codecs.uniform import SCALES, Uniform
from tracking.errors import UserError

Payload = bytes | memoryview | tuple[bytes, Tensor]


class Kind(Protocol):
    """A codec's payloads on a device; ``fields``: bytes between the header of shapes and the body."""

    fields: int

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]: ...

    def unpack(self, head: bytes, body: Tensor) -> Tensor:
        """What they stand for, as a view of ``body`` where that is what it holds."""
        ...


class Parcel:
    """A parcel with a length, by which the ledger bills it."""

    def __init__(self, head: bytes, body: Tensor) -> None:
        self.parts = head, body

    def __len__(self) -> int:
        return nbytes(self.parts)


def stays(value: Any) -> bool:
    """Whether the payload of ``value`` is made where it is, and stays there."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def nbytes(payload: Payload) -> int:
    """Length of a payload, wherever it is."""
    return len(payload[0]) + payload[1].numel() if isinstance(payload, tuple) else len(payload)


def host(payload: Payload) -> list[np.ndarray]:
    """A payload's bytes in memory of the processor, in one piece or two."""
    if isinstance(payload, tuple):
        return [np.frombuffer(payload[0], np.uint8), on_host(payload[1]).numpy()]
    return [np.frombuffer(payload, np.uint8)]


def on_host(body: Tensor) -> Tensor:
    """``body`` in memory of the processor; from a GPU, in memory that this copies to at full speed."""
    if body.device.type != "cuda":
        return body.cpu()
    return torch.empty(body.shape, dtype=body.dtype, pin_memory=True).copy_(body)


def opened(codec: Codec, kind: Kind | None, payload: Payload, device: torch.device | str, last: bool = False) -> Tensor:
    """What a receiver on ``device`` makes of ``payload``. Its memory is the receiver's own; ``last``, where nobody will open the payload
    again, hands over the payload's own memory if it holds the very values.
    """
    device = torch.device(device)
    if not isinstance(payload, tuple):
        if kind is None or device.type == "cpu":
            return codec.decode(payload).to(device)
        dim = payload[0] & 7
        cut = (1 + 4 * dim if dim < 7 else 2 + 4 * payload[1]) + kind.fields
        payload = bytes(payload[:cut]), torch.from_numpy(np.require(np.frombuffer(payload, np.uint8)[cut:], None, "W"))
    value = kind.unpack(payload[0], payload[1].to(device))
    shared = value.untyped_storage().data_ptr() == payload[1].untyped_storage().data_ptr()
    return value.clone() if shared and not last else value


def kind_of(codec: Codec) -> Kind | None:
    """The kind of parcel of ``codec``; ``None`` where its payloads are made by the processor alone."""
    if isinstance(codec, Dense):
        return DenseParcels(codec)
    if isinstance(codec, Uniform) and codec.group is None and codec.rounding == "nearest" and codec.scale == "fp32":
        return UniformParcels(codec)
    return None


class DenseParcels:
    """Of :class:`tracking.codecs.Dense`. A body of float32 values on the device is the sender's own memory: it must leave it alone."""

    fields = 0

    def __init__(self, codec: Dense) -> None:
        self.codec = codec

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]:
        x = value.detach().float().contiguous().reshape(-1)
        if self.codec.form != "fp32":
            narrow = x.to(FORMATS[self.codec.form])
            if bool((narrow.isinf() & x.isfinite()).any()):
                self.codec.encode(value)  # raises, and says which value
            x = narrow
        return header(value, self.codec.tag), x.view(torch.uint8)

    def unpack(self, head: bytes, body: Tensor) -> Tensor:
        shape, _ = open_payload(head, self.codec.tag, self.codec.name)
        return body.view(FORMATS[self.codec.form]).float().view(shape)


class UniformParcels:
    """Of :class:`tracking.codecs.uniform.Uniform` with one float32 scale a tensor and rounding to nearest."""

    fields = struct.calcsize("<BBI")

    def __init__(self, codec: Uniform) -> None:
        self.codec = codec

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]:
        x, top = value.detach().float().reshape(-1), self.codec.top
        largest = x.abs().amax().view(1) if x.numel() else x
        if not bool(largest.isfinite().all()):
            self.codec.encode(value)  # raises, and says how many
        scale = self._scale(largest)
        codes = (x.double() / scale.where(scale > 0, 1.0)).round_().clamp_(-top, top).add_(top) if x.numel() else x
        fields = struct.pack("<BBI", self.codec.bits, list(SCALES).index("fp32"), 0)
        return header(value, self.codec.tag) + fields, torch.cat([scale.view(torch.uint8), pack_bits(codes, self.codec.bits)])

    def _scale(self, largest: Tensor) -> Tensor:
        """max|x| / q to float32, a step up where it would clip, and down where the last level would be infinite."""
        scale, top = (largest.double() / self.codec.top).float(), self.codec.top
        up, down = torch.nextafter(scale, scale.new_full((1,), torch.inf)), torch.nextafter(scale, scale.new_zeros(1))
        scale = torch.where(scale * (top + 0.5) < largest, up, scale)
        return torch.where((scale * top).isinf(), down, scale)

    def unpack(self, head: bytes, body: Tensor) -> Tensor:
        shape, _ = open_payload(head, self.codec.tag, self.codec.name)
        count = torch.Size(shape).numel()
        if not count:
            return body.new_zeros(shape, dtype=torch.float32)
        codes = unpack_bits(body[4:], self.codec.bits, count)
        return ((codes.float() - self.codec.top) * body[:4].view(torch.float32)).view(shape)


# --- bits, as :mod:`tracking.codecs.bits` lays them ------------------------------------------------------------


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Flat ``codes`` from 0 to ``2**width - 1``, of any type of number, packed into uint8."""
    if width > 8:
        codes = codes.int()
        return torch.cat([(codes & 255).to(torch.uint8), pack_bits(codes >> 8, width - 8)])
    codes = codes.to(torch.uint8)
    if width == 8:
        return codes
    ones = codes.unsqueeze(1) >> torch.arange(width, dtype=torch.uint8, device=codes.device) & 1
    room = ones.new_zeros(8 * packed_size(codes.numel(), width))
    room[:ones.numel()] = ones.view(-1)
    return (room.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` codes, int64."""
    if packed.numel() != packed_size(count, width) or count > MAX_VALUES:
        raise UserError(f"{packed.numel()} packed bytes; {count} codes of {width} bits take {packed_size(count, width)}.")
    if width > 8:
        return packed[:count].long() | unpack_bits(packed[count:], width - 8, count) << 8
    if width == 8:
        return packed.long()
    ones = packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    rows = ones.view(-1)[:count * width].view(count, width)
    return (rows.long() << torch.arange(width, device=packed.device)).sum(1)
