"""What server and clients compute alike from the settings: task, network, partition, and the coding of deliveries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracking.codecs.registry import codec
from tracking.errors import UserError
from workbench import registry
from workbench.deployment.settings import Settings
from workbench.federation.partition import partition
from workbench.method import Context, derive_seed
from workbench.methods.federated._local import LocalSGD, draws
from workbench.methods.supervised import count_batches, recalibrate_batchnorm, test
from workbench.params import parse
from workbench.task import SupervisedTask


class Federation:
    """Task and network of a deployment on the CPU, the same in every process that has the same settings and data."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        torch.set_num_threads(settings.threads)
        entry, cls = registry.task_entry(settings.task), registry.load_task(settings.task)
        self.task = cls(entry.literals["model"], parse(cls.Params, {}, f"task {settings.task!r}"))
        if not isinstance(self.task, SupervisedTask):
            raise UserError(f"Task {settings.task!r} has no labelled samples to share out among clients. Choose a supervised task.")
        self.ctx = Context(device=torch.device("cpu"), seed=settings.seed)
        self.task.setup(self.ctx)
        self.model = self.task.build_model(self.ctx)
        self.local = LocalSGD(self.model, torch.nn.functional.cross_entropy if self.task.num_classes > 2 else self.task.loss)
        self.initial = self.local.flat.vector(self.model)

    def samples(self, client: int) -> np.ndarray:
        """Sample indices that ``client`` holds."""
        s = self.settings
        shares = partition(s.partition, self.task.train_y.numpy(), s.clients, seed=derive_seed(s.seed, "partition"),
                           classes_per_client=s.classes_per_client, alpha=s.concentration)
        return shares.check(len(self.task.train_y)).of(client)

    def batches(self, client: int, contact: int, own: np.ndarray) -> np.ndarray:
        """Samples ``(K, B)`` of the steps that ``client`` does before its contact of that number."""
        s = self.settings
        return own[draws(derive_seed(s.seed, "batches"), client, contact, s.local_steps, s.batch_size, len(own))]

    def train_step(self, w: Tensor, samples: np.ndarray) -> None:
        """One gradient step of the model ``w`` ``(P,)``, in place, on ``samples`` ``(B,)``."""
        self.local.train(w.unsqueeze(0), [samples[None]], self.task.batch, self.settings.lr)

    def encode(self, start: Tensor, end: Tensor, client: int, contact: int) -> bytes:
        """A delivery as it is sent: the model, or for the codecs of differences its difference to the model begun from.

        Empty when the model holds nan or inf. The noise of a message belongs to (seed, client, contact).
        """
        if not torch.isfinite(end).all():
            return b""
        return self._upload((derive_seed(self.settings.seed, "codec", client), contact)).encode(end if self._whole else end - start)

    def decode(self, payload: bytes, start: Tensor, server: Tensor) -> Tensor:
        """The client's model as the server gets it; ``server``, its own model, resolves the lattice. ValueError for foreign bytes."""
        if self.settings.upload == "lattice":
            got = self._upload().decode(payload, reference=server)
        else:
            got = self._upload().decode(payload)
        if got.shape != start.shape:
            raise ValueError(f"a vector of shape {tuple(got.shape)} instead of {tuple(start.shape)}")
        return got if self._whole else start + got

    def evaluate(self, vector: Tensor) -> dict[str, float]:
        """Test loss and accuracy of the model ``vector``."""
        model = self.local.flat.load(vector, self.model)
        if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            recalibrate_batchnorm(model, self.task, 128, min(16, count_batches(len(self.task.train_y), 128)), self.ctx)
        return test(model, self.task, self.ctx)

    @property
    def _whole(self) -> bool:
        return self.settings.upload.startswith("dense") or self.settings.upload == "lattice"

    def _upload(self, rng: tuple[int, int] | int = 0):
        s = self.settings
        options = {"qsgd": {"levels": s.qsgd_levels, "rng": rng}, "lattice": {"bits": s.lattice_bits, "side": s.lattice_side, "rng": rng},
                   "int8": {"rounding": "stochastic", "rng": rng}, "int4": {"rounding": "stochastic", "rng": rng}}
        return codec(s.upload, **options.get(s.upload, {}))
