"""From bytes to seconds and to joules: links, shared servers, collective operations, media. Needs numpy only (figures: plotly).

>>> from tracking.links import Links, SharedServer, network_joules, preset
>>> round(preset("lte").seconds(4_000_000, "up"), 3)
3.225
"""

from tracking.links.collectives import (
    Collective,
    gloo_reduce,
    gloo_reduce_scatter,
    parameter_server,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
    tree_reduce,
)
from tracking.links.figure import seconds_figure
from tracking.links.link import PLAIN, TCP, TCP_TIMESTAMPS, TLS, Framing, Link, Transfer, expected_rounds, path
from tracking.links.media import NetworkJoules, media, network_joules
from tracking.links.network import Links
from tracking.links.presets import preset, presets
from tracking.links.server import Delivery, SharedServer, max_min_rates

__all__ = [
    "PLAIN",
    "TCP",
    "TCP_TIMESTAMPS",
    "TLS",
    "Collective",
    "Delivery",
    "Framing",
    "Link",
    "Links",
    "NetworkJoules",
    "SharedServer",
    "Transfer",
    "expected_rounds",
    "gloo_reduce",
    "gloo_reduce_scatter",
    "max_min_rates",
    "media",
    "network_joules",
    "parameter_server",
    "path",
    "preset",
    "presets",
    "ring_all_gather",
    "ring_all_reduce",
    "ring_reduce_scatter",
    "seconds_figure",
    "tree_broadcast",
    "tree_reduce",
]
