"""How the figures that compare rows of a results table look: widths, type, colours, legends, panels.

Figures are as wide as a page (7.2 inches) or one of its two columns (3.5), with type of 7 to 8 points.
"""

import textwrap
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from utils.evaluation.export import format_number
from utils.visualize.figures import DASHES

WIDE, NARROW = 7.2, 3.5  # inches
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # of Okabe & Ito: the colour-blind tell them apart
MARKERS = "osD^vPX<>p"
GREY = {"color": "0.45", "linestyle": (0, (1, 1.5)), "linewidth": 1}  # chance, thresholds
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1,
    "lines.markersize": 3.5,
}
LINE = 0.12  # inches, of a line of 7 points


def row_lines(rows: Sized) -> list[dict[str, Any]]:
    """A colour and a dash for the line of each row."""
    return [{"color": COLOURS[i % 5], "linestyle": DASHES[i // 5 % len(DASHES)]} for i in range(len(rows))]


def row_dots(rows: Sized) -> list[dict[str, Any]]:
    """A colour and a marker for each row."""
    return [{"color": COLOURS[i % 5], "marker": MARKERS[i % 10], "linestyle": ""} for i in range(len(rows))]


def row_offsets(rows: Sized, width: float) -> np.ndarray:
    """Where the rows lie within a group of this width, around its middle."""
    return (np.arange(len(rows)) - (len(rows) - 1) / 2) * width / len(rows)


def legend_below(
    figure: Figure, texts: Sequence[str], looks: Sequence[dict[str, Any]], title: str | None = None
) -> None:
    """A legend under the panels, in two columns from three entries on; the figure grows by its height.

    looks: how the line of each text is drawn, as `Line2D` takes it.
    """
    handles = [Line2D([], [], label=text, **look) for text, look in zip(texts, looks, strict=True)]
    columns = 2 if figure.get_figwidth() == WIDE and len(handles) > 2 else 1
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
    grid = figure.subplots(lines * len(parts), columns, squeeze=False, height_ratios=[*parts] * lines)
    grid = grid.reshape(lines, len(parts), columns).swapaxes(1, 2).reshape(-1, len(parts))
    for axes in grid[len(titles) :].ravel():
        axes.remove()
    for axes, title in zip(grid[:, 0], titles, strict=False):
        axes.set_title(title, fontsize=7)
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


def write_in(axes: Axes, text: str) -> None:
    """In the middle of the panel."""
    paper = {"facecolor": "white", "edgecolor": "none"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.3", bbox=paper)


def finished(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.tick_params(labelsize=7, width=0.6)  # here, as ticks that are added later forget STYLE
    figure.draw_without_rendering()  # the first layout of square panels leaves too little room for their titles
    return figure


def wrapped(label: str, width: int = 58) -> str:
    return textwrap.fill(label, width, break_on_hyphens=False)


def words(name: str) -> str:
    """The name of a score as it is written in a text."""
    for part, word in (("_", " "), ("auc", "AUC"), ("threshold ", "thresholded "), ("jaccard", "Jaccard")):
        name = name.replace(part, word)
    return name


def spread(values: ArrayLike, number: Callable[[float], str] = format_number) -> str:
    """Mean ± standard deviation (of a sample) of the values of S seeds; one has no ±. "–" where undefined."""
    mean = float(np.mean(values))
    return number(mean) if len(values) == 1 or np.isnan(mean) else f"{number(mean)} ± {number(np.std(values, ddof=1))}"
