"""Figures of one run: they show every value once, in the right place, and nothing overlaps."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from utils.data.dermoscopy import draw_lesion
from utils.visualize import figures, style


def test_nothing_heavy_is_imported():
    """pyplot would keep every figure in memory, and may ask for a screen."""
    heavy = "{'matplotlib.pyplot', 'seaborn', 'sklearn'}"
    command = f"import sys, utils.visualize.figures; print(*({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, check=True).stdout.strip() == b""


def entries(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def overlap(figure: Figure, texts: list) -> bool:
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


SEGMENTATION = [f"val_{n}" for n in ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity")]
ARL50 = [f"alpha_layer{level}.{i}" for level, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
MOBILENET = [f"alpha_backbone.features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]


def history(epochs: int, *columns: str) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [{"epoch": epoch, "lr": 1e-4, **{n: rng.random() for n in columns}} for epoch in range(1, epochs + 1)]


def test_history_of_a_segmentation():
    """Its score is drawn first and thick, wherever its column stands."""
    rows = history(30, "train_loss", *SEGMENTATION[::-1])
    figure = figures.plot_history(rows, 12)
    losses, scores = figure.axes
    assert figure.get_figwidth() == style.WIDE and all(axes.title.get_fontsize() >= 8 for axes in figure.axes)
    assert [axes.get_title() for axes in (losses, scores)] == ["Loss", "Validation"]
    assert losses.get_xlabel() == scores.get_xlabel() == "epoch"
    assert [losses.get_ylabel(), scores.get_ylabel()] == ["loss", "score"]
    assert entries(losses) == ["training loss", "best epoch, 12"]
    columns = list(dict.fromkeys(["val_jaccard", *SEGMENTATION[::-1]]))
    assert entries(scores) == [*(style.words(name[4:]) for name in columns), "best epoch, 12"]
    for line, name in zip(scores.lines, columns, strict=False):
        assert list(line.get_xdata()) == [row["epoch"] for row in rows]
        assert list(line.get_ydata()) == [row[name] for row in rows]
    assert list(scores.lines[-1].get_xdata()) == [12, 12]
    widths = [line.get_linewidth() for line in scores.lines]
    assert np.argmax(widths) == 0 and widths.count(max(widths)) == 1


def test_history_of_a_run_that_an_earlier_version_began():
    rows = [
        {name: value for name, value in row.items() if name != "val_loss" or row["epoch"] > 2}
        for row in history(4, "train_loss", "val_loss", "val_jaccard")
    ]
    losses, _ = figures.plot_history(rows, 3).axes
    assert entries(losses) == ["training loss", "validation loss", "best epoch, 3"]
    assert list(np.isnan(losses.lines[1].get_ydata())) == [True, True, False, False]


@pytest.mark.parametrize("alphas, colours", [(ARL50, 4), (MOBILENET, 2)])
def test_history_with_alphas_has_a_third_panel(alphas, colours):
    scores = ["val_mean_auc", *(f"val_{c}_{n}" for c in ("melanoma", "keratosis") for n in ("auc", "se", "sp", "ac"))]
    rows = history(40, "train_loss", "val_loss", *scores, *alphas)
    figure = figures.plot_history(rows, 7)
    loss, validation, alpha = figure.axes
    assert entries(loss) == ["training loss", "validation loss", "best epoch, 7"]
    assert entries(validation)[:2] == ["mean AUC", "melanoma AUC"] and len(entries(validation)) == 10
    assert {to_hex(line.get_color()) for line in loss.lines[:2]} == set(style.COLOURS[:2])
    assert entries(alpha) == [name.removeprefix("alpha_") for name in alphas] + ["best epoch, 7"]
    for line, name in zip(alpha.lines, alphas, strict=False):
        assert list(line.get_ydata()) == [row[name] for row in rows]
    assert len({line.get_color() for line in alpha.lines[:-1]}) == colours
    for axes in (validation, alpha):  # no two lines look the same, and a long legend stands below the curves
        looks = {(line.get_color(), repr(line.get_linestyle()), repr(line._dash_pattern)) for line in axes.lines}
        assert len(looks) == len(axes.lines)
        assert {to_hex(line.get_color()) for line in axes.lines[:-1]} <= set(style.COLOURS)
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0


@pytest.mark.parametrize("epochs", [1, 5])
def test_history_of_few_epochs_has_whole_epochs_on_its_axis(epochs):
    for axes in figures.plot_history(history(epochs, "train_loss", "val_auc", "alpha_layer1.0"), 1).axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)


IMAGE, MASK, _ = draw_lesion(0, 0, (96, 72))


def test_contours():
    shown = [figures.Panel(f"image {i}", IMAGE, MASK if i else None, MASK) for i in range(5)]
    figure = figures.plot_contours(shown, "Contours", columns=3)
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 4, 4, 4, 0]  # each outline has a shadow
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["truth", "prediction"]
    assert [to_hex(axes.lines[-1].get_color()) for axes in figure.axes[:5]] == [style.OUTLINES["prediction"]] * 5
    x, y = figure.axes[0].lines[-1].get_data()
    rows, columns = np.nonzero(MASK)
    assert [x.min(), x.max(), y.min(), y.max()] == [columns.min(), columns.max(), rows.min(), rows.max()]
    assert not figures.plot_contours([figures.Panel("photograph", IMAGE)], columns=1).legends


def test_titles_of_photographs_do_not_overlap():
    title = "ISIC_0000000\nseborrheic keratosis 0.34\nsaid seborrheic keratosis 0.67"
    figure = figures.plot_contours([figures.Panel(title, IMAGE)] * 8, "The worst")
    assert not overlap(figure, [figure._suptitle, *(axes.title for axes in figure.axes)])


def test_heatmaps_of_three_by_six():
    columns = [f"attention of layer{i}.0" for i in range(1, 5)] + ["activation map\nof seborrheic keratosis, predicted"]
    shown = [figures.Panel("ISIC_0000000\nseborrheic keratosis, p = 0.95", IMAGE, MASK)] * 3
    figure = figures.plot_heatmaps(shown, dict.fromkeys(columns, np.ones((3, 3, 4))), "Three lesions")
    assert len(figure.axes) == 3 * 6 + 1
    titles = [axes.title for axes in figure.axes[:6]]
    assert [title.get_text().split() for title in titles] == [name.split() for name in ("photograph", *columns)]
    assert figure.get_figwidth() < style.WIDE + 0.01 and all(title.get_fontsize() >= 8 for title in titles)
    assert not overlap(figure, [*titles, figure._suptitle, *(axes.yaxis.label for axes in figure.axes[:18:6])])
    for axes in figure.axes[:18:6]:
        assert axes.yaxis.label.get_window_extent().x1 <= axes.get_window_extent().x0
    assert all(len(axes.images) == 1 and len(axes.lines) == 2 for axes in figure.axes[:18])
    assert entries(figure.axes[-1]) == ["truth"]


def test_heat_lies_where_the_map_is_high():
    image = np.full((60, 80, 3), 128, np.uint8)
    heat = np.zeros((3, 4))
    heat[0, 3] = 1e-4  # its own scale
    figure = figures.plot_heatmaps(
        [figures.Panel("", image)] * 2, {"map": np.stack([heat, heat - 5]), "flat": np.full((2, 7, 7), 3.0)}
    )
    photograph, drawn, flat, _, other = figure.axes[:5]
    assert np.array_equal(photograph.images[0].get_array(), image)
    pixels = drawn.images[0].get_array()
    assert pixels.shape == image.shape and pixels.dtype == np.uint8
    hot, cold = pixels[:10, -10:].reshape(-1, 3), pixels[30:].reshape(-1, 3)
    assert len(np.unique(hot, axis=0)) == len(np.unique(cold, axis=0)) == 1
    assert hot[0].sum() > cold[0].sum() + 200 and hot[0][0] > hot[0][2]  # bright and yellow
    middle = pixels[5, 50:70].astype(int).sum(1)
    assert (np.diff(middle) >= 0).all() and len(np.unique(middle)) > 10  # bilinear: a ramp and no steps
    assert np.array_equal(flat.images[0].get_array(), np.broadcast_to(cold[0], image.shape))
    assert np.array_equal(other.images[0].get_array(), pixels)
    assert figure.axes[-1].get_legend() is None  # no mask, no outline


def test_classification():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 200, p=(0.2, 0.15, 0.65))
    scores = rng.random((200, 3)) + 0.4 * np.eye(3)[labels]
    probabilities = scores / scores.sum(1, keepdims=True)
    figure = figures.plot_classification(probabilities, labels, "ARL-CNN50")
    roc, confusion, _, histogram = figure.axes
    for i, name in enumerate(("melanoma", "seborrheic keratosis")):
        area = roc_auc_score(labels == i, probabilities[:, i])
        assert entries(roc)[i] == f"{name}, AUC {area:.3f}"
        x, y = roc.lines[i].get_data()
        assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(area)
    counts = np.array([int(text.get_text().split()[0]) for text in confusion.texts]).reshape(3, 3)
    for (truth, predicted), count in np.ndenumerate(counts):
        assert count == ((labels == truth) & (probabilities.argmax(1) == predicted)).sum()
        text = confusion.texts[3 * truth + predicted]
        assert text.get_position() == (predicted, truth)
        assert text.get_text().split()[1] == f"{count / counts[truth].sum():.0%}"
    assert f"{counts.trace() / 200:.3f}" in confusion.get_title()
    assert not overlap(figure, [*confusion.get_xticklabels(), confusion.title, figure._suptitle])
    assert sum(bar.get_height() for bar in histogram.patches) == 200


def test_reliability_by_hand():
    """Right in 1 of 2 up to 0.5 (an edge belongs to the tenth below), in 1 of 1 at 0.51, in 3 of 3 at 0.95."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.45, 0.3, 0.25], [0.51, 0.3, 0.19]] + [[0.02, 0.03, 0.95]] * 3)
    _, _, reliability, histogram = figures.plot_classification(probabilities, np.array([0, 1, 0, 2, 2, 2])).axes
    line = reliability.lines[1]
    assert np.allclose(line.get_data(), [[0.475, 0.51, 0.95], [0.5, 1, 1]])
    assert line.get_label() == f"calibration error {(2 * 0.025 + 0.49 + 3 * 0.05) / 6:.3f}"
    heights = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in histogram.patches}
    assert [heights[at] for at in (0.45, 0.55, 0.95)] == [2, 1, 3] and sum(heights.values()) == 6


@pytest.mark.filterwarnings("error")
def test_classification_without_images_of_a_class():
    roc, confusion = figures.plot_classification(np.array([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]]), [2, 2]).axes[:2]
    assert entries(roc)[:2] == [f"{name}, no AUC: 0 of 2 images" for name in ("melanoma", "seborrheic keratosis")]
    assert [text.get_text() for text in confusion.texts] == ["–"] * 6 + ["1\n50%", "0\n0%", "1\n50%"]


def test_class_balance():
    figure = figures.plot_class_balance({"train": [2, 2, 0, 1], "validation": [1]})
    assert [axes.get_title() for axes in figure.axes] == ["train, 4 images", "validation, 1 images"]
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == [[1, 1, 2], [0, 1, 0]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1\n25%", "1\n25%", "2\n50%"]


def test_best_median_worst():
    groups = figures.best_median_worst(np.array([0.1, 0.9, 0.5, 0.3, 0.8, 0.6]))
    assert {name: list(rows) for name, rows in groups.items()} == {"best": [1, 4], "median": [5, 2], "worst": [3, 0]}
    assert list(figures.best_median_worst(np.array([0.2, 0.4]))["best"]) == [1, 0]
