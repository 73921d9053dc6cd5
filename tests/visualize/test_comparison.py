"""Figures of several rows: the drawn numbers are those of the scores, and nothing is cut off, covered or too small."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn import metrics

from utils.evaluation.classification import classification_scores, score_intervals
from utils.evaluation.export import Score, format_number
from utils.evaluation.segmentation import JACCARD_THRESHOLD
from utils.visualize import comparison, style

LONG = "cls-2-{} (112×112 px, 12 of 100 epochs, lr 1e-3, without the 1320 extra training images)"
pytestmark = pytest.mark.filterwarnings("error")


def labels_of(rows: int) -> list[str]:
    return [LONG.format(i) if i % 3 == 1 else f"cls-1-{i}" for i in range(rows)]


def predictions(rows: int, classes: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of 60 images, by five seeds and one by turns; without melanoma where `classes` is 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes + (3 - classes)
    scores = (rng.random((5 if i % 2 == 0 else 1, 60, 3)) + 0.4 * np.eye(3)[labels] for i in range(rows))
    return {n: each / each.sum(-1, keepdims=True) for n, each in zip(labels_of(rows), scores, strict=True)}, labels


def group_tables(rows: int) -> dict[str, pd.DataFrame]:
    groups = [("all", "all", 600), ("age", "below 40", 200), ("age", "40 to 59", 71), ("sex", "female", 300)]
    tables = {}
    for i, name in enumerate(labels_of(rows)):
        scores = [Score(0.7 + i / 100, 0.01, (0.6, 0.8)), *[Score(0.6 + i / 50, None, (0.5, 0.7))] * 2, Score()]
        lines = [(*group, score) for group, score in zip(groups, scores, strict=True)]
        tables[name] = pd.DataFrame(lines, columns=["factor", "group", "images", "jaccard"])
    return tables


def differences(rows: int) -> pd.DataFrame:
    lines = [
        (*pair, 600, i / 100, i / 100 - 0.02, i / 100 + 0.02, 0.0001, min(i / 10, 1))
        for i, pair in enumerate(combinations(labels_of(rows), 2))
    ]
    return pd.DataFrame(lines, columns=["first", "second", "images", "difference", "low", "high", "p", "p (Holm)"])


def legend(figure: Figure) -> list[str]:
    """The entries, each in one line."""
    return [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]


def spread(values: list[float]) -> str:
    mean = format_number(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {format_number(np.std(values, ddof=1))}"


def check_layout(figure: Figure, width: float) -> None:
    """The width of a page or column, type that can be read, all text on the page and no two texts on each other."""
    assert figure.get_figwidth() == width and not plt.get_fignums()  # nothing that pyplot would keep
    figure.draw_without_rendering()
    not_drawn = set()  # ticks beyond the limits
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            not_drawn |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in not_drawn]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert 7 <= text.get_fontsize() <= 9, text
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (text, box), (other, its) in combinations(zip(texts, boxes, strict=True), 2):
        assert not box.padded(-1).overlaps(its.padded(-1)), (text, other)
    assert not any(each.get_window_extent().overlaps(axes.bbox) for each in figure.legends for axes in figure.axes)


@pytest.mark.parametrize("name", ["plot_curves", "plot_confusions", "plot_reliabilities", "plot_operating_points"])
def test_layout_of_classification(name):
    plot, narrow = getattr(comparison, name), name in ("plot_confusions", "plot_reliabilities")
    kinds = (["roc"], ["precision-recall"]) if name == "plot_curves" else ([], [])
    check_layout(plot(*predictions(1), *kinds[0]), 3.5 if narrow else 7.2)
    check_layout(plot(*predictions(4), *kinds[1]), 7.2)
    if not narrow:
        check_layout(plot(*predictions(2, classes=1), *kinds[1]), 7.2)  # nevi alone


@pytest.mark.parametrize("rows", [1, 4])
def test_layout_of_the_others(rows):
    rng = np.random.default_rng(1)
    check_layout(comparison.plot_jaccards({name: rng.beta(6, 2, (5, 40)) for name in labels_of(rows)}), 7.2)
    check_layout(comparison.plot_groups(group_tables(rows), "jaccard"), 3.5 if rows == 1 else 7.2)
    check_layout(comparison.plot_differences(differences(rows), "jaccard"), 3.5 if rows == 1 else 7.2)
    check_layout(comparison.plot_jaccards({"equal": np.ones((2, 5)), "one image": np.array([[0.4]])}), 7.2)


def test_ten_rows_look_different():
    for looks in (style.line_looks(range(10)), style.dot_looks(range(10))):
        assert len({repr(look) for look in looks}) == 10


@pytest.mark.parametrize("kind", ["roc", "precision-recall"])
def test_curves(kind):
    score = metrics.roc_auc_score if kind == "roc" else metrics.average_precision_score
    rows, labels = predictions(3)
    figure = comparison.plot_curves(rows, labels, kind)
    assert figure.axes[1].get_title() == "Seborrheic keratosis, 20 of 60 images"
    for number, axes in enumerate(figure.axes):
        positive, curve = labels == number, metrics.roc_curve if kind == "roc" else metrics.precision_recall_curve
        assert len(axes.lines) == len(rows) + 1 and len(axes.collections) == 2  # bands of those with several seeds
        for line, row in zip(axes.lines, rows.values(), strict=False):
            heights = []
            for a, b, _ in (curve(positive, one[:, number]) for one in row):
                if len(row) == 1:
                    assert np.array_equal(line.get_data(), (a, b) if kind == "roc" else (b[::-1], a[::-1]))
                # ROC: along the curve; else the precision with which so many of the positives are found.
                at = line.get_xdata()
                heights.append(np.interp(at, a, b) if kind == "roc" else [a[b >= x - 1e-9][-1] for x in at])
            assert len(row) == 1 or np.allclose(line.get_ydata(), np.mean(heights, axis=0))
        low, high = axes.collections[0].get_paths()[0].vertices[:, 1].min(), axes.collections[0].get_paths()[0]
        assert low >= 0 and high.vertices[:, 1].max() <= 1
        assert list(axes.lines[-1].get_ydata()) == ([0, 1] if kind == "roc" else [20 / 60] * 2)
    for text, (label, row) in zip(legend(figure), rows.items(), strict=False):
        melanoma, keratosis = (spread([score(labels == k, one[:, k]) for one in row]) for k in (0, 1))
        assert text == f"{label} melanoma {melanoma}, seborrheic keratosis {keratosis}"
    assert legend(figure)[-1].startswith("chance")
    figure = comparison.plot_curves(*predictions(1, classes=2), kind)  # without melanoma
    assert not any(len(line.get_xdata()) for line in figure.axes[0].lines[:-1])
    assert all(len(line.get_xdata()) for line in figure.axes[1].lines)
    assert "melanoma –, seborrheic keratosis ." in legend(figure)[0]


@pytest.mark.parametrize("name, score", [("confusions", "accuracy"), ("reliabilities", "calibration_error")])
def test_titles_have_the_score(name, score):
    rows, labels = predictions(4)
    titled = [axes for axes in getattr(comparison, f"plot_{name}")(rows, labels).axes if axes.get_title()]
    assert [axes.get_subplotspec().colspan.start for axes in titled] == [0, 1, 2, 0]
    for axes, (label, row) in zip(titled, rows.items(), strict=True):
        value = spread([classification_scores(one, labels)[score] for one in row])
        assert " ".join(axes.get_title().split()) == f"{label} {score.replace('_', ' ')} {value}"


def test_means_over_seeds():
    rows, labels = predictions(4)
    for axes, row in zip(comparison.plot_confusions(rows, labels).axes, rows.values(), strict=True):
        counts = np.mean([metrics.confusion_matrix(labels, one.argmax(1)) for one in row], axis=0)
        for text, count, share in zip(axes.texts, counts.ravel(), (counts / 20).ravel(), strict=True):
            assert text.get_text() == f"{count:.1f}".removesuffix(".0") + f"\n{share:.0%}"
    histograms = [axes for axes in comparison.plot_reliabilities(rows, labels).axes if axes.patches]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in histograms] == pytest.approx([60] * 4)
    assert len({axes.get_ylim() for axes in histograms}) == 1


def test_operating_points():
    rows, labels = predictions(2)
    pairs = [number // 2 for number in range(len(labels))]  # drawn together
    figure = comparison.plot_operating_points(rows, labels, pairs)
    for task, axes in zip(("melanoma", "seborrheic_keratosis"), figure.axes, strict=True):
        for row, lines in zip(rows.values(), (axes.lines[:6], axes.lines[6:7]), strict=True):
            scores = [classification_scores(one, labels)[task]["sensitivity_at_specificity"] for one in row]
            values = np.array([[*each.values()] for each in scores])
            for line, each in zip(lines, [values.mean(0), *values], strict=False):
                assert np.allclose(line.get_ydata(), each)
        known = score_intervals(rows[LONG.format(1)][0], labels, groups=pairs)[task]["sensitivity_at_specificity"]
        drawn = [[y for _, y in segment] for segment in axes.collections[1].get_segments()]
        assert np.allclose(drawn, list(known.values()))
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.80", "0.90", "0.95"]


def test_jaccards():
    rows = {"one": np.array([[0.2, 0.6499, 0.65, 0.9]]), "two": np.array([[0.6, 0.9, 0.9, 0.9], [0.9, 0.5, 0.4, 0.9]])}
    figure = comparison.plot_jaccards(rows)
    left, right = figure.axes
    failures = ["one 50.0 % of images below 0.65", "two 37.5 ± 17.7 % of images below 0.65"]
    assert legend(figure) == [*failures, "the challenge's threshold, 0.65", "mean over images"]
    for axes in (left, right):
        assert [line for line in axes.lines if list(line.get_xdata()) == [JACCARD_THRESHOLD] * 2]
    assert [text.get_text() for text in left.get_yticklabels()] == ["one", "two"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first row above
    means = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "D"]
    assert means == pytest.approx([values.mean() for values in rows.values()])
    points = [dots.get_offsets()[:, 0] for dots in left.collections if len(dots.get_offsets()) == 4]
    assert np.allclose(points, [values.mean(0) for values in rows.values()])
    for line, values in zip(right.lines, rows.values(), strict=False):
        x, y = line.get_data()
        for at in (0.3, 0.649, 0.651, 0.95):
            assert [0, *y][np.searchsorted(x, at, side="right")] == pytest.approx((values < at).mean())


def test_groups():
    figure = comparison.plot_groups(group_tables(10), "jaccard")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["all, n = 600", "age", "below 40, n = 200", "40 to 59, n = 71"]  # nobody has a score of "female"
    assert list(axes.get_yticks()) == sorted(axes.get_yticks()) and axes.get_ylim()[0] > axes.get_ylim()[1]
    grey = [line for line in axes.lines if line.get_marker() == "None"]
    assert [line.get_xdata()[0] for line in grey] == pytest.approx([0.7 + i / 100 for i in range(10)])
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() != "None"]
    assert len(dots) == len({y for _, y in dots}) == 30
    assert [x for x, _ in dots[:3]] == pytest.approx([0.7, 0.6, 0.6])
    intervals = [segment.get_segments()[0][:, 0].tolist() for segment in axes.collections[1:4]]
    assert intervals == [[0.6, 0.8], [0.5, 0.7], [0.5, 0.7]]
    assert axes.get_xlabel() == "Jaccard, 95 % interval"
    none = comparison.plot_groups({name: table[3:] for name, table in group_tables(2).items()}, "jaccard")
    assert [text.get_text() for text in none.texts] == ["Jaccard: undefined in every group"] and not none.axes
    assert legend(figure) == labels_of(10)


def test_differences():
    table = differences(10)
    figure = comparison.plot_differences(table, "melanoma_auc")
    (axes,) = figure.axes
    assert len(table) == 45 and figure.get_figheight() > 45 * 0.2
    for text, first, second in zip(axes.get_yticklabels(), table["first"], table["second"], strict=True):
        assert " ".join(text.get_text().split()) == f"{first} − {second}"
    zero, dots = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(dots.get_xdata()) == list(table["difference"])
    drawn = [segment[:, 0].tolist() for segment in axes.collections[1].get_segments()]
    assert drawn == table[["low", "high"]].to_numpy().tolist()
    assert [text.get_text() for text in axes.texts[:4]] == ["p (Holm)", "<.001", ".100", ".200"]
    assert [text.get_position()[1] for text in axes.texts[1:]] == list(axes.get_yticks()) == list(dots.get_ydata())
    assert axes.get_xlabel() == "difference of melanoma AUC, 95 % interval, 600 images"
    assert "nothing to compare" in comparison.plot_differences(differences(1), "melanoma_auc").texts[0].get_text()


def test_saved_figures(tmp_path):
    figure, again = (comparison.plot_differences(differences(3), "jaccard") for _ in range(2))
    pdf, png = comparison.save_figure(figure, tmp_path / "new" / "figures", "jaccards 0.65")
    assert [pdf.name, png.name] == ["jaccards 0.65.pdf", "jaccards 0.65.png"]
    content = pdf.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content  # TrueType, embedded
    with Image.open(png) as image:
        assert image.size == tuple(np.floor(figure.get_size_inches() * 300))
    assert comparison.save_figure(again, tmp_path, "again")[0].read_bytes() == content
