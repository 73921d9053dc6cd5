"""Figures: learning curves, photographs with contours. Every function returns a matplotlib Figure and shows nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

TRUTH, PREDICTION = "#19e3ff", "#ffd21f"  # both visible on skin and on pigment, and to the colour-blind


@dataclass(frozen=True)
class Panel:
    """A photograph uint8 [H, W, 3] with the masks (bool or 0/1, [H, W]) to outline on it."""

    title: str
    image: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None


def plot_history(history: Sequence[Mapping[str, float]], best_epoch: int | None = None) -> Figure:
    """Learning curves from the rows of a run's history: loss, then the validation scores, by epoch."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 20 else None
    left.plot(epochs, [row["train_loss"] for row in history], marker=marker, markersize=3, label="training loss")
    for name in [name for name in history[0] if name.startswith("val_")]:
        label = name.removeprefix("val_").replace("_", " ")
        right.plot(epochs, [row[name] for row in history], marker=marker, markersize=3, label=label)
    for axes, title in ((left, "Training"), (right, "Validation")):
        if best_epoch:
            axes.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch, {best_epoch}")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def plot_contours(panels: Sequence[Panel], title: str = "", columns: int = 4) -> Figure:
    """Photographs in a grid, the true outline and the predicted one drawn over each."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows + 0.6), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, panel in zip(grid, panels, strict=False):
        axes.imshow(panel.image)
        axes.set_title(panel.title, fontsize=9)
        for mask, colour in ((panel.truth, TRUTH), (panel.prediction, PREDICTION)):
            if mask is not None:
                _outline(axes, mask, colour)
    handles = [
        Line2D([], [], color=colour, label=label)
        for colour, label, there in (
            (TRUTH, "truth", any(panel.truth is not None for panel in panels)),
            (PREDICTION, "prediction", any(panel.prediction is not None for panel in panels)),
        )
        if there
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, facecolor="0.35", labelcolor="white")
    figure.suptitle(title)
    return figure


def best_median_worst(values: np.ndarray, count: int = 4) -> dict[str, np.ndarray]:
    """Indices of the `count` highest, middle and lowest of the values [N]; fewer when N is small, none twice."""
    order = np.argsort(-np.asarray(values), kind="stable")
    count = max(1, min(count, len(order) // 3))
    middle = len(order) // 2 - count // 2
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    return groups if len(order) >= 3 else {"best": order}


def _outline(axes, mask: np.ndarray, colour: str) -> None:
    # A frame of background lets the outline of a lesion that is cut by the image's border close along it.
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = np.clip(contour[:, 0] - 1, 0, (mask.shape[1] - 1, mask.shape[0] - 1))
        points = np.vstack([points, points[:1]])
        axes.plot(*points.T, color="black", linewidth=2.2, alpha=0.5)
        axes.plot(*points.T, color=colour, linewidth=1.2)
