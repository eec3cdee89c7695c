"""Traces in virtual time: when who delivers what, one generator a scheme. Timing never depends on weights.

Every client draws its step times from a stream of its own, keyed by (seed, client), ``K`` numbers a delivery: the same
seed gives all schemes the same clients, and more clients change nobody else's times. The server's choices come from
streams of their own.

Absence of clients, the wait of FAVAS and QuAFL before the first contact, and how FedBuff and AsyncSGD charge the
exchange are parameters: the papers leave them open, or we could not read them there; the defaults are our choice.
"""

from workbench.federation.events import arrivals, buffered
from workbench.federation.periodic import contacts, rounds, windows
from workbench.federation.timeline import Trace

__all__ = ["Trace", "arrivals", "buffered", "contacts", "rounds", "windows"]
