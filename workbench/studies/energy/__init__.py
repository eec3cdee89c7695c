"""The study of energy and bandwidth: tables and figures of what may be claimed, and of what decides it.

Published ratios: V. M. Nguyen et al., BOLD: Boolean logic deep learning, NeurIPS 2024, arXiv:2405.16339, Table 2. Its appendix E does not
state the widths of signals and partial sums, the batch or the optimiser's traffic, so ours are bands over scenarios.
"""

from workbench.studies.energy.anatomy import by_layer, by_level, level_figure
from workbench.studies.energy.live import explore, totals
from workbench.studies.energy.measured import measured, measured_figure, no_measurement, probe_table, runs_here
from workbench.studies.energy.messages import codec_figure, coded, exact_messages, shown_codecs, update_of
from workbench.studies.energy.ratios import METHODS, PUBLISHED, estimate_of, parts, ratio_figure, ratios, shown, vgg_small
from workbench.studies.energy.rounds import dominates, media_table, round_energy, round_figure, shown_rounds
from workbench.studies.energy.sensitivity import sensitivity, sensitivity_figure, tornado, tornado_figure
from workbench.studies.energy.verdicts import band_claims, codec_claims, medium_claim, order_claim, relative_claim

__all__ = [
    "METHODS", "PUBLISHED", "band_claims", "by_layer", "by_level", "codec_claims", "codec_figure", "coded",
    "dominates", "estimate_of", "exact_messages", "explore", "level_figure", "measured", "measured_figure",
    "media_table", "medium_claim", "no_measurement", "order_claim", "parts", "probe_table", "ratio_figure",
    "ratios", "relative_claim", "round_energy", "round_figure", "runs_here", "sensitivity", "sensitivity_figure",
    "shown", "shown_codecs", "shown_rounds", "tornado", "tornado_figure", "totals", "update_of", "vgg_small",
]
