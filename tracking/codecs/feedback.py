"""Error feedback: what a biased codec left out of one message is added to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracking.codecs.base import Codec


class ErrorFeedback:
    """p = x + e, send C(p), e <- p - C(p): Karimireddy, Rebjock, Stich, Jaggi, ICML 2019, Algorithm 2 (Seide et al.,
    2014, for one bit).

    Each sender has memories of its own, one for each tensor that it sends: ``feedback.of("client 3/layer 1")`` is the
    codec of that sender and tensor, for ``Ledger.send``. The memory is local state (``state_dict``), never billed.
    """

    def __init__(self, codec: Codec) -> None:
        if getattr(codec, "needs_reference", False):
            raise ValueError(
                "Error feedback needs a sender that knows what arrives; "
                f"{codec.name!r} is decoded with the receiver's reference."
            )
        self.codec = codec
        self.memory: dict[str, Tensor] = {}

    def of(self, party: str) -> FeedbackOf:
        """The codec of one sender (and tensor)."""
        return FeedbackOf(self, party)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": {party: e.clone() for party, e in self.memory.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = {party: e.clone() for party, e in state["memory"].items()}


class FeedbackOf:
    """:class:`ErrorFeedback` as one sender sees it. A decoded message is what the inner codec decodes."""

    def __init__(self, feedback: ErrorFeedback, party: str) -> None:
        self.feedback, self.party = feedback, party
        self.name = f"ef_{feedback.codec.name}"

    def encode(self, value: Tensor) -> bytes:
        """Send ``value`` and what is owed; what the payload leaves out is owed from now on."""
        codec, memory = self.feedback.codec, self.feedback.memory
        owed = memory.get(self.party)
        if owed is not None and owed.shape != value.shape:
            raise ValueError(
                f"The memory of {self.party!r} has shape {tuple(owed.shape)}, the value {tuple(value.shape)}; "
                "use a name of its own for every tensor."
            )
        wanted = value.detach().to("cpu", torch.float32)
        wanted = wanted + owed if owed is not None else wanted
        payload = codec.encode(wanted)
        memory[self.party] = wanted - codec.decode(payload)
        return payload

    def decode(self, payload: bytes) -> Tensor:
        return self.feedback.codec.decode(payload)

    def lost(self, payload: bytes) -> None:
        """The message never counted (lost, or discarded as stale): all of it is owed again."""
        if self.party not in self.feedback.memory:
            raise ValueError(f"{self.party!r} has sent nothing that could be lost.")
        self.feedback.memory[self.party] += self.decode(payload)

    def entropy_bytes(self, payload: bytes) -> float | None:
        bound = getattr(self.feedback.codec, "entropy_bytes", None)
        return bound(payload) if bound else None
