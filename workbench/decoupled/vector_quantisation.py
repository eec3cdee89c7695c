"""Online vector quantisation: codebooks that follow what a module puts out while it is being trained.

That arXiv:2106.06401 quantises what modules send and keep, by codebooks learnt online, is certain; the quantiser is laid out as in
adaptive quantisation modules (Caccia et al., ICML 2020, arXiv:1911.08019), which shares authors: nearest codewords, a codebook for
each group of channels, exponential moving averages (van den Oord et al., NeurIPS 2017, appendix A.1). Initialisation, revival and
synchronisation are choices of ours, and parameters.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.randomness import Keys, stream
from tracking.codecs.vq import fit_codebook
from tracking.errors import UserError, unknown
from workbench.decoupled.vq_codec import Tally, tally

Start = Literal["sample", "kmeans", "uniform"]
EPSILON = 1e-5  # of the Laplace smoothing, as in the papers


class OnlineVQ:
    """g codebooks of K codewords of d = c / g neighbouring channels, learnt by moving averages.

    With n_k vectors of a batch nearest to codeword k and their sum s_k: ``N_k <- rho N_k + (1 - rho) n_k``,
    ``S_k <- rho S_k + (1 - rho) s_k``, ``e_k = S_k / N_k`` with N smoothed. Such a step is online k-means that forgets.

    Args:
        channels: c, the size of axis 1 of what is quantised.
        groups: g, a divisor of c.
        codewords: K, 1 to 65536.
        decay: rho.
        revival: a codeword whose average count N_k falls below moves to a vector of the batch, drawn at random; 0: never.
        start: from vectors of the first batch (``sample``), from k-means on it (``kmeans``), or ``uniform`` in +-1/K as in the
            code of adaptive quantisation modules, without counts.
        seed: of all draws; those of batch t depend on (seed, t) alone.
    """

    def __init__(self, channels: int, groups: int, codewords: int = 256, *, decay: float = 0.9, revival: float = 1.0,
                 start: Start = "sample", seed: int = 0) -> None:
        if start not in get_args(Start):
            raise unknown("start of a codebook", start, get_args(Start))
        if groups < 1 or channels % groups:
            raise UserError(f"groups = {groups} is refused. Allowed: a divisor of the {channels} channels that are quantised.")
        if not 1 <= codewords <= 2**16 or not 0 <= decay < 1 or revival < 0:
            raise UserError(f"codewords = {codewords}, decay = {decay:g}, revival = {revival:g} are refused. "
                            "Allowed: 1 <= codewords <= 65536, 0 <= decay < 1, 0 <= revival.")
        self.channels, self.groups, self.codewords, self.d = channels, groups, codewords, channels // groups
        self.decay, self.revival, self.start = decay, revival, start
        self.keys = Keys(seed)
        self.codebook = self.count = self.total = torch.empty(0)
        self._movement: float | Tensor = 0.0

    @property
    def movement(self) -> float:
        """Relative change of the codebook at the last update, ||E' - E|| / ||E||."""
        return float(self._movement)

    @property
    def started(self) -> bool:
        """Whether there is a codebook: it takes a first batch."""
        return self.codebook.numel() > 0

    def vectors(self, x: Tensor) -> Tensor:
        """What is quantised of ``x`` (n, c, ...): (vectors, g, d), samples first, then positions."""
        return x.movedim(1, -1).reshape(-1, self.groups, self.d)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Make the codebook from a first batch ``x`` (n, c, ...). Raises :class:`UserError` for other channels, or nothing in it."""
        if x.dim() < 2 or x.shape[1] != self.channels or not x.numel():
            raise UserError(f"A batch of shape {tuple(x.shape)} is refused. Allowed: (n, {self.channels}, ...), with something in it, "
                            f"as this quantiser was made for {self.channels} channels.")
        v, noise = self.vectors(x).float(), stream(self.keys.next())
        shape = (self.groups, self.codewords, self.d)
        if self.start == "uniform":
            draw = noise.random(shape, dtype=np.float32)
            self.codebook = torch.from_numpy((2 * draw - 1) / self.codewords).to(x.device)
            self.count = torch.zeros(shape[:2], device=x.device)
        elif self.start == "sample" or len(v) < self.codewords:
            self.codebook = torch.stack([v[self._rows(noise, len(v), self.codewords), g] for g in range(self.groups)])
            self.count = torch.full(shape[:2], len(v) / self.codewords, device=x.device)
        else:
            books = [fit_codebook(v[:, g].cpu(), self.codewords, int(noise.integers(2**31)), iterations=5) for g in range(self.groups)]
            self.codebook = torch.stack(books).to(x.device)
            self.count = torch.full(shape[:2], len(v) / self.codewords, device=x.device)
        self.total = self.codebook * self.count.unsqueeze(-1)

    @torch.no_grad()
    def update(self, x: Tensor, codes: Tensor, found: Tally | None = None) -> None:
        """Take in a batch ``x`` (n, c, ...) with the ``codes`` (vectors, g), int64, that it was given.

        ``found``: their counts and sums, where these are known already.
        """
        found = found or tally(x, codes, self.codebook)
        self.count = self.decay * self.count + (1 - self.decay) * found.counts
        self.total = self.decay * self.total + (1 - self.decay) * found.sums
        mass = self.count.sum(1, keepdim=True)
        smoothed = (self.count + EPSILON) / (mass + self.codewords * EPSILON) * mass
        before, self.codebook = self.codebook, self.total / smoothed.clamp(min=1e-30).unsqueeze(-1)
        self._revive(x)
        # a tensor: on a GPU nobody waits for it
        self._movement = torch.linalg.vector_norm(self.codebook - before) / torch.linalg.vector_norm(before).clamp(min=1e-30)

    def _revive(self, x: Tensor) -> None:
        """Move codewords that few vectors are nearest to. A vector is drawn for every codeword, so that no device has to say which."""
        noise, planes = stream(self.keys.next()), x.reshape(len(x), self.groups, self.d, -1)
        positions = planes.shape[-1]
        rows = torch.stack([self._rows(noise, len(x) * positions, self.codewords) for _ in range(self.groups)])
        rows = rows.to(x.device, non_blocking=True)  # memory that is not pinned is read before this returns
        group = torch.arange(self.groups, device=x.device)[:, None]
        # advanced indices: (groups, words, d), and no copy of the batch
        fresh, dead = planes[rows // positions, group, :, rows % positions].float(), self.count < self.revival
        self.codebook = torch.where(dead.unsqueeze(-1), fresh, self.codebook)
        # the least count that lives: a batch's time to find vectors of its own
        self.count = self.count.clamp(min=self.revival)
        self.total = torch.where(dead.unsqueeze(-1), fresh * self.revival, self.total)

    @staticmethod
    def _rows(noise: np.random.Generator, n: int, k: int) -> Tensor:
        """k of n rows at random, distinct where there are as many."""
        return torch.from_numpy(noise.choice(n, size=k, replace=k > n))

    def state_dict(self) -> dict[str, Any]:
        return {"codebook": self.codebook, "count": self.count, "total": self.total, "movement": self._movement,
                "keys": self.keys.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.codebook, self.count, self.total = state["codebook"], state["count"], state["total"]
        self._movement = state["movement"]
        self.keys.load_state_dict(state["keys"])
