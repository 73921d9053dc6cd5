"""Figures of several rows: the drawn numbers are those of the scores, and nothing is cut off, covered or too small."""

import math
import re
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from utils import UserError
from utils.evaluation.classification import (
    SPECIFICITIES,
    auc,
    average_precision,
    calibration_error,
    score_intervals,
    sensitivity_at_specificity,
)
from utils.evaluation.segmentation import JACCARD_THRESHOLD
from utils.evaluation.tables import Score, format_number
from utils.visualize.comparison import (
    plot_confusions,
    plot_curves,
    plot_differences,
    plot_groups,
    plot_jaccards,
    plot_operating_points,
    plot_reliabilities,
    save_figure,
)

LONG = "cls-2-{} (112×112 px, 12 of 100 epochs, lr 1e-3, without the 1320 extra training images)"
BY_CLASS = [
    lambda p, labels: plot_curves(p, labels, "roc"),
    lambda p, labels: plot_curves(p, labels, "precision-recall"),
    plot_confusions,
    plot_reliabilities,
    plot_operating_points,
]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a plotting function asked pyplot for a figure or a backend")

    monkeypatch.setattr(plt, "new_figure_manager", refuse)
    monkeypatch.setattr(plt, "switch_backend", refuse)
    yield
    assert not plt.get_fignums()


def labels_of(rows: int) -> list[str]:
    return [LONG.format(i) if i % 3 == 1 else f"cls-1-{i}" for i in range(rows)]


def predictions(rows: int, images: int = 60, classes: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Five seeds and one by turns; without melanoma where `classes` is 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % classes + (3 - classes)
    scores = (rng.random((5 if i % 2 == 0 else 1, images, 3)) + 0.4 * np.eye(3)[labels] for i in range(rows))
    return {
        name: each / each.sum(-1, keepdims=True) for name, each in zip(labels_of(rows), scores, strict=True)
    }, labels


def jaccards(rows: int, images: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.beta(6, 2, (5 if i % 2 == 0 else 1, images)) for i, name in enumerate(labels_of(rows))}


def group_tables(rows: int) -> dict[str, pd.DataFrame]:
    groups = [("all", "all", 600), ("age", "below 40", 200), ("age", "40 to 59", 71), ("sex", "female", 300)]
    tables = {}
    for i, name in enumerate(labels_of(rows)):
        scores = [Score(0.7 + i / 100, 0.01, (0.6, 0.8)), *(Score(0.6 + i / 50, None, (0.5, 0.7)) for _ in range(2))]
        lines = [(*group, score) for group, score in zip(groups, [*scores, Score()], strict=True)]
        tables[name] = pd.DataFrame(lines, columns=["factor", "group", "images", "jaccard"])
    return tables


def differences(rows: int) -> pd.DataFrame:
    pairs = list(combinations(labels_of(rows), 2))
    lines = [(*pair, 600, i / 100, i / 100 - 0.02, i / 100 + 0.02, 0.0001, i / 10) for i, pair in enumerate(pairs)]
    columns = ["first", "second", "images", "difference", "low", "high", "p", "p (Holm)"]
    return pd.DataFrame(lines, columns=columns).assign(**{"p (Holm)": lambda t: t["p (Holm)"].clip(0, 1)})


def legend(figure: Figure) -> list[str]:
    """The entries, each in one line."""
    return [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]


def spread(values: list[float]) -> str:
    mean = format_number(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {format_number(np.std(values, ddof=1))}"


# ------------------------------------------------------------------------------------------------- all of them


def check_layout(figure: Figure, width: float) -> None:
    """The width of a page or column, type that can be read, all text on the page and no two texts on each other."""
    assert isinstance(figure, Figure) and figure.get_figwidth() == width
    figure.draw_without_rendering()
    not_drawn = set()  # ticks beyond the limits
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            not_drawn |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
        if not axes.axison:
            not_drawn |= {*axes.get_xticklabels(), *axes.get_yticklabels()}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in not_drawn]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert 7 <= text.get_fontsize() <= 9, text
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (text, box), (other, its) in combinations(zip(texts, boxes, strict=True), 2):
        assert not box.padded(-1).overlaps(its.padded(-1)), (text, other)
    for each in figure.legends:
        assert not any(each.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
@pytest.mark.parametrize("plot", BY_CLASS, ids=["roc", "pr", "confusions", "reliabilities", "operating points"])
def test_layout_of_classification(plot, rows):
    narrow = rows == 1 and plot in (plot_confusions, plot_reliabilities)
    check_layout(plot(*predictions(rows)), 3.5 if narrow else 7.2)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_layout_of_the_others(rows):
    check_layout(plot_jaccards(jaccards(rows)), 7.2)
    check_layout(plot_groups(group_tables(rows), "jaccard"), 3.5 if rows == 1 else 7.2)
    check_layout(plot_differences(differences(rows), "jaccard"), 3.5 if rows == 1 else 7.2)


@pytest.mark.parametrize("plot", BY_CLASS)
@pytest.mark.parametrize("classes", [1, 2])
def test_a_class_without_images(plot, classes):
    check_layout(plot(*predictions(2, classes=classes)), 7.2)


@pytest.mark.parametrize("plot", BY_CLASS)
def test_wrong_shapes(plot):
    rows, labels = predictions(1)
    with pytest.raises(ValueError, match="no rows"):
        plot({}, labels)
    for wrong in (rows["cls-1-0"][0], rows["cls-1-0"][..., :2], rows["cls-1-0"][:0], rows["cls-1-0"][:, 1:]):
        with pytest.raises(ValueError, match=r"cls-x: .* expected \[S, N, 3\] and \[N\]"):
            plot({**rows, "cls-x": wrong}, labels)


# ------------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("kind, score", [("roc", auc), ("precision-recall", average_precision)])
def test_curves(kind, score):
    rows, labels = predictions(3)
    figure = plot_curves(rows, labels, kind)
    assert [axes.get_title() for axes in figure.axes] == [
        "Melanoma, 20 of 60 images", "Seborrheic keratosis, 20 of 60 images",
    ]  # fmt: skip
    for number, axes in enumerate(figure.axes):
        positive = labels == number
        seeds = [one[:, number] for row in rows.values() for one in row]
        assert len(axes.lines) == len(seeds) + 1 == 12
        for line, one in zip(axes.lines, seeds, strict=False):
            x, y = roc_curve(positive, one)[:2] if kind == "roc" else precision_recall_curve(positive, one)[1::-1]
            assert np.array_equal(line.get_xdata(), x) and np.array_equal(line.get_ydata(), y)
        chance = axes.lines[-1].get_ydata()
        assert list(chance) == ([0, 1] if kind == "roc" else [20 / 60] * 2)
    for text, (label, row) in zip(legend(figure), rows.items(), strict=False):
        melanoma, keratosis = (spread([score(one[:, k], labels == k) for one in row]) for k in (0, 1))
        assert text == f"{label} melanoma {melanoma}, seborrheic keratosis {keratosis}"
        assert ("±" in text) == (len(row) > 1)
    assert legend(figure)[-1].startswith("chance")


def test_ten_rows_look_different():
    rows, labels = predictions(10)
    figure = plot_curves(rows, labels, "roc")
    looks = {(to_rgb(line.get_color()), repr(line._dash_pattern)) for line in figure.legends[0].get_lines()}
    assert len(looks) == 11  # with chance
    figure = plot_operating_points(rows, labels)
    assert len({line.get_marker() for line in figure.legends[0].get_lines()}) == 10


def test_curves_without_images_of_a_class():
    rows, labels = predictions(1, classes=2)
    for kind in ("roc", "precision-recall"):
        figure = plot_curves(rows, labels, kind)
        melanoma, keratosis = figure.axes
        assert [text.get_text() for text in melanoma.texts] == ["no curve: 0 of 60 images"] and not keratosis.texts
        assert len(melanoma.lines) == 1 and len(keratosis.lines) == 6
        assert "melanoma –, seborrheic keratosis ." in legend(figure)[0]


def test_curves_of_another_kind():
    with pytest.raises(ValueError, match="kind 'det'"):
        plot_curves(*predictions(1), "det")


# ------------------------------------------------------------------------------------------------- small multiples


def test_confusions():
    rows, labels = predictions(10)
    figure = plot_confusions(rows, labels)
    assert len(figure.axes) == 10
    assert [axes.get_subplotspec().colspan.start for axes in figure.axes] == [0, 1, 2] * 3 + [0]
    for axes, (label, row) in zip(figure.axes, rows.items(), strict=True):
        counts = np.mean([confusion_matrix(labels, one.argmax(1)) for one in row], axis=0)
        for text, count, share in zip(axes.texts, counts.ravel(), (counts / 20).ravel(), strict=True):
            assert text.get_text() == f"{count:.1f}".removesuffix(".0") + f"\n{share:.0%}"
        accuracy = spread([(one.argmax(1) == labels).mean() for one in row])
        assert " ".join(axes.get_title().split()) == f"{label} accuracy {accuracy}"


def test_reliabilities():
    rows, labels = predictions(4)
    figure = plot_reliabilities(rows, labels)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(figure.axes) == 8 and len(titled) == 4
    for axes, (label, row) in zip(titled, rows.items(), strict=True):
        error = spread([calibration_error(one, labels) for one in row])
        assert " ".join(axes.get_title().split()) == f"{label} calibration error {error}"
    histograms = [axes for axes in figure.axes if axes.patches]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in histograms] == pytest.approx([60] * 4)
    assert len({axes.get_ylim() for axes in histograms}) == 1


# ------------------------------------------------------------------------------------------------- operating points


def test_operating_points():
    rows, labels = predictions(2)
    figure = plot_operating_points(rows, labels)
    for number, (axes, task) in enumerate(zip(figure.axes, ("melanoma", "seborrheic_keratosis"), strict=True)):
        for row, lines in zip(rows.values(), (axes.lines[:6], axes.lines[6:7]), strict=True):
            values = np.array(
                [
                    [sensitivity_at_specificity(one[:, number], labels == number, s) for s in SPECIFICITIES]
                    for one in row
                ]
            )
            assert np.allclose(lines[0].get_ydata(), values.mean(0))
            for line, one in zip(lines[1:], values, strict=False):
                assert np.array_equal(line.get_ydata(), one)
        known = score_intervals(rows[LONG.format(1)][0], labels)[task]["sensitivity_at_specificity"]
        drawn = [[y for _, y in segment] for segment in axes.collections[1].get_segments()]
        assert np.allclose(drawn, list(known.values()))
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.80", "0.90", "0.95"]


# ------------------------------------------------------------------------------------------------- Jaccards


def test_jaccards():
    rows = {"one": np.array([[0.2, 0.6499, 0.65, 0.9]]), "two": np.array([[0.6, 0.9, 0.9, 0.9], [0.9, 0.5, 0.4, 0.9]])}
    figure = plot_jaccards(rows)
    left, right = figure.axes
    assert legend(figure) == [
        "one 50.0 % of images below 0.65",
        "two 37.5 ± 17.7 % of images below 0.65",
        "the challenge's threshold, 0.65",
        "mean over images",
    ]
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


@pytest.mark.parametrize("values", [np.ones(3), np.ones((1, 0)), np.array([[0.5, np.nan]]), np.array([[1.1]])])
def test_jaccards_of_other_values(values):
    with pytest.raises(ValueError, match=r"seg-x: jaccards .* expected \[S, N\]"):
        plot_jaccards({"seg-x": values})
    with pytest.raises(ValueError, match="no rows"):
        plot_jaccards({})


def test_jaccards_of_equal_values_or_one_image():
    check_layout(plot_jaccards({"equal": np.ones((2, 5)), "one image": np.array([[0.4]])}), 7.2)


# ------------------------------------------------------------------------------------------------- forests


@pytest.mark.parametrize("rows", [1, 10])
def test_groups(rows):
    figure = plot_groups(group_tables(rows), "jaccard")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["all, n = 600", "age", "below 40, n = 200", "40 to 59, n = 71", "sex", "female, n = 300"]
    assert list(axes.get_yticks()) == sorted(axes.get_yticks()) and axes.get_ylim()[0] > axes.get_ylim()[1]
    grey = [line for line in axes.lines if line.get_marker() == "None"]
    assert [line.get_xdata()[0] for line in grey] == pytest.approx([0.7 + i / 100 for i in range(rows)])
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() != "None"]
    assert len(dots) == 3 * rows and len({y for _, y in dots}) == 3 * rows
    assert [x for x, _ in dots[:3]] == pytest.approx([0.7, 0.6, 0.6])
    assert [segment.get_segments()[0][:, 0].tolist() for segment in axes.collections[1:4]] == [
        [0.6, 0.8], [0.5, 0.7], [0.5, 0.7],
    ]  # fmt: skip
    (undefined,) = axes.texts
    assert undefined.get_text() == "undefined" and undefined.get_position()[1] == axes.get_yticks()[-1]
    assert axes.get_xlabel() == "Jaccard, 95 % interval"
    assert legend(figure) == labels_of(rows)


def test_groups_of_other_tables():
    table = group_tables(1)["cls-1-0"]
    with pytest.raises(ValueError, match="no rows"):
        plot_groups({}, "jaccard")
    for wrong, score in ((table, "dice"), (table.iloc[:0], "jaccard"), (table.drop(columns="images"), "jaccard")):
        with pytest.raises(ValueError, match="row: expected lines with the columns"):
            plot_groups({"row": wrong}, score)
    with pytest.raises(ValueError, match="b: 601 images of all, all; 600 elsewhere"):
        plot_groups({"a": table, "b": table.assign(images=[601, 200, 71, 300])}, "jaccard")


def test_groups_without_an_interval():
    table = group_tables(1)["cls-1-0"].assign(
        jaccard=[Score(0.5), Score(0.5, None, (math.nan, math.nan)), *[Score()] * 2]
    )
    check_layout(plot_groups({"a": table}, "jaccard"), 3.5)


def test_differences():
    table = differences(10)
    figure = plot_differences(table, "melanoma_auc")
    (axes,) = figure.axes
    assert len(table) == 45 and figure.get_figheight() > 45 * 0.2
    for text, first, second in zip(axes.get_yticklabels(), table["first"], table["second"], strict=True):
        assert " ".join(text.get_text().split()) == f"{first} − {second}"
    zero, dots = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(dots.get_xdata()) == list(table["difference"])
    assert [segment[:, 0].tolist() for segment in axes.collections[1].get_segments()] == table[
        ["low", "high"]
    ].to_numpy().tolist()
    assert [text.get_text() for text in axes.texts[:4]] == ["p (Holm)", "<.001", ".100", ".200"]
    assert [text.get_position()[1] for text in axes.texts[1:]] == list(axes.get_yticks()) == list(dots.get_ydata())
    assert axes.get_xlabel() == "difference of melanoma AUC, 95 % interval, 600 images"


def test_nothing_to_compare():
    figure = plot_differences(differences(1), "melanoma_auc")
    assert "nothing to compare" in figure.axes[0].texts[0].get_text()
    with pytest.raises(ValueError, match=r"no p \(Holm\)"):
        plot_differences(differences(3).drop(columns="p (Holm)"), "melanoma_auc")


# ------------------------------------------------------------------------------------------------- files


def test_saved_figures(tmp_path):
    figure = plot_jaccards(jaccards(1))
    pdf, png = save_figure(figure, tmp_path / "new" / "figures", "jaccards 0.65")
    assert [pdf.name, png.name] == ["jaccards 0.65.pdf", "jaccards 0.65.png"]
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in content and b"/Type3" not in content  # TrueType, embedded
    width, height = map(float, re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content).groups())
    assert (width / 72, height / 72) == pytest.approx(tuple(figure.get_size_inches()), abs=0.01)
    with Image.open(png) as image:
        assert image.size[0] == 7.2 * 300 and image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert save_figure(plot_jaccards(jaccards(1)), tmp_path, "again")[0].read_bytes() == content


def test_figure_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.roc: the figure cannot be written") as error:
        save_figure(Figure(), tmp_path / "file", "roc")
    assert "\n" not in str(error.value)
