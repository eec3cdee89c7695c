"""From parameters to conditions of the network: who is there when, whom the server draws, how long messages take."""

from __future__ import annotations

import math

import numpy as np
import torch

from tracking.links import Link, Links
from workbench.federation.availability import Availability
from workbench.federation.clock import Speeds
from workbench.methods.federated._exchange import message_bytes
from workbench.methods.federated._local import LocalSGD
from workbench.methods.federated._params import FederatedParams


def availability(p: FederatedParams) -> Availability | None:
    """The law of the clients' presence; ``None`` when all are always there."""
    if not p.has_absence:
        return None
    up = p.present_time if p.absent_time else math.inf
    return Availability(up_mean=up, down_mean=p.absent_time, life_mean=p.lifetime or math.inf)


def selection_law(speeds: Speeds, bias: float) -> np.ndarray | None:
    """(n,) probabilities of single draws, in proportion to ``(1 / mean step time)^bias``; ``None`` when all are alike."""
    if not bias:
        return None
    weight = (speeds.mean.min() / speeds.mean) ** bias
    return weight / weight.sum()


def transfer_times(p: FederatedParams, local: LocalSGD, seed: int) -> np.ndarray | None:
    """(n,) virtual time of each client's two messages together, one up and one down; ``None`` where they take no time.

    Expected times of :class:`tracking.links.Link` for the encoded lengths. Each client's bandwidths are the given ones
    times one log-normal factor, by (seed, client).
    """
    if not p.has_links:
        return None
    median = Link(p.latency_s, p.upload_bandwidth, p.download_bandwidth)
    links = Links.draw(p.clients, "lognormal", seed=seed, median=median, sigma=p.link_spread)
    up, down = message_bytes(p, torch.zeros(local.flat.P))
    return (links.seconds(up, "up") + links.seconds(down, "down")) / p.unit_s
