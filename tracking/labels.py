"""Where the labels of points go in a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def label_places(x: ArrayLike, y: ArrayLike, labels: Sequence[str], width: float = 700, height: float = 400, font: float = 11) -> list[str]:
    """A plotly text position for the label of each point, such that labels hide neither points nor each other where there is room.

    ``x, y``: places in fractions of the drawing area, ``width`` by ``height`` pixels wide and high, with a font of ``font`` pixels.
    """
    import numpy as np

    at = np.column_stack([np.asarray(x, float) * width, np.asarray(y, float) * height])
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in at]
    chosen = []
    for (px, py), label in zip(at, labels, strict=True):
        w, h = 0.6 * font * len(label), 1.2 * font
        offers = {f"{v} {s}": (px + dx, py + dy, px + dx + w, py + dy + h)
                  for v, s, dx, dy in (("top", "center", -w / 2, 7), ("bottom", "center", -w / 2, -7 - h), ("middle", "right", 8, -h / 2),
                                       ("middle", "left", -8 - w, -h / 2), ("top", "right", 5, 5), ("top", "left", -5 - w, 5),
                                       ("bottom", "right", 5, -5 - h), ("bottom", "left", -5 - w, -5 - h))}
        chosen.append(min(offers, key=lambda name, o=offers: sum(_overlap(o[name], box) for box in taken)))
        taken.append(offers[chosen[-1]])
    return chosen


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, low, right, high) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
