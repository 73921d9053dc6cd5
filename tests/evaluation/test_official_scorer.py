"""Our scores are those of `isic-challenge-scoring`, which the challenge ranks by."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
from isic_challenge_scoring.segmentation import SegmentationScore
from PIL import Image

from tests.evaluation.test_classification_scores import AT_05, draw
from utils.data.images import read_mask
from utils.evaluation.classification import (
    TASKS,
    classification_scores,
    official_predictions,
    official_truth,
    predictions_table,
)
from utils.evaluation.segmentation import METRICS, confusion_counts, official_scores

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:isic_challenge_scoring")


def our_scores(truth: Path, predictions: Path) -> dict[str, float]:
    masks = ([read_mask(folder / path.name) for folder in (predictions, truth)] for path in truth.iterdir())
    return official_scores([confusion_counts(*pair) for pair in masks])


def draw_mask(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    if kind == "full":
        mask[:] = 255
    elif kind == "pixel":
        mask[rng.integers(shape[0]), rng.integers(shape[1])] = 255
    elif kind == "noise":
        mask[:] = 255 * rng.integers(0, 2, shape)
    elif kind == "disc":
        y, x = np.ogrid[: shape[0], : shape[1]]
        centre, radius = rng.uniform(0.35, 0.65, 2) * shape, rng.uniform(0.3, 0.4) * min(shape)
        mask[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] = 255
    elif kind == "grey":
        mask[:] = rng.integers(120, 137, shape)
    return mask


def test_scores_of_drawn_masks(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ("empty", "full", "pixel", "noise", "disc", "grey")
    sizes = [(1, 1), (1, 7), (37, 53)]
    folders = tmp_path / "truth", tmp_path / "prediction"
    for folder in folders:
        folder.mkdir()
    for number, (shape, truth, prediction) in enumerate(itertools.product(sizes, kinds, (*kinds, "near"))):
        masks = [draw_mask(truth, shape, rng)]
        flip = rng.random(shape) < rng.uniform(0, 0.3)
        masks.append(masks[0] ^ (255 * flip).astype(np.uint8) if prediction == "near" else None)
        if prediction != "near":
            masks[1] = draw_mask(prediction, shape, rng)
        for folder, mask in zip(folders, masks, strict=True):
            Image.fromarray(mask).save(folder / f"ISIC_{number:07}_segmentation.png")
    ours, official = our_scores(*folders), SegmentationScore.from_dir(*folders).macro_average
    assert tuple(official.index) == METRICS
    assert ours == pytest.approx(official.to_dict(), abs=1e-12, rel=0)
    assert 0.05 < ours["threshold_jaccard"] < ours["jaccard"] - 0.05  # both sides of the threshold took part


@pytest.mark.parametrize("grid", [20, 1])  # 20: ties, also at 0.5; 1: probabilities 0 and 1 only, as if integers
def test_scores_of_probabilities(tmp_path, monkeypatch, grid):
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)  # its older name, which they call
    probabilities, labels = draw(200, seed=7, grid=grid)
    decided = (probabilities == probabilities.max(axis=1, keepdims=True)).sum(axis=1) == 1
    probabilities, labels = probabilities[decided], labels[decided]  # two highest: wrong there, the first one here
    ids = [f"ISIC_{number:07}" for number in np.random.default_rng(0).permutation(len(labels))]
    official_truth(dict(zip(ids, labels.tolist(), strict=True))).to_csv(tmp_path / "truth.csv", index=False)
    table = predictions_table(ids, probabilities).sample(frac=1, random_state=0)
    official_predictions(table).to_csv(tmp_path / "predictions.csv", index=False)
    files = tmp_path / "truth.csv", tmp_path / "predictions.csv"
    official = ClassificationScore.from_file(*files, ClassificationMetric.AUC)
    ours = classification_scores(probabilities, labels)
    expected = {"balanced_accuracy": ours["balanced_accuracy"], "mean_auc": ours["mean_auc"]}
    found = {
        "balanced_accuracy": official.aggregate["balanced_accuracy"],
        "mean_auc": np.mean([official.per_category["auc"][task] for task in TASKS]),
    }
    for task in TASKS:
        expected |= {(task, name): ours[task][name] for name in ("auc", "average_precision")}
        expected |= {(task, name): value for name, value in ours[task][AT_05].items()}
        names = {"auc": "auc", "ap": "average_precision"} | {name: name for name in ours[task][AT_05]}
        found |= {(task, name): official.per_category[theirs][task] for theirs, name in names.items()}
    assert expected == pytest.approx(found, abs=1e-9, rel=0)
