"""Segmentation: IoU by brute force, void pixels, zoom against a slow reference, sampling of rare classes, networks, data."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.task_helpers import context, have, make, needs_data, train, untouched_generator
from tracking.errors import UserError
from workbench import data
from workbench.boolean import BooleanConv2d, split_parameters
from workbench.boolean.networks import BooleanOptions
from workbench.datasets import models_segmentation as models
from workbench.datasets.scores import class_iou, confusion, mean_iou
from workbench.datasets.segmentation import CamVid, Shapes, rare_class_chances, shapes, zoomed
from workbench.methods.supervised import test as measure

WIDTH = 1 / 16


@pytest.fixture(scope="module")
def task():
    return make(Shapes, "deeplab_small", train_size=80, test_size=20, width=WIDTH)


# --- figures ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5))
def test_mean_iou_is_that_of_sets_of_pixels(seed, classes):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes + 1, (3, 4, 5)), rng.integers(0, classes, (3, 4, 5))  # label `classes` is void
    counts = sum(confusion(torch.from_numpy(p), torch.from_numpy(y), classes) for p, y in zip(predicted, labels, strict=True))
    places = [i for i in np.ndindex(labels.shape) if labels[i] < classes]
    found = []
    for c in range(classes):
        there, said = {i for i in places if labels[i] == c}, {i for i in places if predicted[i] == c}
        if there | said:
            found.append(len(there & said) / len(there | said))
    assert counts.sum() == len(places)
    if found:
        assert mean_iou(counts) == pytest.approx(np.mean(found), rel=1e-12)


def test_a_class_that_is_nowhere_has_no_iou():
    counts = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert class_iou(counts)[:2].tolist() == [3 / 4, 4 / 5]
    assert math.isnan(class_iou(counts)[2])
    assert mean_iou(counts) == pytest.approx((3 / 4 + 4 / 5) / 2)


class Fixed(nn.Module):
    """Scores that depend on the pixel alone."""

    def forward(self, x):
        return torch.stack([x[:, 0], x[:, 1], x[:, 2], -x.sum(1)], 1)


def test_figures_equal_a_direct_computation_and_void_counts_nowhere(task):
    x, y = task.normalise(task.test_x), task.test_y.long()
    scores = Fixed()(x)
    known = y != task.void
    assert 0 < (~known).sum() < known.sum()
    losses = F.cross_entropy(scores, y.clamp(max=3), reduction="none")[known]
    got = measure(Fixed(), task, context())
    assert got["eval/pixel_accuracy"] == (scores.argmax(1) == y)[known].double().mean().item()
    assert got["eval/loss"] == pytest.approx(losses.double().mean().item(), rel=1e-5)
    assert got["eval/miou"] == mean_iou(confusion(scores.argmax(1)[known], y[known], 4))
    # the loss of training ignores them too
    assert task.loss(scores, y).item() == pytest.approx(losses.mean().item(), rel=1e-5)
    changed = torch.where(known[:, None], scores, 9.0)
    assert task.loss(changed, y).item() == pytest.approx(losses.mean().item(), rel=1e-5)


# --- augmentation -------------------------------------------------------------------------------------------


def slow_zoom(label: np.ndarray, factor: float, place: np.ndarray, mirrored: bool, void: int) -> np.ndarray:
    """One annotation, pixel by pixel, and how far each sampling place is from a border between pixels."""
    h, w = label.shape
    out, sure = np.full_like(label, void), np.ones((h, w), bool)
    for i, j in np.ndindex(h, w):
        v, u = (2 * i + 1) / h - 1, (2 * j + 1) / w - 1  # centre of the pixel, the image being [-1, 1] x [-1, 1]
        v, u = v / factor + place[1] * (1 - 1 / factor), (-u if mirrored else u) / factor + place[0] * (1 - 1 / factor)
        y, x = ((v + 1) * h - 1) / 2, ((u + 1) * w - 1) / 2
        sure[i, j] = min(abs(y % 1 - 0.5), abs(x % 1 - 0.5)) > 1e-4
        if 0 <= round(y) < h and 0 <= round(x) < w:
            out[i, j] = label[round(y), round(x)]
    return out, sure


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), h=st.integers(2, 8), w=st.integers(2, 8))
def test_zoomed_annotations_are_the_slow_ones(seed, h, w):
    rng = np.random.default_rng(seed)
    labels, factor, place = rng.integers(0, 6, (3, h, w)), 2 ** rng.uniform(-1, 1, 3), rng.uniform(-1, 1, (3, 2))
    mirrored = rng.integers(0, 2, 3).astype(bool)
    tensors = (torch.from_numpy(v) for v in (labels, factor.astype(np.float32), place.astype(np.float32), mirrored))
    images = torch.from_numpy(labels).float().unsqueeze(1)
    _, got = zoomed(images, *tensors, 5)
    for ours, label, *options in zip(got.numpy(), labels, factor, place, mirrored, strict=True):
        expected, sure = slow_zoom(label, *options, 5)
        assert np.array_equal(ours[sure], expected[sure])  # at a border between pixels rounding decides


def test_without_a_factor_an_image_stays_or_is_mirrored(task):
    x, y = task.batch(torch.arange(4))
    ones, place, mirrored = torch.ones(4), torch.rand(4, 2), torch.tensor([False, True, False, True])
    images, labels = zoomed(x, y, ones, place, mirrored, task.void)
    for k in range(4):
        flip = (lambda t: t.flip(-1)) if mirrored[k] else (lambda t: t)
        torch.testing.assert_close(images[k], flip(x[k]), atol=1e-4, rtol=0)  # bilinear weights of 1 and 1e-6
        assert torch.equal(labels[k], flip(y[k]))


def test_images_and_annotations_move_together(task):
    """An image made of its annotation has, wherever all pixels that a bilinear weight reaches have one class, that value.

    Enlarged at most by two, two pixels to each side are one or more of the original.
    """
    _, y = task.batch(torch.arange(10))
    x = y.float().unsqueeze(1).expand(-1, 3, -1, -1) - task.void
    g = torch.Generator().manual_seed(0)
    images, labels = zoomed(x, y, 1 + torch.rand(10, generator=g), 2 * torch.rand(10, 2, generator=g) - 1,
                            torch.rand(10, generator=g) < 0.5, task.void)
    whole = F.max_pool2d(labels.float(), 5, 1) == -F.max_pool2d(-labels.float(), 5, 1)
    assert whole.float().mean() > 0.4
    assert (images[:, 0] + task.void - labels)[:, 2:-2, 2:-2][whole].abs().max() < 1e-3


def test_rare_classes_choose_images_by_their_chances():
    labels = torch.full((30, 10, 10), 0, dtype=torch.uint8)
    labels[:3, :2, :5] = 1  # 1 % of the pixels, in three images
    labels[:, 9] = 9  # void
    chances = rare_class_chances(labels, 3, 0.5)
    share = np.array([2700 - 30, 30]) / 2700
    assert chances.tolist() == pytest.approx([*np.exp((1 - share) / 0.5), 0], rel=1e-6)
    task = make(Shapes, "deeplab_small", train_size=30, test_size=2, rare_classes=0.5, augment=False)
    task._holds, task._chances = torch.stack([(labels == c).flatten(1).any(1) for c in range(3)]).float(), chances
    task.train_x = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 3, 10, 10)
    drawn, _ = task.batch(torch.zeros(6000, dtype=torch.int64), torch.Generator().manual_seed(0))
    images = ((drawn[:, 0, 0, 0] - task._shift[0, 0, 0]) / task._scale[0, 0, 0]).round().int().tolist()
    counts = Counter(image < 3 for image in images)
    p = chances[1] / chances.sum()
    expected = 6000 * float(p + (1 - p) * 3 / 30)
    assert abs(counts[True] - expected) < 5 * math.sqrt(6000 / 4)  # five standard deviations of a binomial, at most


# --- networks -----------------------------------------------------------------------------------------------


def test_backbone_and_head_have_the_published_numbers_of_parameters():
    """ResNet-18 without its classifier: 11,689,512 - 513,000. torchvision's DeepLabV3 on ResNet-50: 42,004,074, of which 23,508,032
    backbone and 2,365,205 auxiliary head are not ours; its head is our head at 2048 features."""
    with torch.device("meta"):
        model = models.DeepLab(21, 1.0, (12, 24, 36), small=False)
        head = models.head(2048, 256, 21, (12, 24, 36))
    parts = [sum(p.numel() for p in m.parameters()) for m in (model.stem, model.backbone, head)]
    assert parts[0] + parts[1] == 11_689_512 - 513_000
    assert parts[2] == 42_004_074 - 23_508_032 - 2_365_205


@pytest.mark.parametrize(("name", "stride"), [("deeplab", 8), ("deeplab_small", 4)])
@pytest.mark.parametrize("boolean", [False, True])
def test_output_stride_and_shape(name, stride, boolean):
    model = models.build(name, 4, 1 / 32, (1, 2, 3), torch.Generator().manual_seed(0))
    model = (model.boolean(generator=torch.Generator().manual_seed(1)) if boolean else model).eval()
    x = torch.rand(2, 3, 48, 40)
    assert model.backbone(model.stem(x)).shape[2:] == (48 // stride, 40 // stride)
    assert model(x).shape == (2, 4, 48, 40)


def test_bool_aspp_is_that_of_the_paper(task):
    """Four branches on Boolean values, the mean's branch on integers with norms before its thresholds; the ends are the float network's."""
    with untouched_generator():
        model = task.build_model(context())
        boolean = model.boolean(generator=torch.Generator().manual_seed(1))
    seen = {}
    boolean.head.register_forward_pre_hook(lambda m, x: seen.update(features=x[0]))
    boolean.head.branches[1].register_forward_pre_hook(lambda m, x: seen.update(branch=x[0]))
    boolean.head.classifier.register_forward_pre_hook(lambda m, x: seen.update(last=x[0]))
    boolean.backbone.register_forward_pre_hook(lambda m, x: seen.update(first=x[0]))
    boolean(task.batch(torch.arange(4))[0])
    features = seen["features"].detach()
    assert torch.equal(features, features.round())
    assert len(features.unique()) > 2
    for name in ("branch", "last", "first"):
        assert set(seen[name].unique().tolist()) == {-1.0, 1.0}, name
    kinds = [type(m).__name__ for m in boolean.head.mean]
    assert kinds == ["AdaptiveAvgPool2d", "BatchNorm2d", "Threshold", "BooleanConv2d", "BatchNorm2d", "Threshold"]
    dilations = [branch[0].dilation for branch in boolean.head.branches]
    assert dilations == [(1, 1), *((r, r) for r in task.params.rates)]
    assert boolean.head.classifier is model.head[-1]
    assert boolean.stem[0] is model.stem[0]
    convs = [m for m in boolean.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 2
    assert len([m for m in boolean.modules() if isinstance(m, BooleanConv2d)]) == 8 * 3 + 5 + 2
    shortcuts = [block.shortcut for block in boolean.backbone]
    assert all(s.dilation == (1, 1) and s.weight.shape[2:] == (3, 3) for s in shortcuts)
    assert [block.conv2.dilation[0] for block in boolean.backbone] == [1, 1, 1, 1, 2, 2, 4, 4]
    norms = [m for m in boolean.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2, "no batch norm but those of the mean's branch"
    kept = model.boolean(BooleanOptions(batch_norm=True), generator=torch.Generator().manual_seed(1))
    assert len([m for m in kept.modules() if isinstance(m, nn.BatchNorm2d)]) == 1 + 8 * 3 + 4 + 2 + 2


@pytest.mark.parametrize("boolean", [False, True])
def test_the_embedded_task_is_learnt(task, boolean):
    model = task.build_model(context())
    model = model.boolean(generator=torch.Generator().manual_seed(1)) if boolean else model
    before = split_parameters(model)[0][0].clone() if boolean else None
    losses = train(model, task, steps=32, batch=20, lr=3e-2 if boolean else 1e-2, eta=12.0)
    # measured with two seeds: 0.45 to 0.72
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])
    if boolean:
        assert not torch.equal(before, split_parameters(model)[0][0])
    assert measure(model, task, context())["eval/pixel_accuracy"] > 0.25


# --- data ---------------------------------------------------------------------------------------------------


def test_shapes_are_what_they_are_said_to_be():
    images, labels = shapes(40, 32, np.random.default_rng(0))
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    for label in labels:
        for i, j in np.ndindex(32, 32):
            around = {label[y, x] for y, x in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if 0 <= y < 32 and 0 <= x < 32}
            if label[i, j] != 4:  # two classes never touch: there is void between
                assert around <= {label[i, j], 4}
    again, other = shapes(40, 32, np.random.default_rng(0))[0], shapes(40, 32, np.random.default_rng(1))[0]
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    tests = [make(Shapes, "deeplab_small", train_size=size, test_size=4).test_x for size in (5, 9)]
    assert torch.equal(*tests)


def test_wrong_rates_are_refused_in_words():
    with pytest.raises(UserError, match="three whole numbers from 1"):
        make(Shapes, "deeplab_small", rates=(1, 0, 2))


def test_a_machine_without_the_street_scenes_is_told_of_the_embedded_task(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    with pytest.raises(UserError, match=r"camvid_240x180\.parquet") as caught:
        make(CamVid, "deeplab")
    assert "'shapes/deeplab_small' needs no data" in str(caught.value)


@needs_data
def test_camvid_has_its_published_split_and_shares_of_classes():
    """367, 101 and 233 images (Badrinarayanan, Kendall & Cipolla, SegNet). Roads, buildings and sky take most pixels."""
    have("camvid")
    arrays = data.load("camvid")
    assert [len(arrays[f"{split}_y"]) for split in ("train", "validation", "test")] == [367, 101, 233]
    counts = np.bincount(arrays["train_y"].ravel(), minlength=12)
    names = data.DATASETS["camvid"].classes
    ranked = [names[i] for i in np.argsort(-counts[:11])]
    assert set(ranked[:3]) == {"road", "building", "sky"}
    assert set(ranked[-3:]) <= {"bicyclist", "pole", "pedestrian", "sign_symbol", "fence"}
    task = make(CamVid, "deeplab", train_size=11, evaluate_on="validation", test_size=7)
    assert (len(task.train_y), len(task.test_y), task.num_classes, task.void) == (11, 7, 11, 11)
    assert torch.equal(task.train_x[0], torch.from_numpy(arrays["train_x"][0]))
    assert torch.equal(task.train_x[5], torch.from_numpy(arrays["train_x"][5 * 367 // 11]))
    assert task.provenance()["evaluated_on"] == "validation"
