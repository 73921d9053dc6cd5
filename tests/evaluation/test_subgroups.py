"""Facts about images against drawn and real files, groups against their bounds, scores against independent ones."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.evaluation.test_runs import IDS, classification_run, labels_of, segmentation_run
from utils.data.isic import CLASSES, lesions
from utils.evaluation.classification import score_intervals
from utils.evaluation.rows import Row, result_rows
from utils.evaluation.runs import find_runs
from utils.evaluation.statistics import bootstrap_interval
from utils.evaluation.subgroups import SEGMENTATION, classification_groups, image_facts, segmentation_groups, subgroups
from utils.evaluation.tables import Score, classification_table, segmentation_table

FACTORS = ["class", "lesion size", "lesion touches the border", "age", "sex"]
FACTS = ["image_id", "class", "lesion_share", "touches_border", "age", "sex"]
VALIDATION = "ISIC-2017_Validation"


def add_image(root: Path, number: int, mask: np.ndarray | None = None) -> str:
    """A photograph and its mask (bool [H, W]) in the validation folders."""
    id_ = f"ISIC_{number:07}"
    for folder in ("Data", "Part1_GroundTruth"):
        (root / f"{VALIDATION}_{folder}").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8)).save(root / f"{VALIDATION}_Data" / f"{id_}.jpg")
    if mask is not None:
        stored = Image.fromarray(mask.astype(np.uint8) * 255)
        stored.save(root / f"{VALIDATION}_Part1_GroundTruth" / f"{id_}_segmentation.png")
    return id_


def lesion(*pixels: tuple[int, int], height: int = 8, width: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def facts_of(split: str, **columns) -> pd.DataFrame:
    """Nothing is known but what `columns` say, of the images that `tests.evaluation.test_runs` draws."""
    nothing = {"class": None, "lesion_share": math.nan, "touches_border": None, "age": math.nan, "sex": None}
    return pd.DataFrame({"image_id": IDS[split], **nothing, **columns})


def row_of(folder: Path, split: str) -> Row:
    runs = find_runs(folder)
    (row,) = result_rows(runs, runs[0].task, split)
    return row


def line_of(table: pd.DataFrame, factor: str, group: str) -> pd.Series:
    (number,) = np.flatnonzero((table["factor"] == factor) & (table["group"] == group))
    return table.iloc[number]


def assert_close(score: Score, mean: float, std: float | None, interval: tuple[float, float]) -> None:
    assert score.mean == pytest.approx(mean, abs=1e-12)
    assert score.std == (None if std is None else pytest.approx(std, abs=1e-12))
    assert score.interval == pytest.approx(interval, abs=1e-12)


def test_facts_of_drawn_images(tmp_path):
    inner = lesion(*((row, column) for row in range(2, 6) for column in range(1, 5)))
    add_image(tmp_path, 1, inner)
    add_image(tmp_path, 2, ~inner)
    add_image(tmp_path, 3, lesion())
    add_image(tmp_path, 4)
    add_image(tmp_path, 5)  # neither label nor mask
    (tmp_path / f"{VALIDATION}_Part3_GroundTruth.csv").write_text(
        "image_id,melanoma,seborrheic_keratosis\nISIC_0000001,1,0\nISIC_0000002,0,1\nISIC_0000004,0,0\n"
    )
    (tmp_path / f"{VALIDATION}_Data_metadata.csv").write_text(
        "image_id,age_approximate,sex\nISIC_0000001,55,female\nISIC_0000003,unknown,male\nISIC_0000004,30,unknown\n"
    )
    facts = image_facts(tmp_path, "validation")
    assert list(facts) == FACTS
    assert [[None if pd.isna(value) else value for value in line] for line in facts.to_numpy(dtype=object)] == [
        ["ISIC_0000001", "melanoma", 0.2, False, 55.0, "female"],
        ["ISIC_0000002", "seborrheic_keratosis", 0.8, True, None, None],
        ["ISIC_0000003", None, 0.0, False, None, "male"],
        ["ISIC_0000004", "nevus", None, None, 30.0, None],
    ]
    for name in ("class", "touches_border", "sex"):
        assert not any(isinstance(value, float) for value in facts[name])  # None, not NaN
    assert facts["lesion_share"].dtype == facts["age"].dtype == np.float64


@pytest.mark.parametrize("touches", [True, False])
@pytest.mark.parametrize(("row", "column"), [(0, 4), (7, 4), (3, 0), (3, 9)])
def test_a_lesion_touches_each_side_with_its_outermost_pixels(tmp_path, row, column, touches):
    pixel = (row, column) if touches else (np.clip(row, 1, 6), np.clip(column, 1, 8))
    add_image(tmp_path, 1, lesion(pixel))
    (found,) = image_facts(tmp_path, "validation")["touches_border"]
    assert found is touches


def test_bounds_of_the_groups():
    shares = [0.0, 0.0999, 0.1, 0.2, 0.3, 0.3001, 1.0, math.nan]
    ages = [0, 39, 40, 59, 59.5, 60, 85, math.nan]
    ids = [f"ISIC_{number}" for number in range(8)]
    facts = pd.DataFrame({"image_id": ids, "lesion_share": shares, "age": ages})
    facts["class"] = ["nevus", "melanoma", "nevus", None, "melanoma", None, "nevus", None]
    facts["touches_border"] = [False, True, None, True, False, False, None, False]
    facts["sex"] = ["male", None, "female", None, "male", "male", None, "female"]

    def at(*places: int) -> list[str]:
        return [ids[place] for place in places]

    groups = subgroups(facts)
    assert groups == {
        "class": {"melanoma": at(1, 4), "nevus": at(0, 2, 6)},
        "lesion size": {"under 10 %": at(0, 1), "10 to 30 %": at(2, 3, 4), "over 30 %": at(5, 6)},
        "lesion touches the border": {"no": at(0, 4, 5, 7), "yes": at(1, 3)},
        "age": {"under 40": at(0, 1), "40 to 59": at(2, 3, 4), "60 and over": at(5, 6)},
        "sex": {"female": at(2, 7), "male": at(0, 4, 5)},
    }
    assert list(groups) == FACTORS


@pytest.mark.parametrize(
    ("make", "names", "groups_of", "table_of"),
    [
        (segmentation_run, SEGMENTATION, segmentation_groups, segmentation_table),
        (classification_run, ("MEL AUC", "SK AUC"), classification_groups, classification_table),
    ],
)
def test_all_images_have_the_scores_of_the_table(tmp_path, make, names, groups_of, table_of):
    for seed in range(2):
        make(tmp_path / f"seed{seed}", seed=seed)
    (expected,) = [line for _, line in table_of(find_runs(tmp_path), "test").iterrows()]
    groups = groups_of(row_of(tmp_path, "test"), "test", facts_of("test"))
    assert groups[["factor", "group", "images"]].to_numpy().tolist() == [["all", "all", 40]]
    for name in names:
        assert_close(groups[name][0], expected[name].mean, expected[name].std, expected[name].interval)


def test_images_without_facts_and_facts_without_scores(tmp_path):
    segmentation_run(tmp_path)
    known = facts_of("test", sex="male").iloc[:7]
    others = pd.DataFrame({**known, "image_id": [f"ISIC_09{number:05}" for number in range(7)], "sex": "female"})
    table = segmentation_groups(row_of(tmp_path, "test"), "test", pd.concat([others, known], ignore_index=True))
    assert table[["factor", "group", "images"]].to_numpy().tolist() == [["all", "all", 40], ["sex", "male", 7]]
    values = pd.read_csv(tmp_path / "per_image.csv").query("split == 'test'")["dice"][:7]
    assert_close(table["dice"][1], values.mean(), None, bootstrap_interval(values))


def test_classification_scores_of_groups_are_those_of_their_images(tmp_path):
    for seed in (0, 1):
        classification_run(tmp_path / f"seed{seed}", seed=seed)
    places = np.delete(np.arange(40), [1, 4, 6, 8, 9, 10, 14, 22, 23, 30])
    facts = facts_of("test", sex=["female" if number in places else "male" for number in range(40)])
    line = line_of(classification_groups(row_of(tmp_path, "test"), "test", facts), "sex", "female")
    files = [pd.read_csv(tmp_path / f"seed{seed}/test_predictions.csv") for seed in (0, 1)]
    probabilities = np.stack([file[list(CLASSES)].to_numpy()[places] for file in files])
    labels = labels_of("test")[places]
    intervals = score_intervals(probabilities, labels, groups=np.array(lesions(IDS["test"]))[places])
    assert line["images"] == len(places)
    for number, (short, name) in enumerate((("MEL", "melanoma"), ("SK", "seborrheic keratosis"))):
        positive = labels == number
        assert line[name] == positive.sum() and isinstance(line[name], (int, np.integer))
        aucs = [roc_auc_score(positive, one[:, number]) for one in probabilities]
        interval = intervals[name.replace(" ", "_")]["auc"]
        assert_close(line[f"{short} AUC"], sum(aucs) / 2, abs(aucs[0] - aucs[1]) / math.sqrt(2), tuple(interval))
    shares = (probabilities.argmax(axis=2) == labels).mean(axis=1)
    deviation = abs(shares[0] - shares[1]) / math.sqrt(2)
    assert_close(line["accuracy"], shares.mean(), deviation, tuple(intervals["accuracy"]))


def test_an_auc_rests_on_five_of_either_side(tmp_path):
    classification_run(tmp_path)
    for positives in (4, 5):
        sexes = np.where(labels_of("test") == 1, "female", "male")
        sexes[np.flatnonzero(labels_of("test") == 0)[:positives]] = "female"  # melanomas among the keratoses
        table = classification_groups(row_of(tmp_path, "test"), "test", facts_of("test", sex=sexes))
        female, male = line_of(table, "sex", "female"), line_of(table, "sex", "male")
        assert female["melanoma"] == positives
        for name in ("MEL AUC", "SK AUC"):  # in this group the positives of one are the negatives of the other
            assert (str(female[name]) == "–") == (positives == 4)
        assert male["seborrheic keratosis"] == 0 and str(male["SK AUC"]) == "–" and male["MEL AUC"].mean > 0.5
