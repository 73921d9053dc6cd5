"""Figures: they render without pyplot and without a backend, show every value once, and put it in the right place."""

import io

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from utils.data.dermoscopy import draw_lesion
from utils.visualize.figures import (
    HeatRow,
    Panel,
    best_median_worst,
    plot_classification,
    plot_contours,
    plot_heatmaps,
    plot_history,
)


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch):
    """A figure of pyplot's stays in memory, and one that needs a backend may fail on a machine without a screen."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a plotting function asked pyplot for a figure or a backend")

    monkeypatch.setattr(plt, "new_figure_manager", refuse)
    monkeypatch.setattr(plt, "switch_backend", refuse)
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


def render(figure: Figure) -> np.ndarray:
    """The figure as `Run.save_figure` writes it, uint8 [H, W, 3] BGR."""
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60, bbox_inches="tight")
    return cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)


def labels_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def overlap(figure: Figure, texts: list) -> bool:
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def history(epochs: int, scores: list[str], alphas: list[str] = ()) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    names = ["train_loss", *scores, *alphas]
    return [{"epoch": float(epoch), "lr": 1e-4} | dict(zip(names, rng.random(len(names)), strict=True))
            for epoch in range(1, epochs + 1)]  # fmt: skip


# ------------------------------------------------------------------------------------------------- plot_history

SEGMENTATION = [f"val_{n}" for n in ("accuracy", "sensitivity", "specificity", "jaccard", "threshold_jaccard", "dice")]
ARL50 = [f"alpha_layer{level}.{i}" for level, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]


def test_history_of_a_segmentation():
    figure = plot_history(rows := history(30, SEGMENTATION), best_epoch=12)
    assert render(figure).size and len(figure.axes) == 2
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["Training", "Validation"]
    assert labels_of(left) == ["training loss", "best epoch, 12"]
    assert labels_of(right) == [name[4:].replace("_", " ") for name in SEGMENTATION] + ["best epoch, 12"]
    for line, name in zip(right.lines, SEGMENTATION, strict=False):
        assert list(line.get_xdata()) == [row["epoch"] for row in rows]
        assert list(line.get_ydata()) == [row[name] for row in rows]


def test_history_with_alphas_has_a_third_panel():
    scores = ["val_loss", *(f"val_{c}_{n}" for c in ("melanoma", "keratosis") for n in ("auc", "se", "sp", "acc"))]
    figure = plot_history(rows := history(40, [*scores, "val_mean_auc", "val_a", "val_b", "val_c"], ARL50), 7)
    assert render(figure).size and len(figure.axes) == 3
    loss, validation, alpha = figure.axes
    assert labels_of(loss) == ["training loss", "validation loss", "best epoch, 7"]
    assert "loss" not in " ".join(labels_of(validation)) and "mean AUC" in labels_of(validation)
    assert labels_of(alpha) == [name.removeprefix("alpha_") for name in ARL50] + ["best epoch, 7"]
    for line, name in zip(alpha.lines, ARL50, strict=False):
        assert list(line.get_ydata()) == [row[name] for row in rows]
    for axes in (validation, alpha):
        # No two lines look the same, and a long legend stands below the curves.
        styles = {(to_rgb(line.get_color()), repr(line._dash_pattern)) for line in axes.lines[:-1]}
        assert len(styles) == len(axes.lines) - 1
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_history_of_few_epochs_has_whole_epochs_on_its_axis(epochs):
    figure = plot_history(history(epochs, ["val_auc"], ["alpha_layer1.0"]))
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)


# ------------------------------------------------------------------------------------------------- plot_heatmaps


def heat_rows(count: int, columns: list[str], mask: bool = True) -> list[HeatRow]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        image, truth, _ = draw_lesion(0, i, (96, 72))
        heats = {name: rng.normal(size=(3, 4)) for name in columns}
        rows.append(HeatRow(f"ISIC_{i:07}\nseborrheic keratosis", image, heats, truth if mask else None))
    return rows


def test_heatmaps_of_six_by_six():
    columns = [f"attention of layer{i}.0" for i in range(1, 5)] + ["activation map\nof seborrheic keratosis, predicted"]
    figure = plot_heatmaps(heat_rows(6, columns), "Six lesions")
    assert render(figure).size and len(figure.axes) == 6 * 6 + 1
    titles = [axes.title for axes in figure.axes[:6]]
    assert [title.get_text() for title in titles[:-1]] == ["photograph", *columns[:-1]]
    assert titles[-1].get_text() == "activation map\nof seborrheic\nkeratosis, predicted"
    texts = [*titles, figure._suptitle, *(axes.yaxis.label for axes in figure.axes[:36:6])]
    assert len({text.get_text() for text in texts}) == 6 + 1 + 6 and not overlap(figure, texts)
    for axes in figure.axes[:36:6]:
        assert axes.yaxis.label.get_window_extent().x1 <= axes.get_window_extent().x0
    assert all(len(axes.images) == 1 and len(axes.lines) == 2 for axes in figure.axes[:36])  # outline and its shadow


def test_heatmaps_of_one_image_without_a_mask():
    figure = plot_heatmaps(heat_rows(1, ["CAM"], mask=False))
    assert render(figure).size and len(figure.axes) == 3
    assert not any(axes.lines for axes in figure.axes[:2])
    assert figure.axes[2].get_legend() is None


def test_heat_lies_where_the_map_is_high():
    image = np.full((60, 80, 3), 128, np.uint8)
    heat = np.zeros((3, 4))
    heat[0, 3] = 1e-4  # its own scale
    rows = [HeatRow("", image, {"map": heat, "flat": np.full((7, 7), 3.0)}), HeatRow("", image, {"other": heat - 5})]
    figure = plot_heatmaps(rows)
    photograph, drawn, flat, other = figure.axes[:4]
    assert np.array_equal(photograph.images[0].get_array(), image)
    pixels = drawn.images[0].get_array()
    assert pixels.shape == image.shape and pixels.dtype == np.uint8
    hot, cold = pixels[:10, -10:].reshape(-1, 3), pixels[30:].reshape(-1, 3)
    assert len(np.unique(hot, axis=0)) == len(np.unique(cold, axis=0)) == 1
    assert hot[0].sum() > cold[0].sum() + 200 and hot[0][0] > hot[0][2]  # bright and yellow
    middle = pixels[5, 50:70].astype(int).sum(1)
    assert (np.diff(middle) >= 0).all() and len(np.unique(middle)) > 10  # bilinear: a ramp and no steps
    assert np.array_equal(flat.images[0].get_array(), np.broadcast_to(cold[0], image.shape))
    assert not other.images and [len(axes.images) for axes in figure.axes[4:8]] == [1, 0, 0, 1]
    assert np.array_equal(figure.axes[7].images[0].get_array(), pixels)


# ------------------------------------------------------------------------------------------------- plot_classification


def test_classification():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 200, p=(0.2, 0.15, 0.65))
    scores = rng.random((200, 3)) + 0.4 * np.eye(3)[labels]
    probabilities = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
    figure = plot_classification(probabilities, labels, "ARL-CNN50")
    assert render(figure).size and len(figure.axes) == 4
    roc, confusion, _, histogram = figure.axes
    for i, name in enumerate(("melanoma", "seborrheic keratosis")):
        area = roc_auc_score(labels == i, probabilities[:, i])
        assert labels_of(roc)[i] == f"{name}, AUC {area:.3f}"
        x, y = roc.lines[i].get_data()
        assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(area)
    counts = np.array([int(text.get_text().split()[0]) for text in confusion.texts]).reshape(3, 3)
    for truth in range(3):
        for predicted in range(3):
            assert counts[truth, predicted] == ((labels == truth) & (probabilities.argmax(1) == predicted)).sum()
            text = confusion.texts[3 * truth + predicted]
            assert text.get_position() == (predicted, truth)
            assert text.get_text().split()[1] == f"{counts[truth, predicted] / counts[truth].sum():.0%}"
    assert f"{counts.trace() / 200:.3f}" in confusion.get_title()
    assert [tick.get_text() for tick in confusion.get_xticklabels()] == ["melanoma", "seborrheic\nkeratosis", "nevus"]
    assert not overlap(figure, [*confusion.get_xticklabels(), confusion.title, figure._suptitle])
    assert sum(bar.get_height() for bar in histogram.patches) == 200


def test_reliability_by_hand():
    """Two tenths: up to 0.5 (an edge belongs to the tenth below), right in 1 of 2, and 0.95, right in 3 of 3."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.45, 0.3, 0.25]] + [[0.02, 0.03, 0.95]] * 3)
    figure = plot_classification(probabilities, np.array([0, 1, 2, 2, 2]))
    _, _, reliability, histogram = figure.axes
    line = reliability.lines[1]
    assert np.allclose(line.get_data(), [[0.475, 0.95], [0.5, 1]])
    assert line.get_label() == f"expected calibration error {(2 * 0.025 + 3 * 0.05) / 5:.3f}"
    heights = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in histogram.patches}
    assert heights[0.45] == 2 and heights[0.95] == 3 and sum(heights.values()) == 5


@pytest.mark.filterwarnings("error")
def test_classification_without_images_of_a_class():
    figure = plot_classification(np.array([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]]), [2, 2])
    assert render(figure).size
    roc, confusion = figure.axes[:2]
    assert labels_of(roc)[:2] == [
        "melanoma, no AUC: 0 of 2 images",
        "seborrheic keratosis, no AUC: 0 of 2 images",
    ]
    assert [text.get_text() for text in confusion.texts] == ["–"] * 6 + ["1\n50%", "0\n0%", "1\n50%"]


@pytest.mark.parametrize("shape,count", [((4, 2), 4), ((4, 3), 3), ((0, 3), 0)])
def test_classification_of_other_shapes(shape, count):
    with pytest.raises(ValueError, match="expected \\[N, 3\\] and \\[N\\]"):
        plot_classification(np.zeros(shape), np.zeros(count, int))


# ------------------------------------------------------------------------------------------------- contours


def test_contours():
    image, mask, _ = draw_lesion(0, 0, (96, 72))
    panels = [Panel(f"image {i}", image, mask if i else None, mask) for i in range(5)]
    figure = plot_contours(panels, "Contours", columns=3)
    assert render(figure).size and len(figure.axes) == 6
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 4, 4, 4, 0]


def test_best_median_worst():
    groups = best_median_worst(np.array([0.1, 0.9, 0.5, 0.3, 0.8, 0.6]), count=2)
    assert {name: list(rows) for name, rows in groups.items()} == {"best": [1, 4], "median": [5, 2], "worst": [3, 0]}
    assert list(best_median_worst(np.array([0.2, 0.4]))["best"]) == [1, 0]
