"""Codecs: from a tensor to the bytes that would really be sent or stored, and back to what the receiver uses.

A payload describes itself (shape, scale, level table, seed), so its length is all that a receiver needs. The
lossy codecs live in the modules beside this one; :mod:`tracking.codecs.registry` makes any of them by name.
"""

from __future__ import annotations

from tracking.codecs.base import Codec as Codec
from tracking.codecs.dense import Dense as Dense
from tracking.codecs.levels import Levels as Levels
from tracking.codecs.levels import index_width as index_width
