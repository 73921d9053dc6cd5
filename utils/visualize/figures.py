"""Figures: learning curves, photographs with contours or heat maps, and how well a classifier did.

Every function returns a matplotlib Figure and shows nothing.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.data.isic import CLASSES
from utils.evaluation.classification import calibration_error

TRUTH, PREDICTION = "#19e3ff", "#ffd21f"  # both visible on skin and on pigment, and to the colour-blind
HEAT = "inferno"  # dark to bright in even steps, also in grey and to the colour-blind
NAMES = [name.replace("_", " ") for name in CLASSES]
LABELS = {"train_loss": "training loss", "val_loss": "validation loss"}
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))


@dataclass(frozen=True)
class Panel:
    """A photograph uint8 [H, W, 3] with the masks (bool or 0/1, [H, W]) to outline on it."""

    title: str
    image: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None


@dataclass(frozen=True)
class HeatRow:
    """A photograph uint8 [H, W, 3], its heat maps by column title (float [h, w] of any size) and the true mask."""

    title: str
    image: np.ndarray
    heats: Mapping[str, np.ndarray]
    mask: np.ndarray | None = None


def plot_history(history: Sequence[Mapping[str, float]], best_epoch: int | None = None) -> Figure:
    """Learning curves from the rows of a run's history, by epoch.

    One panel of losses, one of the validation scores (columns `val_…`), and, where the rows have columns `alpha_…`,
    one of the α of each ARL block (a colour for each stage).
    """
    scores = [name for name in history[0] if name.startswith("val_")]
    losses = ["train_loss", *(name for name in scores if name.endswith("loss"))]
    title = "Training" if len(losses) == 1 else "Loss"
    panels = {title: losses, "Validation": [name for name in scores if name not in losses]}
    if alphas := [name for name in history[0] if name.startswith("alpha_")]:
        panels["α of each ARL block"] = alphas
    lines = max(len(names) for names in panels.values()) // 2 + 1  # of the legends, in two columns
    figure = Figure(figsize=(4.4 * len(panels), 3.4 + 0.17 * lines), layout="constrained")
    grid = figure.subplots(1, len(panels))
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 20 else None
    for axes, (title, names) in zip(grid, panels.items(), strict=True):
        for name, style in zip(names, _line_styles(names), strict=True):
            words = name.removeprefix("val_").removeprefix("alpha_").replace("_", " ").replace("auc", "AUC")
            label = LABELS.get(name, words)
            axes.plot(epochs, [row[name] for row in history], marker=marker, markersize=3, label=label, **style)
        if best_epoch:
            axes.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch, {best_epoch}")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return figure


def plot_contours(panels: Sequence[Panel], title: str = "", columns: int = 4, width: float = 3.2) -> Figure:
    """Photographs in a grid, the true outline and the predicted one drawn over each; width: of a panel, inches."""
    rows = -(-len(panels) // columns)
    small = width < 2.5
    figure = Figure(figsize=(width * columns, (width + 0.2 if small else 2.7) * rows + 0.6), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, panel in zip(grid, panels, strict=False):
        axes.imshow(panel.image)
        axes.set_title(panel.title, fontsize=7 if small else 9)
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
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, facecolor="0.35", labelcolor="white")
    figure.suptitle(title)
    return figure


def plot_class_balance(labels: Mapping[str, Sequence[int]]) -> Figure:
    """How many images of each class every split has, as bars; labels: indices into CLASSES by split."""
    figure = Figure(figsize=(2.2 + 2.6 * len(labels), 3), layout="constrained")
    for axes, (split, values) in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), strict=True):
        counts = np.bincount(values, minlength=len(CLASSES))
        bars = axes.bar([name.replace(" ", "\n") for name in NAMES], counts, color=["C0", "C1", "C2"])
        axes.bar_label(bars, [f"{count}\n{count / max(1, counts.sum()):.0%}" for count in counts], fontsize=9)
        axes.set(title=f"{split}, {counts.sum()} images", ylabel="images")
        axes.margins(y=0.25)
    return figure


def best_median_worst(values: np.ndarray, count: int = 4) -> dict[str, np.ndarray]:
    """Indices of the `count` highest, middle and lowest of the values [N]; fewer when N is small, none twice."""
    order = np.argsort(-np.asarray(values), kind="stable")
    count = max(1, min(count, len(order) // 3))
    middle = len(order) // 2 - count // 2
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    return groups if len(order) >= 3 else {"best": order}


def plot_heatmaps(rows: Sequence[HeatRow], title: str = "") -> Figure:
    """One row an image: the photograph, then each heat map over a grey copy of it; the true outline on all of them.

    Each map is enlarged bilinearly over its image and coloured from its own lowest to its own highest value. Columns
    are the titles of all rows' maps, in order; a row that lacks one leaves its place empty.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row.heats))
    height, width = rows[0].image.shape[:2]
    side = 1.9 if len(columns) > 2 else 2.6  # inches
    size = (side * (len(columns) + 1) + 1, (side * height / width + 0.05) * len(rows) + (1.1 if title else 0.8))
    figure = Figure(figsize=size, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for axes, name in zip(grid[0], ["photograph", *columns], strict=True):
        axes.set_title("\n".join(textwrap.fill(part, 22) for part in name.split("\n")), fontsize=10)
    for line, row in zip(grid, rows, strict=True):
        line[0].set_ylabel(row.title, rotation=0, ha="right", va="center", fontsize=9)
        for axes, name in zip(line, [None, *columns], strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name is not None and name not in row.heats:
                continue
            axes.imshow(row.image if name is None else _heated(row.image, row.heats[name]))
            if row.mask is not None:
                _outline(axes, row.mask, TRUTH)
    place = {"shrink": min(0.3, 3.5 / size[0]), "aspect": 30, "anchor": (0.2, 1), "pad": 0.1 / size[1]}
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=grid, location="bottom", **place)
    bar.set_ticks([0, 1], labels=["lowest", "highest of each map"])
    bar.ax.tick_params(labelsize=9, length=0)
    if any(row.mask is not None for row in rows):
        handle = Line2D([], [], color=TRUTH, label="true outline")
        beside = {"loc": "center left", "bbox_to_anchor": (1.5, 0.5), "facecolor": "0.35", "labelcolor": "white"}
        bar.ax.legend(handles=[handle], fontsize=9, **beside)
    figure.suptitle(title)
    return figure


def plot_classification(probabilities: np.ndarray, labels: np.ndarray, title: str = "") -> Figure:
    """ROC curves of the two classes of the challenge, confusion matrix, and how far the confidence can be trusted.

    Args:
        probabilities: [N, 3], in the order of `utils.data.isic.CLASSES`.
        labels: int [N], indices into CLASSES.
        title: over the figure.

    Raises:
        ValueError: other shapes, or no image.
    """
    from sklearn.metrics import confusion_matrix  # imports slowly

    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    if probabilities.shape != (len(labels), len(CLASSES)) or not len(labels):
        raise ValueError(f"probabilities {probabilities.shape}, labels {labels.shape}: expected [N, 3] and [N], N ≥ 1")
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    _plot_roc(left.subplots(), probabilities, labels)
    matrix, (curve, histogram) = middle.subplots(), right.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(len(CLASSES)))
    draw_confusion(matrix, counts)
    matrix.set(title=f"Confusion matrix, accuracy {counts.trace() / counts.sum():.3f}")
    matrix.set(xlabel="predicted", ylabel="true")
    error = calibration_error(probabilities, labels, bins=10)
    draw_reliability(curve, histogram, probabilities[None], labels, label=f"expected calibration error {error:.3f}")
    curve.set(title="Reliability of the predicted class", ylabel="share correct")
    histogram.set(xlabel="confidence (highest probability)", ylabel="images")
    curve.legend(fontsize=9, loc="lower right")
    figure.suptitle(title)
    return figure


def draw_confusion(axes: Axes, counts: np.ndarray, fontsize: float = 12) -> None:
    """A confusion matrix with the count and the share of its true class in every cell, "–" for a class without images.

    counts: [3, 3], true class by predicted class; of several seeds, their mean.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        count = f"{counts[row, column]:.1f}".removesuffix(".0")
        text = f"{count}\n{share:.0%}" if counts[row].any() else "–"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
    ticks = [name.replace(" ", "\n") for name in NAMES]
    axes.set_xticks(range(len(CLASSES)), ticks)
    axes.set_yticks(range(len(CLASSES)), ticks)


def draw_reliability(axes: Axes, below: Axes, probabilities: np.ndarray, labels: np.ndarray, **line) -> None:
    """Share of correct answers by confidence, in tenths, and under it how many images each tenth holds.

    probabilities: [S, N, 3] of S seeds, which are pooled; the numbers of images are means over seeds. labels: [N].
    line: how the shares are drawn, as `Axes.plot` takes it.
    """
    confidence, correct = probabilities.max(2).ravel(), (probabilities.argmax(2) == labels).ravel()
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, 9)
    counts = np.bincount(bins, minlength=10)
    filled = counts > 0
    mean_confidence = np.bincount(bins, confidence, 10)[filled] / counts[filled]
    accuracy = np.bincount(bins, correct, 10)[filled] / counts[filled]
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    axes.plot(mean_confidence, accuracy, **{"color": "C0", "marker": "o", "linewidth": 2, **line})
    axes.set(xlim=(0.3, 1.01), ylim=(-0.02, 1.02))  # the highest of three probabilities is 1/3 or more
    below.bar(edges[:-1] + 0.05, counts / len(probabilities), width=0.09, color=line.get("color", "C0"), alpha=0.6)
    for part in (axes, below):
        part.grid(alpha=0.3)


def _plot_roc(axes: Axes, probabilities: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    for index in (0, 1):
        truth, score = labels == index, probabilities[:, index]
        if truth.all() or not truth.any():  # no curve without both sides
            axes.plot([], [], label=f"{NAMES[index]}, no AUC: {truth.sum()} of {len(truth)} images")
            continue
        label = f"{NAMES[index]}, AUC {roc_auc_score(truth, score):.3f}"
        axes.plot(*roc_curve(truth, score)[:2], label=label, linewidth=2)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.set(title="ROC, one class against the rest", xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")


def _heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The map in colour over a grey copy of the photograph, uint8 [H, W, 3]."""
    low, high = float(heat.min()), float(heat.max())
    heat = ((heat - low) / ((high - low) or 1)).astype(np.float32)
    heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    colour = colormaps[HEAT](heat)[..., :3] * 255
    opacity = 0.35 + 0.4 * heat[..., None]  # the photograph shows through where the map is low
    return ((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def _line_styles(names: Sequence[str]) -> list[dict]:
    """A colour and a dash for each line; the blocks of one stage ("layer1.0", "layer1.1") share the colour."""
    if not names or not names[0].startswith("alpha_"):
        return [{"color": f"C{i % 10}", "linestyle": DASHES[i // 10 % len(DASHES)]} for i in range(len(names))]
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(name.rpartition(".")[0], []).append(name)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(stages)))
    return [
        {"color": colour, "linestyle": DASHES[i % len(DASHES)]}
        for colour, blocks in zip(colours, stages.values(), strict=True)
        for i in range(len(blocks))
    ]


def _outline(axes, mask: np.ndarray, colour: str) -> None:
    # A frame of background lets the outline of a lesion that is cut by the image's border close along it.
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = np.clip(contour[:, 0] - 1, 0, (mask.shape[1] - 1, mask.shape[0] - 1))
        points = np.vstack([points, points[:1]])
        axes.plot(*points.T, color="black", linewidth=2.2, alpha=0.5)
        axes.plot(*points.T, color=colour, linewidth=1.2)
