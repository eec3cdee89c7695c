"""Semantic segmentation: a class for each pixel. Pixels marked as void count nowhere, in training or in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench import data
from workbench.datasets import models_segmentation as models
from workbench.datasets.scores import confusion, mean_iou
from workbench.method import Context, derive_seed
from workbench.params import Field
from workbench.task import SupervisedParams, SupervisedTask, Tally

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, the field's custom
TEST_BATCH = 16  # scores of a whole set would take gigabytes


class SegmentationParams(SupervisedParams):
    """Size of the data, network, augmentation. Zoom and rare classes are those of arXiv:2405.16339, appendix D."""

    train_size: int = Field(0, ge=0, description="training images used, spread evenly over the set; 0 = all")
    test_size: int = Field(0, ge=0, description="test images used, spread evenly over the set; 0 = all")
    width: float = Field(1.0, gt=0, le=4, description="factor on the network's channels")
    rates: tuple[int, int, int] = Field((6, 12, 18), description="dilations of the pyramid's 3x3 convolutions")
    augment: bool = Field(True, description="mirror half of the training images, and zoom them")
    zoom: float = Field(2.0, ge=1, le=8, description="training images are enlarged or shrunk by up to this factor, about a random place")
    rare_classes: float = Field(0.0, ge=0, le=100, description="temperature of the sampling of images with rare classes; 0 = none")


class SegmentationTally(Tally):
    """Mean IoU over classes, pixel accuracy and mean loss, over all test pixels that have a class."""

    def __init__(self, task: SegmentationTask, ctx: Context) -> None:
        self.task = task
        self.counts = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64, device=ctx.device)
        self.loss = torch.zeros((), dtype=torch.float64, device=ctx.device)

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        counts = confusion(outputs.argmax(1), labels, self.task.num_classes)
        if counts.any():
            self.loss += self.task.loss(outputs, labels).double() * counts.sum()
        self.counts += counts

    def result(self) -> dict[str, float]:
        pixels = self.counts.sum().item()
        return {"eval/loss": self.loss.item() / pixels, "eval/miou": mean_iou(self.counts),
                "eval/pixel_accuracy": self.counts.diagonal().sum().item() / pixels}


class SegmentationTask(SupervisedTask):
    """Base of the segmentation tasks. Labels are ``(n, h, w)``; outputs are class scores ``(n, num_classes, h, w)``.

    A subclass gives :meth:`arrays`. After :meth:`setup`: ``train_x, test_x`` uint8 ``(n, 3, h, w)``, ``train_y, test_y`` uint8
    ``(n, h, w)``, ``void`` the label of pixels that count nowhere.
    """

    Params = SegmentationParams
    params: SegmentationParams
    classes: tuple[str, ...]
    void: int

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``train_x, train_y, test_x, test_y`` of all there is; sets ``classes`` and ``void``."""
        raise NotImplementedError

    def setup(self, ctx: Context) -> None:
        if min(self.params.rates) < 1:
            raise UserError(f"rates = {self.params.rates} is refused. Allowed: three whole numbers from 1.")
        train_x, train_y, test_x, test_y = self.arrays()
        for split, size, x, y in (("train", self.params.train_size, train_x, train_y), ("test", self.params.test_size, test_x, test_y)):
            rows = data.spread(len(y), size)
            setattr(self, f"{split}_x", torch.from_numpy(x[rows] if size else x).to(ctx.device))
            setattr(self, f"{split}_y", torch.from_numpy(y[rows] if size else y).to(ctx.device))
        self.num_classes, self.sample_shape = len(self.classes), tuple(self.train_x.shape[1:])
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
        self._scale, self._shift = (1 / (255 * std)).float().to(ctx.device), (-mean / std).float().to(ctx.device)
        if self.params.rare_classes:
            self._holds = torch.stack([(self.train_y == c).flatten(1).any(1) for c in range(self.num_classes)]).float()
            self._chances = rare_class_chances(self.train_y, self.num_classes, self.params.rare_classes)

    def build_model(self, ctx: Context) -> nn.Module:
        p = self.params
        return models.build(self.model_name, self.num_classes, p.width, p.rates, ctx.generator("init", cpu=True)).to(ctx.device)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        index = index.to(self.train_y.device)
        if generator is not None and self.params.rare_classes:
            chosen = torch.multinomial(self._chances, len(index), replacement=True, generator=generator)
            index = torch.multinomial(self._holds[chosen], 1, generator=generator).squeeze(1)
        x, y = self.normalise(self.train_x[index]), self.train_y[index].long()
        if generator is None or not self.params.augment:
            return x, y
        return zoomed(x, y, *self._draw(len(index), generator), self.void)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Factors, log-uniform; places, uniform in -1 to 1; whether mirrored."""
        draws = 2 * torch.rand(4, count, generator=generator, device=self.train_y.device) - 1
        return self.params.zoom ** draws[0], draws[1:3].t(), draws[3] < 0

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return super().test_batches(min(size, TEST_BATCH))

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.test_x[start:stop]), self.test_y[start:stop].long()

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels to float32 with ImageNet's means and deviations."""
        return images.float().mul_(self._scale).add_(self._shift)

    def tally(self, ctx: Context) -> Tally:
        return SegmentationTally(self, ctx)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the pixels that have a class."""
        return F.cross_entropy(outputs, labels, ignore_index=self.void)


def zoomed(images: Tensor, labels: Tensor, factor: Tensor, place: Tensor, mirrored: Tensor, void: int) -> tuple[Tensor, Tensor]:
    """Enlarge or shrink each image by its factor and mirror it left to right where asked; what lies outside is 0 and void.

    ``factor (n,)``; ``place (n, 2)``, horizontal and vertical, in -1 to 1: -1 keeps the left or upper edge where it is, 1 the other.
    Images ``(n, c, h, w)`` are interpolated bilinearly; labels, int64 ``(n, h, w)``, are taken from the nearest pixel.
    """
    n, _, h, w = images.shape
    theta = torch.zeros(n, 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0] = torch.where(mirrored, -1.0, 1.0) / factor
    theta[:, 1, 1] = 1 / factor
    theta[:, :, 2] = place * (1 - 1 / factor).unsqueeze(1)
    grid = F.affine_grid(theta, [n, 1, h, w], align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    # void is where zeros come in: labels are counted from it
    moved = F.grid_sample((labels - void).to(images.dtype).unsqueeze(1), grid, mode="nearest", align_corners=False)
    return out, moved.squeeze(1).round().long() + void


def rare_class_chances(labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Chance of each class to choose the next image: ``p_c ~ exp((1 - f_c) / T)``, ``f_c`` the class's share of the pixels with a class.

    Hoyer, Dai & Van Gool, "DAFormer", CVPR 2022, Eq. 4 (arXiv:2405.16339 takes T = 0.5). A class that occurs nowhere has chance 0.
    """
    counts = torch.bincount(labels.flatten().long(), minlength=num_classes)[:num_classes].double()
    return torch.where(counts > 0, ((1 - counts / counts.sum()) / temperature).exp(), 0.0).float()


# --- the tasks ----------------------------------------------------------------------------------------------


class CamVidParams(SegmentationParams):
    """Adds the choice of the split that is evaluated on."""

    evaluate_on: Literal["test", "validation"] = Field(
        "test", description="split that is evaluated on; validation is for choosing parameters")


class CamVid(SegmentationTask):
    """Street scenes from a car: 367 training, 101 validation and 233 test images of 240x180 pixels, 11 classes and void."""

    dataset = "camvid"
    models = ("deeplab",)
    title = "CamVid, 240x180"
    kind = "segmentation"
    embedded = False

    Params = CamVidParams
    params: CamVidParams

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        found, declared = data.load(self.dataset), data.declaration(self.dataset)
        self.classes, self.void = declared.classes, declared.void
        test = self.params.evaluate_on
        return found["train_x"], found["train_y"], found[f"{test}_x"], found[f"{test}_y"]

    def provenance(self) -> dict[str, str]:
        return super().provenance() | {"evaluated_on": self.params.evaluate_on} | data.provenance(self.dataset)


class ShapesParams(SegmentationParams):
    """A set of seconds."""

    train_size: int = Field(400, ge=2, le=100_000, description="training images generated")
    test_size: int = Field(100, ge=2, le=100_000, description="test images generated")
    width: float = Field(0.125, gt=0, le=4, description="factor on the network's channels")
    rates: tuple[int, int, int] = Field((1, 2, 4), description="dilations of the pyramid's 3x3 convolutions")
    zoom: float = Field(1.0, ge=1, le=8, description="training images are enlarged or shrunk by up to this factor, about a random place")
    side: int = Field(32, ge=16, le=512, description="side of an image [pixels]")
    data_seed: int = Field(0, ge=0, description="seed of the data, apart from the seed of the run")


class Shapes(SegmentationTask):
    """Discs, squares and triangles, each kind leaning to a colour, on dark noisy ground, generated; outlines are void, as in PASCAL VOC."""

    dataset = "shapes"
    models = ("deeplab_small",)
    title = "Segmentation of generated shapes"
    kind = "segmentation"
    embedded = True

    Params = ShapesParams
    params: ShapesParams

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self.classes, self.void = ("ground", "disc", "square", "triangle"), 4
        p = self.params
        # a seed of its own for each split: more training images do not change the test
        parts = [shapes(size, p.side, np.random.default_rng(derive_seed(p.data_seed, "shapes", split)))
                 for size, split in ((p.train_size, "train"), (p.test_size, "test"))]
        return *parts[0], *parts[1]

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"source": f"generated, numpy {np.__version__}"}


def shapes(count: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images uint8 ``(count, 3, side, side)`` and their labels uint8 ``(count, side, side)``.

    0 is ground, 1 disc, 2 square, 3 triangle, 4 void. One or two shapes an image, the later before the earlier. A pixel is void
    where its class differs from a neighbour's. Ground is dark, and each kind leans to one colour: red, green, blue.
    """
    images, labels = np.empty((count, 3, side, side), np.uint8), np.empty((count, side, side), np.uint8)
    y, x = np.mgrid[:side, :side] + 0.5
    for image, label in zip(images, labels, strict=True):
        canvas, kinds = np.broadcast_to(rng.uniform(0, 120, (3, 1, 1)), (3, side, side)), np.zeros((side, side), np.uint8)
        for _ in range(rng.integers(1, 3)):
            kind, r, (cy, cx) = rng.integers(1, 4), rng.uniform(0.2, 0.4) * side, rng.uniform(0.2, 0.8, 2) * side
            colour = rng.uniform(80, 200, (3, 1, 1))
            colour[kind - 1] += 55
            dy, dx = y - cy, x - cx
            inside = (dy**2 + dx**2 < r**2, np.maximum(abs(dy), abs(dx)) < 0.85 * r, (dy < 0.7 * r) & (2 * abs(dx) - dy < r))[kind - 1]
            canvas, kinds = np.where(inside, colour, canvas), np.where(inside, kind, kinds)
        image[:] = np.clip(canvas + rng.normal(scale=20, size=canvas.shape), 0, 255)
        edge = np.zeros_like(kinds, dtype=bool)
        down, right = kinds[1:] != kinds[:-1], kinds[:, 1:] != kinds[:, :-1]
        for part, differs in ((edge[1:], down), (edge[:-1], down), (edge[:, 1:], right), (edge[:, :-1], right)):
            part |= differs
        label[:] = np.where(edge, 4, kinds)
    return images, labels
