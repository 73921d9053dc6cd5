"""How all figures look: colours, sizes of type, lines and markers, legends, panels.

Figures are as wide as a page (7.2 inches) or one of its two columns (3.5), with type of 7 and 8 points; only those with
more columns of photographs than fit are wider. Nothing here imports `matplotlib.pyplot`.
"""

import textwrap
from collections.abc import Collection, Iterable, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.data.isic import CLASSES

WIDE, NARROW = 7.2, 3.5  # inches
PAGE = 8  # points
# Of Okabe & Ito, five that nobody takes for each other: green and pink are one grey to some, orange and red one brown.
COLOURS = ("#0072b2", "#d55e00", "#000000", "#56b4e9", "#cc79a7")
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "osD^vPX<>ph"  # eleven, so that no two of 55 items look alike
GREY = {"color": "0.45", "linestyle": (0, (1, 1.5)), "linewidth": 1}  # chance, thresholds, the best epoch
OUTLINES = {"truth": "#19e3ff", "prediction": "#ffd21f"}  # visible on skin and on pigment, and to the colour-blind
HEAT = "inferno"  # heat maps: dark to bright in even steps, also in grey and to the colour-blind
LINE = 0.12  # inches, of a line of 7 points
NAMES = [name.replace("_", " ") for name in CLASSES]


def typeset(points: float) -> AbstractContextManager:
    """Type of this size, ticks and legends one point smaller, thin lines; around a block or as a decorator."""
    small = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize")
    sizes = {"font.size": points, "axes.titlesize": points, "axes.labelsize": points, "figure.titlesize": points + 1}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6}
    lines = {"lines.linewidth": 1, "lines.markersize": 3.5, "legend.frameon": False, "grid.alpha": 0.3}
    return rc_context({**dict.fromkeys(small, points - 1), **sizes, **spines, **lines})


def page(height: float, width: float = WIDE) -> Figure:
    """An empty figure; inches."""
    return Figure(figsize=(width, height), layout="constrained")


def line_looks(items: Sized) -> list[dict[str, Any]]:
    """A colour and a dash for the line of each item, such as a row of a table: told apart in grey too."""
    return [{"color": COLOURS[i % 5], "linestyle": DASHES[i % 6]} for i in range(len(items))]


def dot_looks(items: Sized) -> list[dict[str, Any]]:
    """A colour and a marker for each item."""
    return [{"color": COLOURS[i % 5], "marker": MARKERS[i % 11], "linestyle": ""} for i in range(len(items))]


def offsets(items: Sized, width: float) -> np.ndarray:
    """Where the items lie side by side within a group of this width, around its middle."""
    return (np.arange(len(items)) - (len(items) - 1) / 2) * width / len(items)


def legend_handles(texts: Iterable[str], looks: Iterable[dict[str, Any]]) -> list[Line2D]:
    """Entries of a legend; looks: how the line of each text is drawn, as `Line2D` takes it."""
    return [Line2D([], [], label=text, **look) for text, look in zip(texts, looks, strict=True)]


def outlines_legend(place: Axes | Figure, names: Collection[str], **options) -> None:
    """A legend of some of the `OUTLINES`, on grey as they are too bright for paper; options: as `legend` takes them."""
    handles = legend_handles(names, [{"color": OUTLINES[name]} for name in names])
    place.legend(handles=handles, frameon=True, facecolor="0.35", labelcolor="white", **options)


def legend_below(
    figure: Figure, texts: Sequence[str], looks: Sequence[dict[str, Any]], title: str | None = None
) -> None:
    """A legend under the panels, in two columns from three entries on; the figure grows by its height."""
    columns = 2 if figure.get_figwidth() == WIDE and len(texts) > 2 else 1
    handles = legend_handles(texts, looks)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def small_multiples(titles: Sequence[str], side: float, parts: Sequence[float] = (1,)) -> tuple[Figure, np.ndarray]:
    """Panels with titles, three a line and `side` inches high, each of one Axes or several below each other.

    parts: their heights. The Axes are [panels, parts].
    """
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    above = [max(title.count("\n") + 1 for title in titles[i : i + columns]) for i in range(0, len(titles), columns)]
    size = (NARROW if columns == 1 else WIDE, lines * side + sum(above) * LINE + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines * len(parts), columns, squeeze=False, sharey="row", height_ratios=[*parts] * lines)
    grid = grid.reshape(lines, len(parts), columns).swapaxes(1, 2).reshape(-1, len(parts))
    for axes in grid[len(titles) :].ravel():
        axes.remove()
    for axes, title in zip(grid[:, 0], titles, strict=False):
        axes.set_title(title, fontsize=PAGE - 1)
    return figure, grid[: len(titles)]


def list_lines(axes: Axes, names: Sequence[str], heights: Sequence[float]) -> np.ndarray:
    """Lines of these heights below each other, with names at the left and rules between. Returns their middles' y."""
    middles = np.cumsum(heights) - np.divide(heights, 2)
    axes.set(ylim=(sum(heights), 0))
    axes.set_yticks(middles, names)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    rules = np.cumsum(heights)[:-1]
    axes.hlines(rules, 0, 1, transform=axes.get_yaxis_transform(), color="0.9", linewidth=0.6, zorder=0)
    return middles


def finished(figure: Figure) -> Figure:
    """The figure laid out, with all ticks in the size of `typeset`, which those that are added later would forget."""
    for axes in figure.axes:
        axes.tick_params(labelsize=rcParams["xtick.labelsize"], width=0.6)
    figure.draw_without_rendering()  # the first layout of square panels leaves too little room for their titles
    return figure


def wrapped(label: str, width: int = 58) -> str:
    """Lines of at most `width` letters, broken between words and between the rows of an ensemble."""
    return textwrap.fill(label.replace("+", " + "), width, break_on_hyphens=False)


def words(name: str) -> str:
    """The name of a score as it is written in a text."""
    for part, word in (("_", " "), ("auc", "AUC"), ("threshold ", "thresholded "), ("jaccard", "Jaccard")):
        name = name.replace(part, word)
    return name.replace("dice", "Dice")
