"""Training the modules of a network apart from one another, usable in anyone's own loop.

Cut a network (:mod:`splitting`), give its modules heads (:mod:`heads`) and train them by local losses (:mod:`training`), with the
buffers, links and clocks of asynchronous training (:mod:`buffer`, :mod:`channel`, :mod:`line`, :mod:`events`). The relatives that
keep one loss are in :mod:`delayed` and :mod:`synthetic`. None of these knows of runs or tasks; :mod:`processes`, which runs a
method of the workbench with a process a module, does.
"""

from __future__ import annotations

from workbench.decoupled.buffer import ReplayBuffer
from workbench.decoupled.channel import Channel
from workbench.decoupled.costs import Costs, module_costs, multiply_accumulates
from workbench.decoupled.delayed import DelayedGradients
from workbench.decoupled.events import EventLine
from workbench.decoupled.heads import HEADS, auxiliary_head, auxiliary_heads
from workbench.decoupled.line import Line, RandomLine, RoundRobin, Tandem
from workbench.decoupled.messages import Border
from workbench.decoupled.splitting import balanced_cuts, divide, split, units
from workbench.decoupled.synthetic import Synthesiser, SyntheticGradients
from workbench.decoupled.training import DecoupledTraining, LocalNetwork
from workbench.decoupled.vector_quantisation import OnlineVQ
from workbench.decoupled.vq_codec import LinkQuantiser

__all__ = [
    "HEADS",
    "Border",
    "Channel",
    "Costs",
    "DecoupledTraining",
    "DelayedGradients",
    "EventLine",
    "Line",
    "LinkQuantiser",
    "LocalNetwork",
    "OnlineVQ",
    "RandomLine",
    "ReplayBuffer",
    "RoundRobin",
    "Synthesiser",
    "SyntheticGradients",
    "Tandem",
    "auxiliary_head",
    "auxiliary_heads",
    "balanced_cuts",
    "divide",
    "module_costs",
    "multiply_accumulates",
    "split",
    "units",
]
