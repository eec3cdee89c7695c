"""How methods look: one colour, dash, marker and hatch for each name, the same in every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

INK = "#767676"
"""Text colour with a contrast of 4.5 : 1 or more on both white and black."""

# Okabe & Ito's colour-blind-safe palette; its black and yellow vanish on one of the two backgrounds, grey stands in for black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
_HATCHES = ("", "/", "x", "-", "\\", "|", "+", ".")
_CUES = 24  # least common multiple of 6 dashes and 8 markers: as many different pairs


class Style(NamedTuple):
    """How a method looks: colour, and a second cue for lines, points and bars."""

    colour: str
    dash: str
    marker: str
    hatch: str


def style_of(names: Iterable[str]) -> dict[str, Style]:
    """A distinct style for each name. The first word of a name is its method, the rest tells its variants apart.

    A method has a preferred style that depends on its name alone, so it looks the same in every figure; only where two methods of one
    figure clash does the later one of the alphabet move on. Variants of a method share its colour and differ in the second
    cue, unless there is one method only: then they differ in both. For the same look in several figures, ask once with all names.
    """
    names = list(dict.fromkeys(names))
    variants: dict[str, list[str]] = {method: [] for method in sorted({n.split(" ")[0] for n in names})}
    for name in names:
        variants[name.split(" ")[0]].append(name)
    colours: list[int] = []
    cues: list[int] = []
    styles = {}
    for method, own in variants.items():
        wish, cue_wish = divmod(int.from_bytes(hashlib.blake2b(method.encode(), digest_size=4).digest(), "big"), _CUES)
        colour = _first_free(wish, len(COLOURS), lambda c: c not in colours)
        colours.append(colour)
        for step, name in enumerate(own):
            shade = (colour + step) % len(COLOURS) if len(variants) == 1 else colour
            cue = _first_free(cue_wish + step, _CUES, lambda c: all(c % 6 != u % 6 and c % 8 != u % 8 for u in cues),
                              lambda c: all(c % 8 != u % 8 for u in cues), lambda c: c not in cues)
            cues.append(cue)
            styles[name] = Style(COLOURS[shade], _DASHES[cue % 6], _MARKERS[cue % 8], _HATCHES[cue % 8])
    return {name: styles[name] for name in names}


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """The colours of :func:`style_of` for pages on which colour is the only cue: where they are used up, darker ones, then lighter.

    Distinct for as many methods as three times the palette.
    """
    styles = style_of(methods)
    found: dict[str, str] = {}
    for method in sorted(styles):  # the order in which they have got their colours
        wish = COLOURS.index(styles[method].colour)
        clock = [*COLOURS[wish:], *COLOURS[:wish]]
        offers = [_mixed(colour, *grey) for grey in ((0, 0.0), (0, 0.45), (255, 0.5)) for colour in clock]
        found[method] = next((colour for colour in offers if colour not in found.values()), clock[0])
    return {method: found[method] for method in styles}


def _mixed(colour: str, level: int, share: float) -> str:
    """``colour`` (``#rrggbb``) with a share of the grey ``level``."""
    return "#" + "".join(f"{round((1 - share) * int(colour[i:i + 2], 16) + share * level):02X}" for i in (1, 3, 5))


def _first_free(wish: int, modulus: int, *rules: Callable[[int], bool]) -> int:
    """The first number from ``wish`` on, round the clock, that the strictest rule allows which allows any; else the wish itself."""
    clock = [(wish + k) % modulus for k in range(modulus)]
    return next((c for rule in rules for c in clock if rule(c)), clock[0])
