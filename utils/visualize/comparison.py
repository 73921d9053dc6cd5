"""Figures that compare the rows of a results table, each an experiment with one or more seeds, on the same images.

Every function returns a matplotlib Figure and shows nothing. A figure is 7.2 or 3.5 inches wide, for a page or a column
of it, and as high as its rows need: `save_figure` writes it in this size. A row has the same colour, dash and marker in
every figure to which the rows are given in the same order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from utils import UserError
from utils.data.isic import CLASSES
from utils.evaluation.classification import (
    SPECIFICITIES,
    TASKS,
    auc,
    average_precision,
    calibration_error,
    score_intervals,
    sensitivity_at_specificity,
)
from utils.evaluation.segmentation import JACCARD_THRESHOLD
from utils.evaluation.export import format_number
from utils.visualize.figures import NAMES, draw_confusion, draw_reliability
from utils.visualize.style import (
    COLOURS,
    GREY,
    LINE,
    NARROW,
    STYLE,
    WIDE,
    finished,
    legend_below,
    list_lines,
    row_dots,
    row_lines,
    row_offsets,
    small_multiples,
    spread,
    words,
    wrapped,
    write_in,
)

AXES = {
    "roc": {"xlabel": "1 − specificity", "ylabel": "sensitivity"},
    "precision-recall": {"xlabel": "recall (sensitivity)", "ylabel": "precision"},
}


@rc_context(STYLE)
def plot_curves(probabilities: Mapping[str, ArrayLike], labels: ArrayLike, kind: str) -> Figure:
    """Melanoma and seborrheic keratosis against the rest: a colour for each row, a thin line for each of its seeds.

    The legend has the area under the ROC curve or the average precision, mean ± standard deviation over seeds. A task
    without positives, or for "roc" without negatives, has no curve, and "–" in the legend.

    Args:
        probabilities: float [S, N, 3] by row label, in the order of `utils.data.isic.CLASSES`; S may differ between rows.
        labels: int [N], indices into CLASSES.
        kind: "roc" or "precision-recall".

    Raises:
        ValueError: another kind, no rows, other shapes, no seed or no image.
    """
    if kind not in AXES:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(AXES)}")
    rows, labels = _checked_probabilities(probabilities, labels)
    roc = kind == "roc"
    score, title = (auc, "area under the ROC curve") if roc else (average_precision, "average precision")
    scores: dict[str, list[str]] = {label: [] for label in rows}
    figure = Figure(figsize=(WIDE, 3.5), layout="constrained")
    for number, axes in enumerate(figure.subplots(1, len(TASKS))):
        positive = labels == number
        for (label, seeds), look in zip(rows.items(), row_lines(rows), strict=True):
            values = [score(one, positive) for one in seeds[..., number]]
            scores[label].append(f"{NAMES[number]} {spread(values)}")
            for one in seeds[..., number] if np.isfinite(values).all() else ():
                x, y = roc_curve(positive, one)[:2] if roc else precision_recall_curve(positive, one)[1::-1]
                steps = "default" if roc else "steps-post"
                axes.plot(x, y, drawstyle=steps, linewidth=1.2 if len(seeds) == 1 else 0.7, **look)
        axes.plot([0, 1], [0, 1] if roc else [positive.mean()] * 2, **GREY)
        _name_task(axes, number, labels, "no curve" if roc or not positive.any() else "")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(**AXES[kind])
    texts = [f"{wrapped(label)}\n{', '.join(values)}" for label, values in scores.items()]
    chance = "chance" if roc else "chance: the share of positives"
    note = f"{title}, mean ± standard deviation over seeds"
    legend_below(figure, [*texts, chance], [*row_lines(rows), GREY], note)
    return finished(figure)


@rc_context(STYLE)
def plot_confusions(probabilities: Mapping[str, ArrayLike], labels: ArrayLike) -> Figure:
    """A confusion matrix for each row, three a line: mean count over seeds, and share of the true class.

    The title has the accuracy, mean ± standard deviation over seeds. Arguments and errors as in `plot_curves`.
    """
    rows, labels = _checked_probabilities(probabilities, labels)
    accuracies = [spread((seeds.argmax(2) == labels).mean(1)) for seeds in rows.values()]
    titles = [f"{wrapped(label, 36)}\naccuracy {text}" for label, text in zip(rows, accuracies, strict=True)]
    figure, grid = small_multiples(titles, 2.8 if len(rows) < 3 else 2.35)
    for axes, seeds in zip(grid[:, 0], rows.values(), strict=True):
        counts = [confusion_matrix(labels, one.argmax(1), labels=range(len(CLASSES))) for one in seeds]
        draw_confusion(axes, np.mean(counts, axis=0), fontsize=7)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("true")
        else:
            axes.set_yticklabels([])
    figure.supxlabel("predicted", fontsize=8)
    return finished(figure)


@rc_context(STYLE)
def plot_reliabilities(probabilities: Mapping[str, ArrayLike], labels: ArrayLike) -> Figure:
    """How often each row is right by its confidence, in tenths, and how many images each tenth holds; three a line.

    The seeds are pooled; the numbers of images are means over seeds. Dotted: perfect calibration. The title has the
    expected calibration error, mean ± standard deviation over seeds. Arguments and errors as in `plot_curves`, and
    ValueError for what `utils.evaluation.classification.calibration_error` refuses.
    """
    rows, labels = _checked_probabilities(probabilities, labels)
    errors = [spread([calibration_error(one, labels) for one in seeds]) for seeds in rows.values()]
    titles = [f"{wrapped(label, 36)}\ncalibration error {text}" for label, text in zip(rows, errors, strict=True)]
    figure, grid = small_multiples(titles, 2.3, parts=(3, 1))
    for (axes, below), seeds in zip(grid, rows.values(), strict=True):
        draw_reliability(axes, below, seeds, labels, color=COLOURS[0], linewidth=1.2)
        axes.set(xticks=np.arange(4, 11, 2) / 10, xticklabels=[])
        below.set(xlim=axes.get_xlim(), xticks=np.arange(4, 11, 2) / 10)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("share correct")
            below.set_ylabel("images")
    highest = max(below.get_ylim()[1] for below in grid[:, 1])
    for below in grid[:, 1]:
        below.set_ylim(0, highest)
    figure.supxlabel("confidence (highest probability)", fontsize=8)
    return finished(figure)


@rc_context(STYLE)
def plot_operating_points(probabilities: Mapping[str, ArrayLike], labels: ArrayLike) -> Figure:
    """The sensitivity at the `SPECIFICITIES` of `utils.evaluation.classification`, a panel for each task.

    A marker for the mean over seeds, a dash for each of several seeds, and a line for the mean's 95 % bootstrap
    interval over images (`utils.evaluation.classification.score_intervals`). Nothing is drawn where the sensitivity is undefined. Arguments and errors as in `plot_curves`.
    """
    rows, labels = _checked_probabilities(probabilities, labels)
    intervals = {label: score_intervals(seeds, labels) for label, seeds in rows.items()}
    figure = Figure(figsize=(WIDE, 2.8), layout="constrained")
    for number, axes in enumerate(figure.subplots(1, len(TASKS), sharey=True)):
        positive = labels == number
        for (label, seeds), look, offset in zip(rows.items(), row_dots(rows), row_offsets(rows, 0.8), strict=True):
            x = np.arange(len(SPECIFICITIES)) + offset
            scores = seeds[..., number]
            values = np.array([[sensitivity_at_specificity(one, positive, s) for s in SPECIFICITIES] for one in scores])
            ends = intervals[label][TASKS[number]]["sensitivity_at_specificity"].values()
            axes.vlines(x, *np.array(list(ends), dtype=float).T, color=look["color"])  # None, undefined, as NaN
            axes.plot(x, values.mean(0), **look)
            dash = look | {"marker": "_", "markersize": 5, "markeredgewidth": 0.7}
            for one in values if len(values) > 1 else ():
                axes.plot(x, one, **dash)
        _name_task(axes, number, labels, "undefined")
        for between in np.arange(1, len(SPECIFICITIES)) - 0.5:
            axes.axvline(between, color="0.85", linewidth=0.6)
        axes.set(xlabel="specificity", ylim=(-0.02, 1.02), xlim=(-0.5, len(SPECIFICITIES) - 0.5))
        axes.set_xticks(range(len(SPECIFICITIES)), [f"{specificity:.2f}" for specificity in SPECIFICITIES])
    figure.axes[0].set_ylabel("sensitivity")
    note = "marker: mean over seeds; dash: one of several seeds; line: 95 % bootstrap interval over images"
    legend_below(figure, [wrapped(label) for label in rows], row_dots(rows), note)
    return finished(figure)


@rc_context(STYLE)
def plot_jaccards(jaccards: Mapping[str, ArrayLike]) -> Figure:
    """Left, how the images' mean Jaccard over seeds is distributed; right, the share of images below a Jaccard.

    Left: a point for each image, its height without meaning, on their density with the quartiles; a diamond at the
    mean. Right: the images of all seeds pooled; the legend has the share below the challenge's threshold, mean ±
    standard deviation over seeds.
    jaccards: per-image official Jaccard [S, N] by row label, in [0, 1]. ValueError for no rows or other values.
    """
    rows = {label: np.asarray(values, dtype=np.float64) for label, values in _some(jaccards).items()}
    for label, values in rows.items():
        if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{label}: jaccards {values.shape}: expected [S, N] in [0, 1], S ≥ 1, N ≥ 1")
    names = [wrapped(label, 30) for label in rows]
    height = sum(max(0.36, (name.count("\n") + 2) * LINE) for name in names)
    figure = Figure(figsize=(WIDE, max(2.4, height + 0.5)), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = [values.mean(0) for values in rows.values()]
    shape = {"cut": 0, "density_norm": "width", "width": 0.9, "color": "0.9", "linecolor": "0.3", "linewidth": 0.7}
    seaborn.violinplot(means, orient="h", ax=left, inner="quart", **shape)
    generator = np.random.default_rng(0)
    texts = []
    for line, ((label, values), look) in enumerate(zip(rows.items(), row_lines(rows), strict=True)):
        heights = line + generator.uniform(-0.2, 0.2, values.shape[1])
        left.scatter(means[line], heights, 2, look["color"], alpha=0.6, linewidths=0, rasterized=True)
        left.plot(means[line].mean(), line, "D", color="white", markeredgecolor="black", markersize=4)
        right.ecdf(values.ravel(), **look)
        failures = spread(100 * (values < JACCARD_THRESHOLD).mean(1), "{:.1f}".format)
        texts.append(f"{wrapped(label)}\n{failures} % of images below {JACCARD_THRESHOLD}")
    for axes in (left, right):
        axes.axvline(JACCARD_THRESHOLD, **GREY)
        axes.set(xlim=(-0.02, 1.02))
    left.set(xlabel="Jaccard index of an image, mean over seeds", ylim=(len(rows) - 0.4, -0.6))
    left.set_yticks(range(len(rows)), names)
    right.set(xlabel="Jaccard index", ylabel="share of images below", ylim=(0, 1.02))
    looks = [*row_lines(rows), GREY, {"marker": "D", "color": "white", "markeredgecolor": "black", "markersize": 4}]
    legend_below(figure, [*texts, f"the challenge's threshold, {JACCARD_THRESHOLD}", "mean over images"], looks)
    return finished(figure)


@rc_context(STYLE)
def plot_groups(tables: Mapping[str, pd.DataFrame], score: str) -> Figure:
    """A score within groups of images: a block for each factor, a line for each group, a dot and interval a row.

    The factors and their groups come in the order of the tables. Grey lines: the rows' means of the group "all". A
    group that no row has a score of says "undefined".

    Args:
        tables: by row label, a line for each group; columns factor, group, images (how many) and the score's.
        score: the column of `utils.evaluation.tables.Score`, whose 95 % interval is drawn.

    Raises:
        ValueError: no rows, a table without these columns or lines, another number of images for the same group.
    """
    groups = _group_sizes(tables, score)
    headings = {factor: [(factor, None)] if [*sizes] != ["all"] else [] for factor, sizes in groups.items()}
    lines = [line for factor in groups for line in (*headings[factor], *((factor, name) for name in groups[factor]))]
    step = max(0.17, 0.06 * len(tables) + 0.1)
    heights = [0.22 if group is None else step for _, group in lines]
    figure = Figure(figsize=(NARROW if len(tables) == 1 else WIDE, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots()
    names = [factor if group is None else f"{group}, n = {groups[factor][group]}" for factor, group in lines]
    middles = dict(zip(lines, list_lines(axes, names, heights), strict=True))
    for (_, group), text in zip(lines, axes.get_yticklabels(), strict=True):
        text.set_weight("bold" if group is None else "normal")
    undefined = {line for line in lines if line[1] is not None}
    for table, look, offset in zip(tables.values(), row_dots(tables), row_offsets(tables, step - 0.06), strict=True):
        for factor, group, value in zip(table["factor"], table["group"], table[score], strict=True):
            if np.isnan(value.mean):
                continue
            undefined.discard((factor, group))
            y = middles[factor, group] + offset
            axes.plot(value.mean, y, **look)
            if value.interval:
                axes.hlines(y, *value.interval, color=look["color"])
            if group == "all":
                axes.axvline(value.mean, color="0.75", linewidth=0.8, zorder=0)
    for line in undefined:
        beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
        axes.text(0.01, middles[line], "undefined", color="0.45", **beside)
    axes.set_xlabel(f"{words(score)}, 95 % interval")
    legend_below(figure, [wrapped(label) for label in tables], row_dots(tables))
    return finished(figure)


@rc_context(STYLE)
def plot_differences(table: pd.DataFrame, metric: str) -> Figure:
    """By how much the first of each pair scores higher than the second, 95 % interval, and p adjusted for all pairs.

    table: of `utils.evaluation.tables.compare` for the metric; without pairs the figure says so. ValueError for other columns.
    """
    columns = ["first", "second", "images", "difference", "low", "high", "p (Holm)"]
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"a table of `compare` has the columns {', '.join(columns)}; no {', '.join(missing)}")
    if table.empty:
        figure = Figure(figsize=(NARROW, 0.8), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        write_in(axes, f"{words(metric)}: nothing to compare,\nfewer than two rows have runs")
        return figure
    names = []
    for first, second in zip(table["first"], table["second"], strict=True):
        pair = f"{first} − {second}"
        names.append(pair if len(pair) <= 54 else f"{wrapped(first, 52)} −\n{wrapped(second, 54)}")
    heights = [(name.count("\n") + 1) * LINE + 0.08 for name in names]
    figure = Figure(figsize=(WIDE, sum(heights) + 0.7), layout="constrained")
    axes = figure.subplots()
    middles = list_lines(axes, names, heights)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.hlines(middles, table["low"], table["high"], color=COLOURS[0])
    axes.plot(table["difference"], middles, "o", color=COLOURS[0])
    beside = {"transform": axes.get_yaxis_transform(), "fontsize": 7, "ha": "right"}
    axes.text(1.12, 0, "p (Holm)", va="bottom", **beside)
    for y, p in zip(middles, table["p (Holm)"], strict=True):
        axes.text(1.12, y, "<.001" if p < 0.0005 else format_number(p), va="center", **beside)
    axes.set_xlabel(f"difference of {words(metric)}, 95 % interval, {table['images'].iloc[0]} images")
    return finished(figure)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf (vectors, fonts embedded) and `name`.png (300 dpi) into the folder, which is made if need be.

    Returns their paths. UserError when one of them cannot be written.
    """
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context({"pdf.fonttype": 42}):  # TrueType, which journals ask for
            figure.savefig(paths[0], dpi=300, metadata={"CreationDate": None})  # the same figure, the same file
        figure.savefig(paths[1], dpi=300)
    except OSError as error:
        raise UserError(f"{folder / name}: the figure cannot be written ({error}); choose another folder") from error
    return paths


def _some(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    if not rows:
        raise ValueError("no rows: expected one at least")
    return rows


def _checked_probabilities(
    probabilities: Mapping[str, ArrayLike], labels: ArrayLike
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """float64 [S, N, 3] by row label, and labels [N]."""
    labels = np.asarray(labels)
    rows = {label: np.asarray(seeds, dtype=np.float64) for label, seeds in _some(probabilities).items()}
    for label, seeds in rows.items():
        if seeds.ndim != 3 or seeds.shape[1:] != (labels.size, len(CLASSES)) or labels.ndim != 1 or not seeds.size:
            raise ValueError(
                f"{label}: probabilities {seeds.shape}, labels {labels.shape}: expected [S, N, 3] and [N], S ≥ 1, N ≥ 1"
            )
    return rows, labels


def _group_sizes(tables: Mapping[str, pd.DataFrame], score: str) -> dict[str, dict[str, int]]:
    """How many images each group has, by factor."""
    sizes: dict[str, dict[str, int]] = {}
    for label, table in _some(tables).items():
        if table.empty or not {"factor", "group", "images", score} <= set(table):
            raise ValueError(f"{label}: expected lines with the columns factor, group, images, {score}")
        for factor, group, images in zip(table["factor"], table["group"], table["images"], strict=True):
            if sizes.setdefault(factor, {}).setdefault(group, images) != images:
                raise ValueError(f"{label}: {images} images of {factor}, {group}; {sizes[factor][group]} elsewhere")
    return sizes


def _name_task(axes: Axes, number: int, labels: np.ndarray, without: str) -> None:
    """The title of a task's panel; `without` is written in it where the task lacks positives or negatives."""
    positives = np.count_nonzero(labels == number)
    axes.set_title(f"{NAMES[number].capitalize()}, {positives} of {labels.size} images")
    if without and positives in (0, labels.size):
        write_in(axes, f"{without}: {positives} of {labels.size} images")
