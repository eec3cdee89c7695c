"""The way from one module to the next: what is sent, what it costs, and what the receiver makes of what it kept.

A message is encoded once, billed at the length of its payload, and kept encoded until it is read: a buffer of quantised
activations holds indices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tracking.codecs import Dense
from tracking.codecs.base import Codec
from tracking.errors import UserError, unknown
from tracking.ledger import Direction, Ledger
from workbench.decoupled.vector_quantisation import OnlineVQ
from workbench.decoupled.vq_codec import LinkQuantiser, Tally, tally

Drift = Literal["latest", "versioned"]
Payload = bytes | memoryview
Message = tuple[Payload, Payload, int, Payload]
"""Activations and labels as they were sent, number of the codebook they were made with (0: none), and that codebook, or b""."""


def size(message: Message) -> int:
    """Bytes of a message, its codebook included."""
    return len(message[0]) + len(message[1]) + len(message[3])


class Labels:
    """Class labels as they are, in as few whole bytes as the number of classes needs: one up to 256 classes."""

    name = "labels"

    def __init__(self, classes: int) -> None:
        self.dtype = np.dtype("<u1" if classes <= 256 else "<u2" if classes <= 65_536 else "<u4")

    def encode(self, value: Tensor) -> bytes:
        return value.detach().cpu().numpy().astype(self.dtype).tobytes()

    def decode(self, payload: Payload) -> Tensor:
        return torch.from_numpy(np.frombuffer(payload, self.dtype).astype(np.int64))


class Kept:
    """A codec whose receiver keeps the payload as it came, to decode it when it is wanted."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.name = codec, codec.name

    def encode(self, value: Any) -> bytes:
        return self.codec.encode(value)

    def decode(self, payload: bytes) -> bytes:
        return payload


class _Coding:
    """A quantiser that leaves its codes behind: the sender learns from them."""

    name = LinkQuantiser.name

    def __init__(self, quantiser: LinkQuantiser) -> None:
        self.quantiser = quantiser

    def encode(self, value: Tensor) -> bytes:
        payload, self.codes = self.quantiser.coded(value)
        return payload


class Border:
    """Carries single tensors, float32, over the border between two modules: activations ``up``, gradients ``down``."""

    def __init__(self, ledger: Ledger, before: str, after: str) -> None:
        self.ledger, self.parties = ledger, {"up": after, "down": before}
        self._sizes: dict[str, int] = {}

    def carry(self, value: Tensor, direction: Direction) -> Tensor:
        """Bill ``value`` and return what arrives."""
        payload = self.ledger.send(value, Kept(Dense()), direction, self.parties[direction])
        self._sizes[direction] = len(payload)
        return Dense().decode(payload).to(value.device)

    def sizes(self) -> dict[str, int]:
        """Bytes of the last message each way since this was last asked."""
        sizes, self._sizes = self._sizes, {}
        return sizes


class Channel:
    """Sends the activations and labels of one module to the next.

    Args:
        party: the receiver's name in the ledger.
        classes: number of labels.
        codec: of activations; not used with ``quantiser``.
        quantiser: an :class:`OnlineVQ` that the sender owns.
        sync_every: sends between two codebooks (T). Codes are always made with the codebook sent last, so that the receiver can
            read them; the sender's own goes on learning in between.
        drift: ``latest``: read with the newest codebook that has arrived, whichever the codes were made with (they move with the
            features); ``versioned``: with their own, each kept as long as a message needs it.
        freeze_after: sends after which the codebook stays as it is; 0: never.
        ledger: where messages are billed; its own where none is given.
    """

    def __init__(self, party: str, classes: int, *, codec: Codec | None = None, quantiser: OnlineVQ | None = None, sync_every: int = 1,
                 drift: Drift = "latest", freeze_after: int = 0, ledger: Ledger | None = None) -> None:
        if drift not in get_args(Drift):
            raise unknown("rule for codes of older codebooks", drift, get_args(Drift))
        if sync_every < 1 or freeze_after < 0:
            raise UserError(f"sync_every = {sync_every}, freeze_after = {freeze_after} are refused. "
                            "Allowed: 1 <= sync_every, 0 <= freeze_after.")
        self.party, self.labels, self.codec, self.quantiser = party, Labels(classes), codec or Dense(), quantiser
        self.sync_every, self.drift, self.freeze_after = sync_every, drift, freeze_after
        self.ledger = ledger if ledger is not None else Ledger()
        self.sends = 0
        self.shared: LinkQuantiser | None = None
        """The codebook sent last, as the receiver decoded it."""
        self.version = 0
        self.books: dict[int, Tensor] = {}
        """Codebooks that have arrived, by number."""
        self.error = self.power = 0.0
        """Sums of squared quantisation errors and of squares of what was sent, since :meth:`figures` was last asked."""
        self.usage = torch.empty(0)
        """(g, K): how often each codeword was sent since then."""

    @property
    def lossy(self) -> bool:
        """Whether the receiver sees something else than was sent."""
        return self.quantiser is not None or not getattr(self.codec, "exact", False)

    # --- activations --------------------------------------------------------------------------------------

    def send(self, x: Tensor, y: Tensor, learn: bool = True) -> Message:
        """Encode and bill outputs ``x`` (n, c, ...) and labels ``y`` (n,), and let the codebook ``learn`` from them."""
        labels = self.ledger.send(y, Kept(self.labels), "up", self.party)
        if self.quantiser is None:
            return self.ledger.send(x, Kept(self.codec), "up", self.party), labels, 0, b""
        book = self._synchronise(x)
        coding = _Coding(self.shared)
        payload = self.ledger.send(x, Kept(coding), "up", self.party)
        found = tally(x, coding.codes, self.shared.codebook.to(x.device))
        self._observe(found)
        self.sends += 1
        if learn and (not self.freeze_after or self.sends <= self.freeze_after):
            self.quantiser.update(x, coding.codes, found)
        return payload, labels, self.version, book

    def _synchronise(self, x: Tensor) -> bytes:
        """The codebook that goes with this message, encoded; empty between two synchronisations."""
        if not self.quantiser.started:
            self.quantiser.begin(x)
        last = -(-self.freeze_after // self.sync_every) * self.sync_every  # the first synchronisation that finds it frozen
        if self.sends % self.sync_every or 0 < last < self.sends:
            return b""
        payload = self.ledger.send(self.quantiser.codebook, Kept(Dense()), "up", self.party, part="codebook")
        self.shared, self.version = LinkQuantiser(Dense().decode(payload)), self.version + 1
        return payload

    def _observe(self, found: Tally) -> None:
        self.error += found.error
        self.power += found.power
        self.usage = self.usage + found.counts if self.usage.numel() else found.counts

    def arrive(self, message: Message, needed: Iterable[int] = ()) -> None:
        """The receiver takes in the codebook of ``message``, if it has one, and forgets those that nobody needs any more.

        ``needed``: codebooks of the messages that it holds, for ``drift="versioned"``.
        """
        _, _, version, book = message
        if not book:
            return
        keep = {*needed, version} if self.drift == "versioned" else {version}
        self.books = {v: b for v, b in self.books.items() if v in keep} | {version: Dense().decode(book)}

    def receive(self, message: Message, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Activations, float32, and labels, int64, of a message that has arrived."""
        payload, labels, version, _ = message
        y = self.labels.decode(labels).to(device)
        if self.quantiser is None:
            return self.codec.decode(payload).to(device), y
        book = self.books[version] if self.drift == "versioned" else self.books[max(self.books)]
        return LinkQuantiser(book, strict=False).decode(payload).to(device), y

    def through(self, x: Tensor) -> Tensor:
        """What a receiver would see of ``x``, without a message: nothing is billed or learnt. Before the first message: ``x``."""
        if not self.lossy:
            return x
        if self.quantiser is None:
            return self.codec.decode(self.codec.encode(x)).to(x.device)
        return x if self.shared is None else self.shared.look_up(self.shared.codes(x), tuple(x.shape))

    def pass_on(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Send and receive at once: what the next module sees where modules go in step."""
        message = self.send(x, y)
        self.arrive(message)
        return self.receive(message, x.device)

    # --- figures and memory -------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """Of what was sent since the last call: relative squared ``error``, ``perplexity`` of code use (mean over groups), share of
        ``idle`` codewords, and ``movement`` of the codebook. Empty without a quantiser or a message.
        """
        if self.quantiser is None or not self.usage.numel():
            return {}
        share = self.usage.double() / self.usage.sum(1, keepdim=True)
        entropy = -(share * share.clamp(min=1e-300).log()).sum(1)
        figures = {"error": self.error / max(self.power, 1e-300), "perplexity": float(entropy.exp().mean()),
                   "idle": float((self.usage == 0).double().mean()), "movement": self.quantiser.movement}
        self.error = self.power = 0.0
        self.usage = torch.empty(0)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """All that both ends remember, messages under way and the ledger left out."""
        quantiser = None if self.quantiser is None else self.quantiser.state_dict()
        return {"sends": self.sends, "version": self.version, "shared": None if self.shared is None else self.shared.codebook,
                "books": self.books, "error": self.error, "power": self.power, "usage": self.usage, "quantiser": quantiser}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("sends", "version", "books", "error", "power", "usage"):
            setattr(self, name, state[name])
        self.shared = None if state["shared"] is None else LinkQuantiser(state["shared"])
        if self.quantiser is not None:
            self.quantiser.load_state_dict(state["quantiser"])
