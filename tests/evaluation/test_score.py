"""Scoring masks and probabilities of any folder, against scikit-learn on the same files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score, roc_auc_score

from utils import UserError
from utils.evaluation import score

IDS = [f"case {number}" for number in range(12)]


def write_masks(folder: Path, seed: int, ending: str, size: tuple[int, int] = (20, 14)) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    masks = {id_: np.random.default_rng([seed, number]).random(size) > 0.4 for number, id_ in enumerate(IDS)}
    for id_, mask in masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{id_}{ending}")
    return masks


def run(*arguments: Path) -> dict:
    file = arguments[0].parent / "scores.json"
    score.main([*map(str, arguments), "--json", str(file)])
    return json.loads(file.read_text())


def test_masks(tmp_path, caplog):
    predicted = write_masks(tmp_path / "out", 0, "_segmentation.png")
    Image.new("RGB", (14, 20)).save(tmp_path / "out" / f"{IDS[1]}_overlay.jpg")  # as predict.py leaves beside them
    pd.DataFrame({"file": IDS, "lesion_share": 0.5}).to_csv(tmp_path / "out" / "summary.csv")
    true = write_masks(tmp_path / "truth" / "masks", 1, ".bmp")
    labels = pd.DataFrame({"image_id": IDS, "label": ["melanoma", "nevus"] * 6})  # which a segmenter says nothing of
    labels.to_csv(tmp_path / "truth" / "labels.csv", index=False)
    (tmp_path / "truth" / "masks" / f"{IDS[0]}.bmp").unlink()
    for truth in (tmp_path / "truth", tmp_path / "truth" / "masks"):
        (found,) = run(tmp_path / "out", truth).values()
        expected = np.mean([jaccard_score(true[id_].ravel(), predicted[id_].ravel()) for id_ in IDS[1:]])
        assert found["images"] == 11 and found["official"]["jaccard"] == pytest.approx(expected)
        low, high = found["official_interval_95"]["jaccard"]
        assert low < expected < high
    assert "1 images without a truth are not scored: case 0" in caplog.text and "overlay" not in caplog.text
    write_masks(tmp_path / "small", 0, ".png", (7, 10))
    with pytest.raises(UserError, match=r"case 1: the predicted and the true mask differ in size \(10×7 and 14×20\)"):
        run(tmp_path / "small", tmp_path / "truth")


@pytest.mark.parametrize("digits", [4, 16])
def test_probabilities(tmp_path, digits):
    """Of all classes, and where the truth has others, of those that both know; not of a photograph without any."""
    rng, names = np.random.default_rng(0), ["wart", "mole", "scar"]
    values, labels = rng.dirichlet([1, 1, 1], 12), np.arange(12) % 3
    table = pd.DataFrame(values.round(digits), columns=names).assign(file=[f"in/{id_}.JPG" for id_ in IDS])
    (tmp_path / "out").mkdir()
    unread = pd.DataFrame({"file": ["in/unread.jpg"]})
    pd.concat([table, unread]).to_csv(tmp_path / "out" / "summary.csv", index=False, sep=";")  # saved by a spreadsheet
    Image.new("RGB", (14, 20)).save(tmp_path / "out" / f"{IDS[1]}_saliency.jpg")  # as predict.py leaves beside it
    truth = pd.DataFrame({"image_id": IDS, "label": np.array(names)[labels]})
    unread = pd.DataFrame({"image_id": ["unread"], "label": "wart"})
    write_masks(tmp_path / "truth" / "masks", 1, ".png")  # which a classifier says nothing of
    pd.concat([truth, unread]).to_csv(tmp_path / "truth" / "labels.csv", index=False, sep=";")
    (found,) = run(tmp_path / "out", tmp_path / "truth").values()
    aucs = [roc_auc_score(labels == k, table[name]) for k, name in enumerate(names)]
    assert found["mean_auc"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert [found[name]["auc"] for name in names] == pytest.approx(aucs) and found["images"] == 12
    width = np.diff(found["interval_95"]["mole"]["auc"])
    truth.assign(group=labels + 3 * (np.arange(12) // 6)).to_csv(tmp_path / "labels.csv", index=False)  # two of each
    grouped = run(tmp_path / "out", tmp_path / "labels.csv")["probabilities"]
    assert grouped["mole"] == found["mole"] and abs(np.diff(grouped["interval_95"]["mole"]["auc"]) - width) > 0.01
    truth.replace({"wart": "verruca", "scar": "mole 2"}).to_csv(tmp_path / "labels.csv", index=False)
    found = run(tmp_path / "out" / "summary.csv", tmp_path / "labels.csv")["probabilities"]
    assert found.keys() == {"images", "interval_95", "mole"} and found["mole"]["auc"] == pytest.approx(aucs[1])
    assert found["interval_95"]["mole"]["auc"][0] < aucs[1] < found["interval_95"]["mole"]["auc"][1]


@pytest.mark.parametrize(
    ("predictions", "truth", "reason"),
    [
        ("file,wart\nx,1\n", "image_id,label\ny,wart\nz,mole\n", "no image in common: predicted x; true y, z"),
        ("file,scar\ny,1\n", "image_id,label\ny,wart\nz,mole\n", "no class in common"),
    ],
)
def test_nothing_to_compare(tmp_path, predictions, truth, reason):
    (tmp_path / "p.csv").write_text(predictions)
    (tmp_path / "t.csv").write_text(truth)
    with pytest.raises(UserError, match=reason):
        run(tmp_path / "p.csv", tmp_path / "t.csv")
