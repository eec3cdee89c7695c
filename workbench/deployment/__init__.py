"""FAVAS and FedBuff over real processes: a server at its own pace, clients on this machine or on several.

The aggregation is the simulator's, the same classes :class:`workbench.methods.federated.favas.FAVAS` and
:class:`workbench.methods.federated.fedbuff.FedBuff`; time, speed and faults are real. ``deploy`` starts everything here;
on several machines the parts are started by hand, with one secret key in the environment variable
``WORKBENCH_DEPLOYMENT_KEY`` of each::

    python -m workbench.deployment.server --address 0.0.0.0:5701 --folder out --set method=favas --set clients=4
    python -m workbench.deployment.client --address server.example:5701 --client 3

**Why not Flower.** Its strategies are round-based: ``configure_fit`` names the clients of a round and ``aggregate_fit``
gets all their results together, so a server step ends when the slowest has answered. A server that contacts clients at
its own pace, interrupts them and takes partial work cannot be written as one. What the methods need is smaller: calls
from clients to one object on the server. That is an engine of the standard library, ``multiprocessing.managers``
(TCP, mutual authentication by key, proxies), so a compute node needs no further package.

**Faults.** A client that has not been heard of for ``silence_s`` is left out (killed, unplugged, suspended) and
everything goes on without it; it may come back under its number at any time and begins from the current model. A
server that is gone ends its clients with a sentence. The server writes what happens as it happens into a run folder,
so a killed one leaves all up to its end.

**Trust.** Whoever has the key can take part, and models are averaged as they come. Only plain values cross the wire
(nothing that unpickling could execute), but they are not encrypted: use a network you trust, or a tunnel.
"""

from __future__ import annotations

from workbench.deployment.launch import Deployment as Deployment
from workbench.deployment.launch import deploy as deploy
from workbench.deployment.launch import start as start
from workbench.deployment.record import Result as Result
