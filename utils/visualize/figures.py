"""Figures of one run: learning curves, photographs with contours or heat maps, and how well a classifier did.

Every function returns a matplotlib Figure and shows nothing. The `draw_` functions draw into a panel, for several runs
side by side too (`utils.visualize.comparison`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from utils.data.isic import CLASSES
from utils.evaluation.classification import auc, calibration_error, scored_classes
from utils.visualize import style

CHOSEN_BY = ("val_jaccard", "val_mean_auc")  # columns of the history


@dataclass(frozen=True)
class Panel:
    """A photograph uint8 [H, W, 3] with the masks (bool or 0/1, [H, W]) to outline on it."""

    title: str
    image: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None


@style.typeset(style.PAGE)
def plot_history(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Learning curves from the rows of a run's history, by epoch.

    One panel of losses, one of the validation scores (columns `val_…`; the one by which the best epoch is chosen first
    and thick), and, where the rows have columns `alpha_…`, one of the α of each ARL block (a colour for each stage).
    """
    table = pd.DataFrame(history)  # empty cells: what an epoch that another version trained lacks
    losses = {"train_loss": "training loss", "val_loss": "validation loss"}
    losses = {name: label for name, label in losses.items() if name in table}
    names = [name for name in table if name.startswith("val_") and name not in losses]
    primary = next((name for name in CHOSEN_BY if name in names), names[0])
    scores = {name: style.words(name[4:]) for name in dict.fromkeys([primary, *names])}
    alphas = {name: name.removeprefix("alpha_") for name in table if name.startswith("alpha_")}
    panels = [("Loss", "loss", losses), ("Validation", "score", scores), ("α of each ARL block", "α", alphas)]
    panels = panels if alphas else panels[:2]
    lines = max(len(names) for *_, names in panels) // 2 + 1  # of the legends, in two columns
    figure = style.page(2.5 + 0.13 * lines)
    marker = "o" if len(table) < 20 else None
    for axes, (title, unit, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        looks = _block_looks(names) if names is alphas else style.line_looks(names)
        for (name, label), look in zip(names.items(), looks, strict=True):
            look |= {"linewidth": 2.2 if name == primary else 0.9, "marker": marker, "markersize": 2.5, "label": label}
            axes.plot(table["epoch"], table[name], **look)
        axes.axvline(best_epoch, label=f"best epoch, {best_epoch}", **style.GREY)
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid()
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), columnspacing=1, handlelength=1.8)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_contours(panels: Sequence[Panel], title: str = "", columns: int = 4, width: float = 1.8) -> Figure:
    """Photographs in a grid, the true outline and the predicted one drawn over each; width: of a panel, inches."""
    rows = -(-len(panels) // columns)
    lines = max(panel.title.count("\n") + 1 for panel in panels)
    height = 0.75 * width + 0.16 * lines + 0.15  # of a panel; most photographs are 4:3
    figure = style.page(height * rows + 0.6, width * columns)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    shown = [name for name in style.OUTLINES if any(getattr(panel, name) is not None for panel in panels)]
    for axes, panel in zip(grid, panels, strict=False):
        axes.imshow(panel.image)
        axes.set_title(panel.title)
        for name, colour in style.OUTLINES.items():
            if (mask := getattr(panel, name)) is not None:
                _outline(axes, mask, colour)
    if shown:
        style.outlines_legend(figure, shown, loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


@style.typeset(style.PAGE)
def plot_class_balance(labels: Mapping[str, Sequence[int]]) -> Figure:
    """How many images of each class every split has, as bars; labels: indices into CLASSES by split."""
    figure = style.page(2.3)
    for axes, (split, values) in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), strict=True):
        counts = np.bincount(values, minlength=len(CLASSES))
        bars = axes.bar([name.replace(" ", "\n") for name in style.NAMES], counts, color=style.COLOURS[: len(CLASSES)])
        axes.bar_label(bars, [f"{count}\n{count / max(1, counts.sum()):.0%}" for count in counts])
        axes.set(title=f"{split}, {counts.sum()} images", ylabel="images")
        axes.margins(y=0.25)
    return style.finished(figure)


def best_median_worst(values: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the four highest, middle and lowest of the values [N]; fewer when N is small, none twice."""
    order = np.argsort(-np.asarray(values), kind="stable")
    count = max(1, min(4, len(order) // 3))
    middle = len(order) // 2 - count // 2
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    return groups if len(order) >= 3 else {"best": order}


@style.typeset(style.PAGE)
def plot_heatmaps(panels: Sequence[Panel], heats: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """One row an image: the photograph, then each heat map over a grey copy of it; the true outline on all of them.

    Each map is enlarged bilinearly over its image and coloured from its own lowest to its own highest value.
    heats: by title of the column, float [N, h, w] of any size, a map for each of the N panels.
    """
    height, width = panels[0].image.shape[:2]
    side = max(1.0, min(1.8, 6.2 / (len(heats) + 1)))  # inches
    size = (side * (len(heats) + 1) + 1, (side * height / width + 0.05) * len(panels) + (1.1 if title else 0.8))
    figure = Figure(figsize=size, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(panels), len(heats) + 1, squeeze=False)
    for axes, name in zip(grid[0], ["photograph", *heats], strict=True):
        axes.set_title("\n".join(style.wrapped(part, round(14 * side)) for part in name.split("\n")))
    for index, (line, panel) in enumerate(zip(grid, panels, strict=True)):
        line[0].set_ylabel(panel.title, rotation=0, ha="right", va="center")
        images = [panel.image, *(heated(panel.image, maps[index]) for maps in heats.values())]
        for axes, image in zip(line, images, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.imshow(image)
            if panel.truth is not None:
                _outline(axes, panel.truth, style.OUTLINES["truth"])
    place = {"shrink": min(0.3, 3.5 / size[0]), "aspect": 30, "anchor": (0.2, 1), "pad": 0.1 / size[1]}
    bar = figure.colorbar(ScalarMappable(cmap=style.HEAT), ax=grid, location="bottom", **place)
    bar.set_ticks([0, 1], labels=["lowest", "highest of each map"])
    bar.ax.tick_params(length=0)
    if any(panel.truth is not None for panel in panels):
        style.outlines_legend(bar.ax, ["truth"], loc="center left", bbox_to_anchor=(1.5, 0.5))
    figure.suptitle(title)
    return figure


@style.typeset(style.PAGE)
def plot_classification(
    probabilities: np.ndarray, labels: np.ndarray, title: str = "", classes: Sequence[str] = CLASSES
) -> Figure:
    """ROC curves of `scored_classes`, confusion matrix, and how far the confidence can be trusted.

    probabilities: [N, C], in the order of the C `classes`; labels: int [N], indices into them. ValueError for what
    `utils.evaluation.classification.calibration_error` refuses.
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    error = calibration_error(probabilities, labels)
    more = max(0, len(classes) - 4)  # than fit a small matrix
    figure = style.page(3.4 + 0.5 * more, style.WIDE * (1 + 0.08 * more))
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1.25 + 0.25 * more, 1))
    roc, matrix, (curve, histogram) = left.subplots(), middle.subplots(), right.subplots(2, 1, height_ratios=(3, 1))
    looks = style.line_looks(classes)
    for number, name in enumerate(scored_classes(classes)):
        scores, positive = probabilities[:, number], labels == number
        area = auc(scores, positive)
        told = f"no AUC: {positive.sum()} of {labels.size} images" if np.isnan(area) else f"AUC {area:.3f}"
        label = style.wrapped(f"{name.replace('_', ' ')}, {told}", 34 if more else 58)
        draw_curve(roc, "roc", scores, positive, linewidth=1.5, label=label, **looks[number])
    draw_chance(roc, "roc", label="chance")
    roc.set_title("ROC, one class against the rest")
    draw_confusion(matrix, probabilities[None], labels, fontsize=6 if more else 8, classes=classes)
    accuracy = (probabilities.argmax(1) == labels).mean()
    matrix.set(title=f"Confusion, accuracy {accuracy:.3f}", xlabel="predicted", ylabel="true")
    draw_reliability(curve, histogram, probabilities[None], labels, label=f"calibration error {error:.3f}")
    curve.set(title="Reliability of the predicted class", ylabel="share correct")
    histogram.set(xlabel="confidence (highest probability)", ylabel="images")
    roc.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25))  # beside the curves it would cover poor ones
    curve.legend(loc="lower right")
    figure.suptitle(title)
    return style.finished(figure)


def curve_of(kind: str, scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An ROC or precision-recall curve (kind: "roc" or "precision-recall") of scores [N] and positive bool [N].

    x, rising, and y. Empty without positives, and an ROC curve without negatives.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # imports slowly

    x = y = np.zeros(0)
    if kind == "roc" and positive.any() and not positive.all():
        x, y, _ = roc_curve(positive, scores)
    elif kind == "precision-recall" and positive.any():
        y, x, _ = precision_recall_curve(positive, scores)
        x, y = x[::-1], y[::-1]
    return x, y


def draw_curve(axes: Axes, kind: str, scores: np.ndarray, positive: np.ndarray, **line) -> None:
    """`curve_of` these; line: as `Axes.plot` takes it."""
    axes.plot(*curve_of(kind, scores, positive), drawstyle="default" if kind == "roc" else "steps-pre", **line)


def draw_chance(axes: Axes, kind: str, share: float = 0, **line) -> None:
    """What guessing gives in a panel of curves, and the panel's axes; share: of positives, the precision of a guess."""
    axes.plot([0, 1], [0, 1] if kind == "roc" else [share, share], **style.GREY, **line)
    x, y = ("1 − specificity", "sensitivity") if kind == "roc" else ("recall (sensitivity)", "precision")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x, ylabel=y)


def draw_confusion(
    axes: Axes, probabilities: np.ndarray, labels: np.ndarray, fontsize: float, classes: Sequence[str] = CLASSES
) -> None:
    """A confusion matrix with the count and the share of its true class in every cell, "–" for a class without images.

    probabilities: [S, N, C] of S seeds, whose mean counts are shown; labels: [N].
    """
    from sklearn.metrics import confusion_matrix  # imports slowly

    predicted, indices = probabilities.argmax(2), range(len(classes))
    counts = np.mean([confusion_matrix(labels, each, labels=indices) for each in predicted], axis=0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        count = f"{counts[row, column]:.1f}".removesuffix(".0")
        text = f"{count}\n{share:.0%}" if counts[row].any() else "–"
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
    ticks = [style.wrapped(name.replace("_", " "), 14) for name in classes]
    axes.set_xticks(indices, ticks, rotation=0 if len(classes) < 5 else 90)
    axes.set_yticks(indices, ticks)


def draw_reliability(axes: Axes, below: Axes, probabilities: np.ndarray, labels: np.ndarray, **line) -> None:
    """Share of correct answers by confidence, in tenths, and under it how many images each tenth holds.

    probabilities: [S, N, C] of S seeds, which are pooled; the numbers of images are means over seeds. labels: [N].
    """
    from sklearn.calibration import calibration_curve  # imports slowly

    confidence, correct = probabilities.max(2).ravel(), (probabilities.argmax(2) == labels).ravel()
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=10)  # of the tenths that hold images
    edges = np.linspace(0, 1, 11)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=10)  # an edge is of the tenth below
    axes.plot([0, 1], [0, 1], label="perfect calibration", **style.GREY)
    axes.plot(mean_confidence, accuracy, **{"color": style.COLOURS[0], "marker": "o", "linewidth": 1.5, **line})
    below.bar(edges[:-1] + 0.05, counts / len(probabilities), width=0.09, color=style.COLOURS[0], alpha=0.6)
    axes.set(ylim=(-0.02, 1.02))
    least = 0.9 / probabilities.shape[2]  # the highest of three probabilities is 1/3 or more
    for part in (axes, below):
        part.set(xlim=(least, 1.01), xticks=[tick for tick in np.arange(2, 11, 2) / 10 if tick > least])
        part.grid()
    axes.tick_params(labelbottom=False)


def _block_looks(names: Iterable[str]) -> list[dict]:
    """The blocks of one stage ("layer1.0", "layer1.1") share the colour; from the seventh on they take the next one."""
    looks, stages = [], []
    for name in names:
        stages.append(name.rpartition(".")[0])
        stage, block = len(set(stages)) - 1, stages.count(stages[-1]) - 1
        looks.append({"color": style.COLOURS[(stage + block // 6) % 5], "linestyle": style.DASHES[block % 6]})
    return looks


def heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The map in colour over a grey copy of the photograph, uint8 [H, W, 3]."""
    low, high = float(heat.min()), float(heat.max())
    heat = ((heat - low) / ((high - low) or 1)).astype(np.float32)
    heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    colour = colormaps[style.HEAT](heat)[..., :3] * 255
    opacity = 0.35 + 0.4 * heat[..., None]  # the photograph shows through where the map is low
    return ((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def _outline(axes: Axes, mask: np.ndarray, colour: str) -> None:
    """Along the frame where that cuts the lesion."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = np.vstack([contour, contour[:1]])[:, 0]
        axes.plot(*points.T, color="black", linewidth=2.2, alpha=0.5)
        axes.plot(*points.T, color=colour, linewidth=1.2)
