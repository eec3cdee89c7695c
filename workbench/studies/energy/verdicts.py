"""Verdicts of the study: each a check on its tables, with the figures that decide it in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.claims import Claim, checked
from workbench.studies.energy.ratios import BAND, METHODS, PUBLISHED, parts
from workbench.studies.energy.rounds import dominates

if TYPE_CHECKING:
    import pandas


def order_claim(frame: pandas.DataFrame) -> Claim:
    """FP32 above BinaryConnect above the binary networks above BOLD of every signal width, all with norms, in every scenario."""
    rows = frame.set_index("method")
    bold = [m for m, r in METHODS.items() if r.family == "BOLD + norm"]
    broken = []
    for name in frame.attrs["scenarios"]:
        p = rows[f"percent_{name}"]
        binary = p[["XNOR-Net", "BinaryNet"]]
        if not (p["FP32"] > p["BinaryConnect"] > binary.max() and binary.min() > p[bold].max()):
            broken.append(name)
    holds, n = not broken, len(frame.attrs["scenarios"])
    return checked(
        f"On {frame.attrs['hardware']} FP32 takes more than BinaryConnect, that more than the binary networks, those more than BOLD",
        "order of Table 2",
        f"in {n - len(broken)} of {n} scenarios",
        holds,
        "checked in every scenario, BOLD with norms at signals of 1, 8 and 16 bits"
        + (f"; broken in {', '.join(broken)}" if broken else ""),
    )


def reason(method: str, hardware: str, n: int = 2) -> str:
    """The largest of :func:`parts` in words."""
    found = list(parts(method, hardware).items())[:n]
    return f"Of FP32's total it takes {' and '.join(f'{share:.1f} % for {level}' for level, share in found)}."


def _bold(width: str, hw: str) -> str:
    return f"As trained it falls between signals of 1 and of 8 bits. {reason(width, hw)}"


def _why(frame: pandas.DataFrame, family: str) -> str:
    """What decides whether a published ratio lies in our band, in a sentence or two."""
    hw, row = frame.attrs["hardware"], frame.set_index("method")
    if family in ("XNOR-Net", "BinaryNet"):
        p = row.loc[family]
        return (
            f"{p['percent_as_trained']:.1f} % where one-bit factors are used in all products, {p['percent_one_bit_dx']:.1f} % "
            f"without the weight gradient, {p['percent_ordinary_hardware']:.1f} % forward only: this one choice decides."
        )
    return {
        ("ascend_like", "BOLD"): lambda: _bold("BOLD 8-bit signals", hw),
        ("ascend_like", "BOLD + norm"): lambda: _bold("BOLD 8-bit signals, norm", hw),
        ("ascend_like", "BinaryConnect"): lambda: "Arithmetic alone exceeds the published total: the product that gives the "
        f"weight gradient has two real factors. {reason(family, hw)}",
        ("v100_like", "BOLD"): lambda: "The register file, mostly partial sums, alone exceeds the published total. "
        + reason("BOLD 1-bit signals", hw),
        ("v100_like", "BOLD + norm"): lambda: f"As without norms. {reason('BOLD 1-bit signals, norm', hw)}",
        ("v100_like", "BinaryConnect"): lambda: "Arithmetic and the register file together exceed the published total. "
        + reason(family, hw),
    }[hw, family]()


def band_claims(frame: pandas.DataFrame) -> list[Claim]:
    """Whether each published ratio lies in our band over scenarios (and over signal widths, for BOLD), and what decides it."""
    return [band_claim(frame, family, _why(frame, family)) for family in PUBLISHED[frame.attrs["hardware"]] if family != "FP32"]


def band_claim(frame: pandas.DataFrame, family: str, why: str) -> Claim:
    """Whether a published ratio lies in our band over scenarios (and over signal widths, for BOLD). ``why`` says what decides it."""
    own = frame[[METHODS[m].family == family for m in frame["method"]]]
    low, high, published = own["scenario_low"].min(), own["scenario_high"].max(), own["published"].iloc[0]
    widths = f", {len(own)} signal widths" if len(own) > 1 else ""
    as_trained = " / ".join(f"{p:.2f}" for p in own["percent"])
    where = "inside" if low <= published <= high else "below" if published < low else "above"
    return checked(
        f"The published ratio of {family} on {frame.attrs['hardware']} lies in our band",
        f"{published:g} % (recollection)",
        f"band {low:.2f} to {high:.2f} %; as trained {as_trained} %",
        where == "inside",
        f"{len(BAND)} scenarios{widths}; the published figure lies {where}. {why}",
    )


def relative_claim(frame: pandas.DataFrame) -> Claim:
    """Whether BOLD's published V100 ratio is reached with the relative prices of ``frame``'s hardware, at any width in any scenario."""
    published = PUBLISHED["v100_like"]["BOLD"]
    low = frame.loc[[METHODS[m].family == "BOLD" for m in frame["method"]], "scenario_low"].min()
    return checked(
        "Eyeriss' relative prices explain the published V100 ratio of BOLD",
        f"{published:g} % (recollection)",
        f"lowest of BOLD at any width in any scenario: {low:.2f} %",
        bool(low <= published),
        f"lower end of the band on {frame.attrs['hardware']} against the published figure",
    )


def codec_claims(frame: pandas.DataFrame, tolerance: float = 0.1) -> list[Claim]:
    """What codecs say of themselves, on the update of :func:`coded`: unbiased ones average out, and promised bounds are kept.

    Thousands of values err independently, so the sampling error of both is a few per cent: ``tolerance``.
    """
    repeats = frame.attrs["repeats"]
    unbiased = frame[frame["unbiased"] & (frame["error"] > 0)]
    shrunk = repeats * unbiased["error_of_mean"] / unbiased["error"]
    promised = frame.dropna(subset=["bound"])
    promised = promised[promised["error"] > 0]
    used = promised["error"] / promised["bound"]
    return [
        checked(
            "Codecs called unbiased are so on a real update",
            "the mean of n messages has 1/n of the error",
            f"n times its share of the error: {shrunk.min():.3f} to {shrunk.max():.3f}",
            bool(shrunk.between(1 - tolerance, 1 + tolerance).all()),
            f"{len(unbiased)} codecs, mean of {repeats} messages, within {tolerance:.0%}",
        ),
        checked(
            "Every codec keeps its promised bound on a real update",
            "error at most the bound",
            f"largest error over bound: {used.max():.2f}",
            bool((used <= 1 + tolerance).all()),
            f"{len(promised)} lossy codecs that promise one; bounds of random codecs are expectations, so within {tolerance:.0%}",
        ),
    ]


def medium_claim(frame: pandas.DataFrame) -> Claim:
    """Whether the choice of the medium alone turns which of network and computing dominates a round."""
    found = dominates(frame)
    groups = {v: ", ".join(m for m, w in found.items() if w == v) for v in dict.fromkeys(found.values())}
    return checked(
        "The medium decides whether network or computing dominates a federated round",
        "no single published figure",
        "; ".join(f"{verdict}: {names}" for verdict, names in groups.items()),
        {"network", "compute"} <= set(found.values()),
        "fp32 upload, perceptron and VGG-Small, whole interval of the medium's figure",
    )
