"""Pictures of what trained networks make of an image: enlarged photographs and maps of classes, side by side with the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studies.bold_tasks import METHODS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.comparison import Comparison

# a colour a class and grey for void, told apart by lightness too; twelve, as CamVid needs
PALETTE = np.array([[86, 180, 233], [120, 60, 20], [200, 200, 200], [90, 90, 100], [230, 159, 0], [0, 120, 70], [240, 228, 66],
                    [204, 121, 167], [0, 60, 140], [213, 60, 0], [150, 220, 170], [128, 128, 128]], np.uint8)
WINDOW = 96  # side of the part of a photograph that is shown [pixels]


def pictures(comparison: Comparison, image: int = 0) -> go.Figure:
    """One test image in the eyes of every method's first seed: the truth first, then what each network puts out.

    Super-resolution shows a window round the middle, and bicubic interpolation; segmentation shows the image, and void in grey.
    """
    import torch

    from workbench.method import Context

    panels: list[tuple[str, np.ndarray]] = []
    for name, method in METHODS.items():
        group = next((g for g in comparison.groups if g.method == method), None)
        if group is None:
            continue
        state, job = group.runs[0].state()
        task = job.task
        x, y = _sample(task, image)
        ctx = Context(torch.device(job.device), seed=0)
        if not panels:
            panels += _truth(task, x, y)
        model = state.model.to(ctx.device).eval()
        with torch.no_grad():
            panels.append((name, _shown(task, model(x), y)))
    return _row(panels, comparison.tasks[0], image)


def _sample(task: Any, image: int) -> tuple[Any, Any]:
    """Inputs and labels of one test image, as a batch of one."""
    if task.kind == "superresolution":
        small, large = task.tests[image % len(task.tests)]
        return small[None].float(), large[None].float()
    image %= len(task.test_y)
    return task.test_batch(image, image + 1)


def _truth(task: Any, x: Any, y: Any) -> list[tuple[str, np.ndarray]]:
    if task.kind == "superresolution":
        from workbench.datasets.models_superresolution import Bicubic

        return [("original", _photo(y[0])), ("bicubic", _photo(Bicubic(task.params.scale)(x)[0]))]
    image = ((x[0] - task._shift) / task._scale).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return [("image", image), ("annotation", _classes(task, y[0]))]


def _shown(task: Any, outputs: Any, y: Any) -> np.ndarray:
    if task.kind == "superresolution":
        return _photo(outputs[0])
    # void pixels have no right answer: they are left out of the picture, too
    return _classes(task, outputs[0].argmax(0).where(y[0] != task.void, task.void))


def _photo(pixels: Any) -> np.ndarray:
    """The window round the middle of ``(3, h, w)`` as bytes ``(h, w, 3)``."""
    _, h, w = pixels.shape
    top, left = max(0, (h - WINDOW) // 2), max(0, (w - WINDOW) // 2)
    return pixels[:, top:top + WINDOW, left:left + WINDOW].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _classes(task: Any, labels: Any) -> np.ndarray:
    return PALETTE[np.where(labels.cpu().numpy() == task.void, len(PALETTE) - 1, labels.cpu().numpy() % (len(PALETTE) - 1))]


def _row(panels: list[tuple[str, np.ndarray]], task: str, image: int) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from tracking.figures import layout, text

    figure = make_subplots(1, len(panels), subplot_titles=[text(name) for name, _ in panels], horizontal_spacing=0.01)
    for i, (name, pixels) in enumerate(panels, 1):
        figure.add_trace(go.Image(z=pixels, name=text(name), hoverinfo="skip"), 1, i)
    words = f"Test image {image} of {task}: {', '.join(name for name, _ in panels)}."
    style = {k: v for k, v in layout(task, "", words, 0).items() if not k.endswith("axis")}
    return figure.update_layout(style, height=300).update_xaxes(visible=False).update_yaxes(visible=False)
