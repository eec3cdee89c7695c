"""Super-resolution: figures of images against independent computations, patches against a slow reference, networks, data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.task_helpers import context, have, make, needs_data, train, untouched_generator
from tracking.errors import UserError
from workbench import data, registry
from workbench.boolean import split_parameters
from workbench.datasets import models_superresolution as models
from workbench.datasets._photos import Photos
from workbench.datasets.scores import luminance, psnr, ssim
from workbench.datasets.superresolution import Bsd200, SamplePhotos, SuperResolutionTally, shrink
from workbench.methods.supervised import test as measure

SMALL = {"width": 1 / 16, "blocks": 1, "patches": 40, "patch": 24, "skip": "bicubic"}


@pytest.fixture(scope="module")
def task():
    return make(SamplePhotos, "edsr_small", **SMALL)


# --- figures of quality -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1.0, 5.0, 20.0])
def test_psnr_of_a_constant_error_and_of_known_noise(offset):
    image = torch.full((2, 40, 50), 100.0, dtype=torch.float64)
    assert psnr(image, image + offset).tolist() == pytest.approx([20 * math.log10(255 / offset)] * 2, rel=1e-12)
    noise = offset * torch.randn(1, 1000, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # the mean of 10^6 squares has relative deviation sqrt(2e-6) = 0.0014, or 0.006 dB; five of them
    assert psnr(noise, torch.zeros_like(noise)).item() == pytest.approx(20 * math.log10(255 / offset), abs=0.03)


def test_images_that_agree_have_a_finite_psnr():
    image = torch.rand(1, 12, 12)
    assert psnr(image, image).item() == pytest.approx(20 * math.log10(255) + 100, rel=1e-5)


def numpy_psnr(a: np.ndarray, b: np.ndarray, shave: int) -> float:
    """The field's convention for ``(h, w, 3)`` images of real values, written out: bytes, MATLAB's luma, border off, PSNR of range 255."""
    def luma(image: np.ndarray) -> np.ndarray:
        r, g, b = np.moveaxis(np.clip(np.rint(image), 0, 255), -1, 0)
        return 16 + 65.481 / 255 * r + 128.553 / 255 * g + 24.966 / 255 * b

    h, w, _ = a.shape
    inner = slice(shave, h - shave), slice(shave, w - shave)
    return 10 * math.log10(255**2 / np.mean((luma(a)[inner] - luma(b)[inner]) ** 2))


@pytest.mark.parametrize("shave", [2, 3, 4])
def test_the_tally_follows_the_field_s_convention(shave):
    rng = np.random.default_rng(shave)
    pairs = [(rng.uniform(-10, 265, (*size, 3)), rng.integers(0, 256, (*size, 3))) for size in ((30, 24), (25, 41))]
    tally = SuperResolutionTally(shave)
    for ours, theirs in pairs:
        tally.add(*(torch.from_numpy(np.moveaxis(image, -1, 0)[None]).float() for image in (ours, theirs)))
    # inputs in float32, everything else in float64
    assert tally.result()["eval/psnr"] == pytest.approx(np.mean([numpy_psnr(*pair, shave) for pair in pairs]), rel=1e-6)


def test_luma_of_black_white_and_the_primaries():
    """ITU-R BT.601: 16 to 235."""
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.float64)
    got = luminance(colours.view(5, 3, 1, 1)).flatten()
    assert got.tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966], rel=1e-12)


def test_ssim_is_the_slow_one():
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 255, (30, 24)).cumsum(0) % 256
    b = np.clip(a + rng.normal(scale=12, size=a.shape), 0, 255)
    line = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def mean(x: np.ndarray) -> np.ndarray:
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(x, (11, 11)), window)

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 2.55**2, 7.65**2
    expected = np.mean((2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2)))
    images = [torch.from_numpy(x)[None] for x in (a, b)]
    assert ssim(*images).item() == pytest.approx(expected, rel=1e-10)
    # float32, as the tally has it: differences of squares up to 2^14 lose 1e-3 of c2 = 58 at the very most
    assert ssim(*(x.float() for x in images)).item() == pytest.approx(expected, abs=1e-4)
    assert ssim(images[0], images[0]).item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="11x11"):
        ssim(images[0][..., :10], images[1][..., :10])


# --- shrinking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_images_are_shrunk_as_pillow_shrinks_them(scale):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(scale)
    smooth = np.clip(rng.normal(scale=12, size=(36, 48, 3)).cumsum(0).cumsum(1) / 4 + 128, 0, 255).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(smooth).resize((48 // scale, 36 // scale), Image.BICUBIC)).astype(int)
    ours = shrink(torch.from_numpy(smooth).permute(2, 0, 1), scale).permute(1, 2, 0).numpy()
    # Pillow rounds to bytes between its two passes as well, which turns some bytes in ten by one
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.8


# --- patches ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), side=st.integers(1, 5), turned=st.booleans())
def test_windows_are_the_slow_ones(seed, side, turned):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (3, *rng.integers(5, 9, 2)), dtype=np.uint8) for _ in range(3)]
    photos = Photos.of([torch.from_numpy(image) for image in images])
    assert all(np.array_equal(photos.image(i).numpy(), image) for i, image in enumerate(images))
    chosen = rng.integers(0, 3, 6)
    top, left = (np.array([rng.integers(0, images[i].shape[axis] - side + 1) for i in chosen]) for axis in (1, 2))
    turn = rng.integers(0, 8, 6)
    got = photos.windows(*(torch.from_numpy(v) for v in (chosen, top, left)), side, torch.from_numpy(turn) if turned else None)
    for window, i, y, x, t in zip(got.numpy(), chosen, top, left, turn * turned, strict=True):
        expected = images[i][:, y:y + side, x:x + side]
        expected = expected[:, ::-1] if t & 2 else expected
        expected = expected[:, :, ::-1] if t & 4 else expected
        expected = expected.transpose(0, 2, 1) if t & 1 else expected
        assert np.array_equal(window, expected)


def test_a_small_patch_is_the_shrunk_large_one(task):
    """Away from its border, which is shrunk from pixels outside the patch; so the two windows lie on the same place and turn alike."""
    small, large = task.batch(torch.arange(8), torch.Generator().manual_seed(0))
    assert small.shape == (8, 3, 12, 12)
    assert large.shape == (8, 3, 24, 24)
    inner = models.resize(large, 12, 12)[..., 2:-2, 2:-2]
    assert (small[..., 2:-2, 2:-2] - inner).abs().max() <= 0.5 + 1e-3  # rounded to bytes


def test_patches_are_drawn_only_with_a_generator(task):
    index = torch.tensor([0, 3, 4, 7])
    one, two, other = (task.batch(index, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
    fixed = task.batch(index)
    assert all(torch.equal(a, b) for a, b in zip(fixed, task.batch(index), strict=True))
    assert torch.equal(task.batch(index[2:])[1], fixed[1][2:])


def test_all_places_and_all_turns_of_a_photograph_are_drawn():
    task = make(SamplePhotos, "edsr_small", patch=8, patches=3000)
    # one photograph in the place of two, 6x5 small windows of 4x4: a value tells its place
    small = torch.arange(72, dtype=torch.uint8).view(1, 9, 8).expand(3, -1, -1)
    task.small = Photos.of([small])
    task.large = Photos.of([small.repeat_interleave(2, 1).repeat_interleave(2, 2)])
    drawn, large = task.batch(torch.arange(3000), torch.Generator().manual_seed(0))
    assert torch.equal(large[..., ::2, ::2], drawn)
    counts = {}
    for window in drawn[:, 0].numpy().astype(int):
        counts[window.tobytes()] = counts.get(window.tobytes(), 0) + 1
    assert len(counts) == 6 * 5 * 8
    chi2 = sum((count - 12.5) ** 2 / 12.5 for count in counts.values())
    # chi-square with 239 degrees of freedom: five standard deviations
    assert abs(chi2 - 239) < 5 * math.sqrt(2 * 239)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"patch": 50, "scale": 4}, "multiple of scale = 4, such as 48"), ({"patch": 512}, "smallest side"), ({"train_size": 3}, "2 exist"),
    ({"scale": 5}, "one of 2, 3, 4")])
def test_what_cannot_be_is_refused_in_words(wrong, words):
    with pytest.raises(UserError, match=words):
        make(SamplePhotos, "edsr_small", **wrong)


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "count"), [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_the_baseline_has_the_published_number_of_parameters(scale, count):
    """Lim et al., 2017: 1.37 M, 1.55 M and 1.52 M, without the fixed shift of the mean."""
    with torch.device("meta"):
        model = models.EDSR(scale, *models.MODELS["edsr_baseline"])
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("scale", "skip", "boolean"), list(itertools.product((2, 3, 4), ("none", "bicubic"), (False, True))))
def test_outputs_are_larger_by_the_scale(scale, skip, boolean):
    model = models.build("edsr_small", scale, 1 / 32, 1, skip, torch.Generator().manual_seed(0))
    model = model.boolean(generator=torch.Generator().manual_seed(1)) if boolean else model
    assert model(255 * torch.rand(2, 3, 7, 9)).shape == (2, 3, 7 * scale, 9 * scale)


def test_with_a_silent_tail_the_output_is_the_mean_or_the_bicubic_image():
    x = 255 * torch.rand(1, 3, 8, 8)
    mean = torch.tensor(models.MEAN).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    for skip, expected in (("none", mean), ("bicubic", models.resize(x, 16, 16))):
        model = models.build("edsr_small", 2, 1 / 32, 1, skip, torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(model.tail[-1].weight)
        torch.nn.init.zeros_(model.tail[-1].bias)
        torch.testing.assert_close(model(x), expected)


def test_the_boolean_network_keeps_its_ends_and_has_three_convolutions_a_block(task):
    with untouched_generator():
        model = task.build_model(context())
        boolean = model.boolean(generator=torch.Generator().manual_seed(1))
    flipped, real = split_parameters(boolean)
    assert [p.numel() for p in flipped] == [16 * 16 * 9] * 3
    kept = [p for name, p in model.named_parameters() if not name.startswith("body.")]
    assert {id(p) for p in real} == {id(p) for p in kept}
    assert isinstance(model.body[0], models.ResidualBlock)  # the float network is as it was
    seen = {}
    for name in ("body", "body_end"):
        getattr(boolean, name).register_forward_pre_hook(lambda m, x, name=name: seen.update({name: x[0]}))
    boolean(task.batch(torch.arange(2))[0])
    assert set(seen["body_end"].unique().tolist()) == {-1.0, 1.0}
    assert len(seen["body"].unique()) > 2


@pytest.mark.parametrize("boolean", [False, True])
def test_the_embedded_task_is_learnt(task, boolean):
    """Untrained, the network adds noise to the bicubic image; a short training takes most of it away (measured: 9 and 13 dB)."""
    model = task.build_model(context())
    model = model.boolean(generator=torch.Generator().manual_seed(1)) if boolean else model
    before = measure(model, task, context())
    losses = train(model, task, steps=50, batch=8, lr=3e-3, eta=3.0)
    after = measure(model, task, context())
    assert after["eval/psnr"] > before["eval/psnr"] + 5
    assert before["eval/ssim"] < after["eval/ssim"] < 1
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


# --- the task as a task -------------------------------------------------------------------------------------


def test_provenance_names_both_sets(task):
    facts = task.provenance()
    assert (facts["train_size"], facts["test_size"], facts["test_set"]) == ("2", "2", "sample_photos")
    assert "scikit-learn" in facts["source"]
    assert registry.task_entry("sample_photos/edsr_small").literals["kind"] == "superresolution"


def test_a_machine_without_the_photographs_is_told_of_the_embedded_task(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_memory", {})
    with pytest.raises(UserError, match=r"bsd200_train\.parquet") as caught:
        make(Bsd200, "edsr_small")
    assert "'sample_photos/edsr_small' needs no data" in str(caught.value)
    assert "workbench data fetch" not in str(caught.value), "there is nowhere to fetch it from"


@needs_data
def test_published_sizes_of_the_photographs():
    for name in ("set5", "set14", "bsd100", "bsd200"):
        have(name)
    sizes = {name: data.load(name)[f"{split}_sizes"] for name, split in
             (("set5", "test"), ("set14", "test"), ("bsd100", "test"), ("bsd200", "train"))}
    assert sizes["set5"].tolist() == [[512, 512], [288, 288], [256, 256], [280, 280], [344, 228]]
    assert {tuple(sorted(size)) for name in ("bsd100", "bsd200") for size in sizes[name].tolist()} == {(321, 481)}
    assert [len(sizes[name]) for name in sizes] == [5, 14, 100, 200]


@needs_data
@pytest.mark.parametrize(("scale", "published", "similarity"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_bicubic_interpolation_has_its_published_figures_on_set5(scale, published, similarity):
    """Tables of the field (e.g. Kim, Lee & Lee, CVPR 2016, Table 3). Those shrink by MATLAB's routine, which treats borders otherwise."""
    have("set5")
    have("bsd200")
    task = make(Bsd200, "edsr_small", train_size=1, scale=scale)
    figures = measure(models.Bicubic(scale), task, context())
    assert figures["eval/psnr"] == pytest.approx(published, abs=0.05)
    assert figures["eval/ssim"] == pytest.approx(similarity, abs=0.002)
