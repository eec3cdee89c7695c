"""The way from one module to the next: what is sent, what it costs, and what the receiver makes of what it kept.

A message is encoded once, billed at the length of its payload, and kept encoded until it is read: a buffer of quantised
activations holds indices. Between modules on a GPU it stays there (:mod:`workbench.decoupled.parcels`), buffers included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tracking.codecs import Dense
from tracking.codecs.base import Codec
from tracking.errors import UserError, unknown
from tracking.ledger import Ledger
from workbench.decoupled.messages import Coding, Kept, Labels, Message
from workbench.decoupled.parcels import kind_of, opened
from workbench.decoupled.vector_quantisation import OnlineVQ
from workbench.decoupled.vq_codec import LinkQuantiser, Tally, tally

Drift = Literal["latest", "versioned"]


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
        self.kind = kind_of(self.codec)
        self.in_place = False
        """Whether float32 values are sent as they lie in the sender's memory, on a processor, too."""
        self.sync_every, self.drift, self.freeze_after = sync_every, drift, freeze_after
        self.ledger = ledger if ledger is not None else Ledger()
        self.sends = 0
        self.shared: LinkQuantiser | None = None
        """The codebook sent last, as the receiver decoded it."""
        self.version = 0
        self.books: dict[int, Tensor] = {}
        """Codebooks that have arrived, by number."""
        self._readers: dict[int, LinkQuantiser] = {}
        self.error: float | Tensor = 0.0
        self.power: float | Tensor = 0.0
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
        labels = self.ledger.send(y, Kept(self.labels, self.labels), "up", self.party)
        if self.quantiser is None:
            in_place = self.in_place and getattr(self.codec, "exact", False)
            return self.ledger.send(x, Kept(self.codec, self.kind, in_place), "up", self.party), labels, 0, b""
        book = self._synchronise(x)
        coding = Coding(self.shared)
        payload = self.ledger.send(x, Kept(coding, coding), "up", self.party)
        found = tally(x, coding.codes, self.shared.on(x.device))
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
        self._readers = {v: r for v, r in self._readers.items() if v in self.books and v != version}

    def receive(self, message: Message, device: torch.device | str = "cpu", last: bool = False) -> tuple[Tensor, Tensor]:
        """Activations, float32, and labels, int64, of a message that has arrived; ``last``: nobody receives it again."""
        payload, labels, version, _ = message
        y = opened(self.labels, self.labels, labels, device) if isinstance(labels, tuple) else self.labels.decode(labels).to(device)
        if self.quantiser is None:
            return opened(self.codec, self.kind, payload, device, last), y
        reader = self._reader(version if self.drift == "versioned" else max(self.books))
        return opened(reader, reader, payload, device), y

    def _reader(self, version: int) -> LinkQuantiser:
        if version not in self._readers:
            self._readers[version] = LinkQuantiser(self.books[version], strict=False)
        return self._readers[version]

    def through(self, x: Tensor) -> Tensor:
        """What a receiver would see of ``x``, without a message: nothing is billed or learnt. Before the first message: ``x``."""
        if not self.lossy:
            return x
        if self.quantiser is None:
            kept = Kept(self.codec, self.kind)
            return opened(self.codec, self.kind, kept.decode(kept.encode(x)), x.device)
        return x if self.shared is None else self.shared.look_up(self.shared.codes(x), tuple(x.shape))

    def pass_on(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Send and receive at once: what the next module sees where modules go in step."""
        message = self.send(x, y)
        self.arrive(message)
        return self.receive(message, x.device, last=True)

    # --- figures and memory -------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """Of what was sent since the last call: relative squared ``error``, ``perplexity`` of code use (mean over groups), share of
        ``idle`` codewords, and ``movement`` of the codebook. Empty without a quantiser or a message.

        Raises ``ValueError`` where something that is not finite was sent from a GPU; from a processor, :meth:`send` does.
        """
        if self.quantiser is None or not self.usage.numel():
            return {}
        error, power = float(self.error), float(self.power)
        if not math.isfinite(power):
            raise ValueError("Values that are not finite were sent through a vector quantiser, which carries finite values.")
        share = self.usage.double() / self.usage.sum(1, keepdim=True)
        entropy = -(share * share.clamp(min=1e-300).log()).sum(1)
        figures = {"error": error / max(power, 1e-300), "perplexity": float(entropy.exp().mean()),
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
        self.shared, self._readers = None if state["shared"] is None else LinkQuantiser(state["shared"]), {}
        if self.quantiser is not None:
            self.quantiser.load_state_dict(state["quantiser"])
