"""Modelled energy of training and inference on named hardware, in named scenarios. Usable without the workbench.

``trace`` reads a network, :mod:`tracking.energy_model.plan` says in which formats it computes, ``hardware`` where, and
:mod:`tracking.energy_model.scenario` under which assumptions; ``estimate`` puts the four together.
"""

from tracking.energy_model.estimate import Estimate, Interval, compare, estimate, estimate_layers
from tracking.energy_model.hardware import Hardware, hardware, hardware_ids
from tracking.energy_model.layers import Layer, from_json, to_json
from tracking.energy_model.plan import PLANS, Precision, PrecisionPlan
from tracking.energy_model.product import Cost, Product, Window, bits
from tracking.energy_model.roofline import roofline, roofline_figure
from tracking.energy_model.scenario import SCENARIOS, Scenario
from tracking.energy_model.search import product_cost
from tracking.energy_model.trace import trace

__all__ = [
    "PLANS", "SCENARIOS", "Cost", "Estimate", "Hardware", "Interval", "Layer", "Precision", "PrecisionPlan", "Product", "Scenario",
    "Window", "bits", "compare", "estimate", "estimate_layers", "from_json", "hardware", "hardware_ids", "product_cost",
    "roofline", "roofline_figure", "to_json", "trace",
]
