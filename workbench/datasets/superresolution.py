"""Super-resolution: photographs from their bicubically shrunk copies, in the convention of the field.

High-resolution photographs are cropped to a multiple of the scale, shrunk by antialiased bicubic interpolation and rounded to
bytes. Quality is measured on the luma, without a border as wide as the scale (Lim et al., arXiv:1707.02921, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench import data
from workbench.datasets import models_superresolution as models
from workbench.datasets._photos import Photos
from workbench.datasets.scores import luminance, psnr, ssim
from workbench.method import Context, derive_seed
from workbench.params import Field
from workbench.task import SupervisedParams, SupervisedTask, Tally


class SuperResolutionParams(SupervisedParams):
    """Photographs, patches and network. The sizes of patches are those of arXiv:2405.16339."""

    train_size: int = Field(0, ge=0, description="training photographs used, spread evenly over the set; 0 = all")
    test_size: int = Field(0, ge=0, description="test photographs used, the first of the set; 0 = all")
    scale: Literal[2, 3, 4] = Field(2, description="factor by which images are enlarged")
    patch: int = Field(96, ge=4, le=1024, description="side of a training patch of the large image, a multiple of the scale [pixels]")
    patches: int = Field(40, ge=1, le=100_000, description="patches of a photograph in an epoch")
    augment: bool = Field(True, description="mirror and turn training patches; their places are random in any case")
    width: float = Field(1.0, gt=0, le=4, description="factor on the network's channels")
    blocks: int = Field(0, ge=0, le=256, description="residual blocks; 0 = the model's own number")
    skip: models.Skip = Field("none", description="bicubic: the network learns the difference to bicubic interpolation (our option)")


class SuperResolutionTally(Tally):
    """Mean PSNR and SSIM of the luma over images; outputs are rounded to bytes first, as they would be stored."""

    def __init__(self, shave: int) -> None:
        self.shave = shave
        self.psnr: list[float] = []
        self.ssim: list[float] = []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        ours, theirs = (luminance(t.double().round().clamp(0, 255))[..., self.shave:-self.shave, self.shave:-self.shave]
                        for t in (outputs, labels))
        self.psnr += psnr(ours, theirs).tolist()
        if min(ours.shape[-2:]) >= 11:
            self.ssim += ssim(ours.float(), theirs.float()).tolist()

    def result(self) -> dict[str, float]:
        found = {"eval/psnr": float(np.mean(self.psnr))}
        return found | ({"eval/ssim": float(np.mean(self.ssim))} if len(self.ssim) == len(self.psnr) else {})


class SuperResolutionTask(SupervisedTask):
    """Base of the super-resolution tasks. A sample is a pair of patches, small and large, on the scale 0 to 255.

    After :meth:`setup`: ``small`` and ``large`` hold the training photographs, ``tests`` pairs of whole test photographs. A batch is
    float32 ``(n, 3, patch / scale, patch / scale)`` and ``(n, 3, patch, patch)``; its windows are drawn when a generator is given,
    and always the same otherwise. The loss is the mean absolute error in grey levels.
    """

    Params = SuperResolutionParams
    params: SuperResolutionParams
    train_loss = "train/l1"

    @property
    def test_set(self) -> str:
        """Name of the data set that is tested on."""
        return self.dataset

    def setup(self, ctx: Context) -> None:
        p = self.params
        if p.patch % p.scale:
            near = p.patch // p.scale * p.scale
            raise UserError(f"patch = {p.patch} is refused. Allowed: a multiple of scale = {p.scale}, such as {near}.")
        large = _photos(self.dataset, "train", p.train_size, p.scale, spread=True)
        smallest = min(min(image.shape[1:]) for image in large)
        if p.patch > smallest:
            raise UserError(f"patch = {p.patch} is refused. Allowed: x <= {smallest}, the smallest side of a training photograph.")
        # on the CPU, so that both devices train on the same bytes
        self.large, self.small = Photos.of(large, ctx.device), Photos.of([shrink(image, p.scale) for image in large], ctx.device)
        tests = _photos(self.test_set, "test", p.test_size, p.scale, spread=False)
        self.tests = [(shrink(image, p.scale).to(ctx.device), image.to(ctx.device)) for image in tests]
        self.sample_shape = (3, p.patch // p.scale, p.patch // p.scale)
        fixed = torch.Generator().manual_seed(derive_seed(0, "windows"))
        self._fixed = torch.rand(2, self.train_count, generator=fixed).to(ctx.device)

    @property
    def train_count(self) -> int:
        return len(self.large) * self.params.patches

    def build_model(self, ctx: Context) -> nn.Module:
        p = self.params
        return models.build(self.model_name, p.scale, p.width, p.blocks, p.skip, ctx.generator("init", cpu=True)).to(ctx.device)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        p, index = self.params, index.to(self._fixed.device)
        image, side = index // p.patches, p.patch // p.scale
        turn = None
        if generator is None:
            places = self._fixed[:, index]
        else:
            places = torch.rand(2, len(index), generator=generator, device=index.device)
            if p.augment:
                turn = torch.randint(8, (len(index),), generator=generator, device=index.device)
        room = self.small.sizes[image].t() - side + 1
        # rand is below 1, but its product with the room may round up to it
        top, left = (places * room).long().minimum(room - 1)
        small = self.small.windows(image, top, left, side, turn)
        return small.float(), self.large.windows(image, top * p.scale, left * p.scale, p.patch, turn).float()

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole photographs one by one: they differ in size."""
        for small, large in self.tests:
            yield small[None].float(), large[None].float()

    def tally(self, ctx: Context) -> Tally:
        return SuperResolutionTally(self.params.scale)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean absolute error, in grey levels."""
        return F.l1_loss(outputs, labels)

    def provenance(self) -> dict[str, str]:
        facts: dict[str, Any] = {"dataset": self.dataset, "train_size": len(self.large), "test_size": len(self.tests),
                                 "test_set": self.test_set}
        if self.test_set != self.dataset:
            facts["test_source"] = data.provenance(self.test_set)["source"]
        return {k: str(v) for k, v in facts.items()} | data.provenance(self.dataset)


def shrink(image: Tensor, scale: int) -> Tensor:
    """uint8 ``(3, h, w)``, sides multiples of the scale, to uint8 ``(3, h / scale, w / scale)``."""
    _, h, w = image.shape
    return models.resize(image[None].float(), h // scale, w // scale)[0].round().clamp(0, 255).to(torch.uint8)


def _photos(name: str, split: str, size: int, multiple: int, *, spread: bool) -> list[Tensor]:
    """Photographs of a split, cropped at the right and below to sides that are multiples of ``multiple``."""
    arrays = data.load(name)
    sizes = arrays[f"{split}_sizes"]
    if size > len(sizes):
        raise UserError(f"{size} {split} photographs asked for, {len(sizes)} exist in {name}. Ask for fewer, or for 0, which means all.")
    ends = (3 * sizes.prod(1)).cumsum()
    chosen = data.spread(len(sizes), size) if spread else np.arange(size or len(sizes))
    pixels = torch.from_numpy(arrays[f"{split}_x"])
    images = [pixels[ends[i] - 3 * h * w:ends[i]].view(3, h, w) for i, (h, w) in ((i, sizes[i].tolist()) for i in chosen)]
    return [image[:, :image.shape[1] // multiple * multiple, :image.shape[2] // multiple * multiple] for image in images]


# --- the tasks ----------------------------------------------------------------------------------------------


class Bsd200Params(SuperResolutionParams):
    """Adds the choice of the test set."""

    test_set: Literal["set5", "set14", "bsd100"] = Field("set5", description="photographs that are tested on")


class Bsd200(SuperResolutionTask):
    """Trained on the 200 Berkeley training photographs (BSD200), tested on Set5, Set14 or BSD100."""

    dataset = "bsd200"
    models = ("edsr_small", "edsr_baseline")
    title = "Super-resolution, BSD200"
    kind = "superresolution"
    embedded = False

    Params = Bsd200Params
    params: Bsd200Params

    @property
    def test_set(self) -> str:
        return self.params.test_set


class SamplePhotosParams(SuperResolutionParams):
    """Small enough for seconds."""

    patch: int = Field(48, ge=4, le=1024, description="side of a training patch of the large image, a multiple of the scale [pixels]")
    width: float = Field(0.125, gt=0, le=4, description="factor on the network's channels")


class SamplePhotos(SuperResolutionTask):
    """Two photographs that come with scikit-learn, at half size: the left two thirds train, the right third tests."""

    dataset = "sample_photos"
    models = ("edsr_small",)
    title = "Super-resolution, two sample photographs"
    kind = "superresolution"
    embedded = True

    Params = SamplePhotosParams
    params: SamplePhotosParams
