"""Figures that compare the rows of a results table, each an experiment with one or more seeds, on the same images.

A figure is 7.2 or 3.5 inches wide, for a page or a column of it, and as high as its rows need: `save_figure` writes it
in this size. A row looks the same in every figure to which the rows are given in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluation.classification import SPECIFICITIES, TASKS, classification_scores, score_intervals
from utils.evaluation.export import format_number
from utils.evaluation.segmentation import JACCARD_THRESHOLD
from utils.evaluation.statistics import Groups
from utils.visualize import style
from utils.visualize.figures import curve_of, draw_chance, draw_confusion, draw_curve, draw_reliability


@style.typeset(style.PAGE)
def plot_curves(rows: Mapping[str, np.ndarray], labels: np.ndarray, kind: str) -> Figure:
    """Melanoma and seborrheic keratosis against the rest: a line for each row, of several seeds their mean at each x.

    Around it a band, mean ± standard deviation over seeds. The legend has the area under the ROC curve or the average
    precision, mean ± standard deviation over seeds; "–" without positives, or for "roc" without negatives, where there
    is no curve.
    rows: probabilities float [S, N, 3] by row label, in the order of `utils.data.isic.CLASSES`, of S ≥ 1 seeds each.
    labels: int [N], indices into CLASSES. kind: "roc" or "precision-recall".
    """
    roc = kind == "roc"
    score, title = ("auc", "area under the ROC curve") if roc else ("average_precision", "average precision")
    texts = [style.wrapped(label) + "\n" for label in rows]
    figure = style.page(3.5)
    for number, axes in enumerate(figure.subplots(1, len(TASKS))):
        positive, task = labels == number, style.NAMES[number]
        for line, (seeds, look) in enumerate(zip(rows.values(), style.line_looks(rows), strict=True)):
            scores = [classification_scores(one, labels)[TASKS[number]][score] for one in seeds]
            texts[line] += f"{', ' if number else ''}{task} {_spread(scores)}"
            _draw_mean(axes, kind, seeds[..., number], positive, look)
        draw_chance(axes, kind, positive.mean())
        axes.set_title(f"{task.capitalize()}, {positive.sum()} of {labels.size} images")
    chance = "chance" if roc else "chance: the share of positives"
    note = f"{title}, mean ± standard deviation over seeds, as the bands"
    style.legend_below(figure, [*texts, chance], [*style.line_looks(rows), style.GREY], note)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_confusions(rows: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """A confusion matrix for each row, three a line: mean count over seeds, and share of the true class.

    The title has the accuracy, mean ± standard deviation over seeds. Arguments as in `plot_curves`.
    """
    titles = _titles(rows, labels, "accuracy")
    figure, grid = style.small_multiples(titles, 2.8 if len(rows) < 3 else 2.35)
    for axes, seeds in zip(grid[:, 0], rows.values(), strict=True):
        draw_confusion(axes, seeds, labels, fontsize=style.PAGE - 1)
    figure.supylabel("true", fontsize=style.PAGE)
    figure.supxlabel("predicted", fontsize=style.PAGE)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_reliabilities(rows: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """How often each row is right by its confidence (`draw_reliability`); three a line.

    The title has the expected calibration error, mean ± standard deviation over seeds. Arguments as in `plot_curves`.
    """
    titles = _titles(rows, labels, "calibration_error")
    figure, grid = style.small_multiples(titles, 2.3, parts=(3, 1))
    for (axes, below), seeds in zip(grid, rows.values(), strict=True):
        draw_reliability(axes, below, seeds, labels, linewidth=1.2)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("share correct")
            below.set_ylabel("images")
    highest = max(below.get_ylim()[1] for below in grid[:, 1])
    for below in grid[:, 1]:
        below.set_ylim(0, highest)
    figure.supxlabel("confidence (highest probability)", fontsize=style.PAGE)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_operating_points(rows: Mapping[str, np.ndarray], labels: np.ndarray, groups: Groups = None) -> Figure:
    """The sensitivity at the `SPECIFICITIES` of `utils.evaluation.classification`, a panel for each task.

    A marker for the mean over seeds, a dash for each of several seeds, and a line for the mean's 95 % bootstrap
    interval over images; nothing where the sensitivity is undefined. Arguments as in `plot_curves`; groups: what is
    drawn together, as in `utils.evaluation.statistics.resample`.
    """
    figure = style.page(2.8)
    looks, places = style.dot_looks(rows), style.offsets(rows, 0.8)
    scores = [[classification_scores(one, labels) for one in seeds] for seeds in rows.values()]
    intervals = [score_intervals(seeds, labels, groups=groups) for seeds in rows.values()]

    def points(of: Mapping, task: str) -> np.ndarray:
        return np.array([*of[task]["sensitivity_at_specificity"].values()], dtype=float)  # None, undefined, as NaN

    for number, axes in enumerate(figure.subplots(1, len(TASKS), sharey=True)):
        for each, interval, look, place in zip(scores, intervals, looks, places, strict=True):
            x = np.arange(len(SPECIFICITIES)) + place
            values = np.array([points(one, TASKS[number]) for one in each])
            axes.vlines(x, *points(interval, TASKS[number]).T, color=look["color"])
            axes.plot(x, values.mean(0), **look)
            for one in values if len(values) > 1 else ():
                axes.plot(x, one, **look | {"marker": "_", "markersize": 5, "markeredgewidth": 0.7})
        axes.set_title(f"{style.NAMES[number].capitalize()}, {np.sum(labels == number)} of {labels.size} images")
        for between in np.arange(1, len(SPECIFICITIES)) - 0.5:
            axes.axvline(between, color="0.85", linewidth=0.6)
        axes.set(xlabel="specificity", ylim=(-0.02, 1.02), xlim=(-0.5, len(SPECIFICITIES) - 0.5))
        axes.set_xticks(range(len(SPECIFICITIES)), [f"{specificity:.2f}" for specificity in SPECIFICITIES])
    figure.axes[0].set_ylabel("sensitivity")
    note = "marker: mean over seeds; dash: one of several seeds; line: 95 % bootstrap interval over images"
    style.legend_below(figure, [style.wrapped(label) for label in rows], looks, note)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_jaccards(rows: Mapping[str, np.ndarray]) -> Figure:
    """Left, how the images' mean Jaccard over seeds is distributed; right, the share of images below a Jaccard.

    Left: a point for each image, its height without meaning, on their density with the quartiles; a diamond at the
    mean. Right: the images of all seeds pooled. rows: per-image official Jaccard [S, N] by row label.
    """
    import seaborn  # imports slowly, and pyplot with it

    names = [style.wrapped(label, 30) for label in rows]
    height = sum(max(0.36, (name.count("\n") + 2) * style.LINE) for name in names)
    figure = style.page(max(2.4, height + 0.5))
    left, right = figure.subplots(1, 2)
    means = [values.mean(0) for values in rows.values()]
    shape = {"cut": 0, "density_norm": "width", "width": 0.9, "color": "0.9", "linecolor": "0.3", "linewidth": 0.7}
    seaborn.violinplot(means, orient="h", ax=left, inner="quart", **shape)
    diamond = {"marker": "D", "color": "white", "markeredgecolor": "black", "markersize": 4, "linestyle": ""}
    generator = np.random.default_rng(0)
    texts = []
    for line, ((label, values), look) in enumerate(zip(rows.items(), style.line_looks(rows), strict=True)):
        heights = line + generator.uniform(-0.2, 0.2, values.shape[1])
        left.scatter(means[line], heights, 2, look["color"], alpha=0.6, linewidths=0, rasterized=True)
        left.plot(means[line].mean(), line, **diamond)
        right.ecdf(values.ravel(), **look)
        failures = _spread(100 * (values < JACCARD_THRESHOLD).mean(1), "{:.1f}".format)
        texts.append(f"{style.wrapped(label)}\n{failures} % of images below {JACCARD_THRESHOLD}")
    for axes in (left, right):
        axes.axvline(JACCARD_THRESHOLD, **style.GREY)
        axes.set(xlim=(-0.02, 1.02))
    left.set(xlabel="Jaccard index of an image, mean over seeds", ylim=(len(rows) - 0.4, -0.6))
    left.set_yticks(range(len(rows)), names)
    right.set(xlabel="Jaccard index", ylabel="share of images below", ylim=(0, 1.02))
    texts += [f"the challenge's threshold, {JACCARD_THRESHOLD}", "mean over images"]
    style.legend_below(figure, texts, [*style.line_looks(rows), style.GREY, diamond])
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_groups(tables: Mapping[str, pd.DataFrame], score: str) -> Figure:
    """A score within groups of images: a block for each factor, a line for each group, a dot and interval a row.

    A group that no row has a score of is left out. Grey lines: the rows' means of the group "all".
    tables: by row label, as of `utils.evaluation.subgroups`.
    """
    lines = {}  # what stands at the left, by factor and group; a heading has no group
    every = pd.concat(tables)
    every = every[[not np.isnan(value.mean) for value in every[score]]]
    if every.empty:
        return _nothing(f"{style.words(score)}: undefined in every group")
    for factor, group, images in every[["factor", "group", "images"]].itertuples(index=False):
        if group != "all":
            lines.setdefault((factor, ""), factor)
        lines.setdefault((factor, group), f"{group}, n = {images}")
    step = max(0.17, 0.06 * len(tables) + 0.1)
    heights = [step if group else 0.22 for _, group in lines]
    figure = style.page(sum(heights) + 0.5, style.NARROW if len(tables) == 1 else style.WIDE)
    axes = figure.subplots()
    middles = dict(zip(lines, style.list_lines(axes, [*lines.values()], heights), strict=True))
    for (_, group), text in zip(lines, axes.get_yticklabels(), strict=True):
        text.set_weight("normal" if group else "bold")
    looks, places = style.dot_looks(tables), style.offsets(tables, step - 0.06)
    for table, look, place in zip(tables.values(), looks, places, strict=True):
        for factor, group, value in zip(table["factor"], table["group"], table[score], strict=True):
            if not np.isnan(value.mean):
                axes.plot(value.mean, middles[factor, group] + place, **look)
            if value.interval:
                axes.hlines(middles[factor, group] + place, *value.interval, color=look["color"])
            if group == "all":
                axes.axvline(value.mean, color="0.75", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"{style.words(score)}, 95 % interval")
    style.legend_below(figure, [style.wrapped(label) for label in tables], looks)
    return style.finished(figure)


@style.typeset(style.PAGE)
def plot_differences(table: pd.DataFrame, metric: str) -> Figure:
    """By how much the first of each pair scores higher than the second, 95 % interval, and p adjusted for all pairs.

    table: of `utils.evaluation.tables.compare` for the metric; without pairs the figure says so.
    """
    if table.empty:
        return _nothing(f"{style.words(metric)}: nothing to compare,\nfewer than two rows have runs")
    pairs = zip(table["first"], table["second"], strict=True)
    names = [style.wrapped(f"{first} − {second}") for first, second in pairs]
    heights = [(name.count("\n") + 1) * style.LINE + 0.08 for name in names]
    figure = style.page(sum(heights) + 0.7)
    axes = figure.subplots()
    middles = style.list_lines(axes, names, heights)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.hlines(middles, table["low"], table["high"], color=style.COLOURS[0])
    axes.plot(table["difference"], middles, "o", color=style.COLOURS[0])
    beside = {"transform": axes.get_yaxis_transform(), "fontsize": style.PAGE - 1, "ha": "right"}
    axes.text(1.12, 0, "p (Holm)", va="bottom", **beside)
    for y, p in zip(middles, table["p (Holm)"], strict=True):
        axes.text(1.12, y, "<.001" if p < 0.0005 else format_number(p), va="center", **beside)
    axes.set_xlabel(f"difference of {style.words(metric)}, 95 % interval, {table['images'].iloc[0]} images")
    return style.finished(figure)


def _nothing(text: str) -> Figure:
    figure = style.page(0.8, style.NARROW)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _draw_mean(axes: Axes, kind: str, seeds: np.ndarray, positive: np.ndarray, look: Mapping) -> None:
    """The mean curve of scores [S, N] and its band."""
    curves = [curve_of(kind, one, positive) for one in seeds]
    if len(curves) == 1 or not curves[0][0].size:
        draw_curve(axes, kind, seeds[0], positive, **look)
        return
    grid = np.linspace(0, 1, 201)
    if kind == "roc":
        values = [np.interp(grid, x, y) for x, y in curves]
    else:  # the precision where this recall is first reached
        values = [y[np.searchsorted(x, grid - 1e-9)] for x, y in curves]
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    axes.plot(grid, mean, **look)
    band = np.clip([mean - spread, mean + spread], 0, 1)
    axes.fill_between(grid, *band, color=look["color"], alpha=0.15, linewidth=0)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf (vectors, fonts embedded) and `name`.png (300 dpi) into a folder, which is made; their paths."""
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"pdf.fonttype": 42}):  # TrueType, which journals ask for
        figure.savefig(paths[0], dpi=300, metadata={"CreationDate": None})  # the same figure, the same file
    figure.savefig(paths[1], dpi=300)
    return paths


def _titles(rows: Mapping[str, np.ndarray], labels: np.ndarray, score: str) -> list[str]:
    """Of each row's panel: its label and one of its `classification_scores`."""
    scores = [_spread([classification_scores(one, labels)[score] for one in seeds]) for seeds in rows.values()]
    return [
        f"{style.wrapped(label, 36)}\n{style.words(score)} {each}" for label, each in zip(rows, scores, strict=True)
    ]


def _spread(values: Sequence[float | None], number: Callable[[float], str] = format_number) -> str:
    """Mean ± standard deviation (of a sample) of the values of S seeds; one has no ±. "–" where undefined."""
    values = np.array(values, dtype=float)
    mean = number(values.mean())
    return mean if len(values) == 1 or np.isnan(values).any() else f"{mean} ± {number(values.std(ddof=1))}"
