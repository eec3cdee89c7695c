"""What crosses the border between two modules: the parts of a message, encoded, and single tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import Dense
from tracking.codecs.base import Codec
from tracking.errors import UserError
from tracking.ledger import Direction, Ledger
from workbench.decoupled.parcels import Kind, Parcel, Payload, kind_of, nbytes, opened, stays
from workbench.decoupled.vq_codec import LinkQuantiser

if TYPE_CHECKING:
    from tracking.links import Link

DENSE = Dense()
DENSE_KIND = kind_of(DENSE)
Message = tuple[Payload, Payload, int, bytes | memoryview]
"""Activations and labels as they were sent, number of the codebook they were made with (0: none), and that codebook, or b""."""


def size(message: Message) -> int:
    """Bytes of a message, its codebook included."""
    return nbytes(message[0]) + nbytes(message[1]) + len(message[3])


class Labels:
    """Class labels as they are, in as few whole bytes as the number of classes needs: one up to 256 classes."""

    name = "labels"
    fields = 0

    def __init__(self, classes: int) -> None:
        if not 1 <= classes <= 2**32:
            raise UserError(f"classes = {classes} is refused. Allowed: 1 <= x <= 2**32.")
        self.classes = classes
        self.dtype = np.dtype("<u1" if classes <= 256 else "<u2" if classes <= 65_536 else "<u4")
        self._torch = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[self.dtype.itemsize]  # the same bits

    def encode(self, value: Tensor) -> bytes:
        """Raises :class:`UserError` for what is no label, which would come out as another one."""
        y = value.detach().cpu().numpy()
        if y.dtype.kind not in "iu" or (y.size and not 0 <= y.min() <= y.max() < self.classes):
            found = f"{value.dtype} from {y.min():g} to {y.max():g}" if y.size else f"{value.dtype}"
            raise UserError(f"Labels {found} cannot be sent. Allowed: whole numbers from 0 to {self.classes - 1}.")
        return y.astype(self.dtype).tobytes()

    def decode(self, payload: bytes | memoryview) -> Tensor:
        return torch.from_numpy(np.frombuffer(payload, self.dtype).astype(np.int64))

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]:
        """On a GPU, where a look at the values would wait for it, nobody looks whether they are labels."""
        return b"", value.detach().to(self._torch).view(torch.uint8)

    def unpack(self, head: bytes, body: Tensor) -> Tensor:
        return body.view(self._torch).long() & (256**self.dtype.itemsize - 1)


class Kept:
    """A codec whose receiver keeps the payload as it came, to decode it when it is wanted. With a ``kind``, a tensor on a GPU is not
    brought to the host for it; with ``in_place``, none is copied.
    """

    def __init__(self, codec: Codec, kind: Kind | None = None, in_place: bool = False) -> None:
        self.codec, self.kind, self.name, self.in_place = codec, kind, codec.name, in_place

    def encode(self, value: Any) -> bytes | Parcel:
        parcel = self.kind is not None and (self.in_place or stays(value))
        return Parcel(*self.kind.pack(value)) if parcel else self.codec.encode(value)

    def decode(self, payload: bytes | Parcel) -> Payload:
        return payload.parts if isinstance(payload, Parcel) else payload


class Coding:
    """A quantiser that leaves its codes behind: the sender learns from them."""

    name = LinkQuantiser.name

    def __init__(self, quantiser: LinkQuantiser) -> None:
        self.quantiser = quantiser

    def encode(self, value: Tensor) -> bytes:
        payload, self.codes = self.quantiser.coded(value)
        return payload

    def pack(self, value: Tensor) -> tuple[bytes, Tensor]:
        self.codes = self.quantiser.codes(value)
        return self.quantiser.packed(value, self.codes)


class Border:
    """Carries single tensors, float32, over the border between two modules: activations ``up``, gradients ``down``."""

    def __init__(self, ledger: Ledger, before: str, after: str) -> None:
        self.ledger, self.parties = ledger, {"up": after, "down": before}
        self._sizes: dict[str, int] = {}

    def carry(self, value: Tensor, direction: Direction) -> Tensor:
        """Bill ``value`` and return what arrives."""
        payload = self.ledger.send(value, Kept(DENSE, DENSE_KIND), direction, self.parties[direction])
        self._sizes[direction] = nbytes(payload)
        return opened(DENSE, DENSE_KIND, payload, value.device)

    def sizes(self) -> dict[str, int]:
        """Bytes of the last message each way since this was last asked."""
        sizes, self._sizes = self._sizes, {}
        return sizes


def crossing_seconds(link: Link, between: Iterable[Tensor], direction: Direction) -> list[float]:
    """Time that each tensor takes over a border with this link, float32; nothing is billed."""
    border, found = Border(Ledger(), "", ""), []
    for x in between:
        border.carry(x, direction)
        found.append(link.seconds(border.sizes()[direction], direction))
    return found

