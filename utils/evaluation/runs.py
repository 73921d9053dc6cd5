"""Finished runs: finding their folders, and reading what they keep."""

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from utils import UserError
from utils.data.isic import CLASSES
from utils.evaluation.classification import predictions_table
from utils.evaluation.segmentation import METRICS, image_scores
from utils.files import check_file, load_json, reading

IMAGES = {"validation": 150, "test": 600}  # of the challenge
PRIMARY = {"segmentation": ("official", "jaccard"), "classification": ("mean_auc",)}  # where metrics have the score


@dataclass(frozen=True)
class RunResult:
    """A finished run; its tables are read when asked for. What is absent or damaged is a UserError that names it.

    Attributes:
        folder: where it lies.
        experiment: a name of `utils.config.EXPERIMENTS`, or one of its own such as "arl18-scratch".
        task: "segmentation" or "classification".
        settings: of config.json.
        metrics: metrics.json; the scores of a split whose truth was not there are None.
        config: config.json.
    """

    folder: Path
    experiment: str
    task: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def data(self) -> Path | None:
        """The folder of its images, as it was named on the command line; None when config.json does not tell."""
        return Path(self.config["data"]) if self.config.get("data") else None

    @property
    def licence(self) -> str | None:
        """Of training images that are not free to use, such as HAM10000's."""
        return self.config.get("licence")

    @property
    def classes(self) -> tuple[str, ...]:
        """Of a classifier, in the order of its probabilities."""
        return tuple(self.settings.get("classes") or CLASSES)

    @property
    def own(self) -> bool:
        """Whether it was trained on a folder of one's own (`utils.data.own`)."""
        return bool(self.settings.get("split") or self.settings.get("fold"))

    @property
    def licences(self) -> str:
        """Of all photographs that it was trained on."""
        licences = ["their owner's" if self.own else "ISIC Archive, CC-0 (arXiv:1710.05006)", self.licence]
        return "; ".join(filter(None, licences))

    def score(self, split: str, path: Sequence[str]) -> float | None:
        """A score of metrics.json, such as ("melanoma", "auc"); None where it is undefined."""
        with reading(self.folder / "metrics.json"):
            value = lookup(self.metrics[split], path)
            return None if value is None else float(value)

    @property
    def primary(self) -> float:
        """The score of the validation images that runs are chosen and ranked by; 0 where it is undefined."""
        return self.score("validation", PRIMARY[self.task]) or 0

    @property
    def test_scores(self) -> Mapping[str, Any]:
        """What `test_scores.json`, beside the rows' folders, says of this run; empty where it says nothing."""
        path = self.folder.parent.parent / "test_scores.json"
        with reading(path):
            known = load_json(path)["runs"] if path.is_file() else {}
            return known.get("/".join(self.folder.parts[-2:]), {}).get(self.task, {})

    def predictions(self, split: str) -> pd.DataFrame:
        """Classification: image_id, the probabilities of `classes`, group (`groups_of`) where there are any, and label,
        index into classes, where the run keeps the truth.
        """
        table = self._probabilities(f"{split}_predictions.csv", split, "image_id")
        if not (self.folder / f"{split}_truth_official.csv").is_file():
            return table
        truth = self._probabilities(f"{split}_truth_official.csv", split, "image")
        labels = pd.Series(truth[list(self.classes)].to_numpy().argmax(axis=1), truth["image_id"], name="label")
        if set(labels.index) != set(table["image_id"]):
            raise UserError(f"{self.folder}: predictions and truth of the {split} images name different ones")
        return table.join(labels, on="image_id")

    def per_image(self, split: str) -> pd.DataFrame:
        """Segmentation: image_id, group where there are any, counts and official scores, one row an image."""
        path = self.folder / "per_image.csv"
        with reading(path):
            table = _read_table(path)
            table = table[table["split"] == split].reset_index(drop=True).astype(dict.fromkeys(METRICS, float))
            if not np.allclose(table[[*METRICS]], image_scores(table)):  # which refuses what are no counts
                raise ValueError("scores of an image that are not those of its counts")
            self._check_images(table["image_id"], split)
        return table

    def mask_ids(self, split: str) -> list[str]:
        """Segmentation: of the images whose predicted mask the run keeps; none where it keeps no masks."""
        path = self.folder / f"{split}_masks.zip"
        if not path.is_file():
            return []
        with reading(path), zipfile.ZipFile(path) as archive:
            return [name.removesuffix("_segmentation.png") for name in archive.namelist()]

    def predicted_mask(self, split: str, image_id: str) -> np.ndarray | None:
        """uint8 [H, W] of 0 and 1 at the image's own size; None where it keeps no masks (as runs of old versions)."""
        mask = self._picture(f"{split}_masks.zip", f"{image_id}_segmentation.png")
        return None if mask is None else (mask > 128).astype(np.uint8)

    def lesion_probability(self, split: str, image_id: str) -> np.ndarray | None:
        """float32 [h, w] in [0, 1] at the network's size; None where it keeps none (as runs of old versions)."""
        grey = self._picture(f"{split}_probabilities.zip", f"{image_id}.png")
        return None if grey is None else grey.astype(np.float32) / 255

    def _picture(self, archive: str, name: str) -> np.ndarray | None:
        """Grey values uint8 [H, W] of a picture in a zip file; None where that is not there."""
        path = self.folder / archive
        if not path.is_file():
            return None
        with (
            reading(path),
            zipfile.ZipFile(path) as pictures,
            pictures.open(name) as file,
            Image.open(file, formats=("PNG",)) as picture,
        ):
            return np.array(picture.convert("L"))

    def image_ids(self, split: str) -> frozenset[str]:
        """Of the images that it was scored on."""
        table = self.predictions(split) if self.task == "classification" else self.per_image(split)
        return frozenset(table["image_id"])

    def _probabilities(self, name: str, split: str, ids: str) -> pd.DataFrame:
        path = self.folder / name
        with reading(path):
            read = _read_table(path)
            # Which refuses what are no probabilities.
            table = predictions_table(read[ids], read[list(self.classes)], self.classes, groups_of(read))
            self._check_images(table["image_id"], split)
        return table

    def _check_images(self, ids: pd.Series, split: str) -> None:
        scored = self.metrics[split]
        if ids.duplicated().any() or (scored and len(ids) != scored["images"]):
            wanted = f"metrics.json is of {scored['images']}" if scored else "expected one row for each"
            raise ValueError(f"{len(ids)} rows of {ids.nunique()} {split} images, {wanted}")


def groups_of(table: pd.DataFrame) -> dict[str, str] | None:
    """By image id what is drawn together for intervals (`utils.data.isic.lesions`), in a run's table; None: nothing."""
    return dict(zip(table["image_id"], table["group"], strict=True)) if "group" in table else None


def _read_table(path: Path) -> pd.DataFrame:
    names = dict.fromkeys(("image_id", "image", "group"), str)
    return pd.read_csv(check_file(path), dtype=names, keep_default_na=False)  # "NA" is a name like any other


def lookup(scores: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What lies at `path` in nested dictionaries. KeyError where nothing does."""
    for name in path:
        scores = scores[name]
    return scores


def find_runs(*folders: str | Path) -> list[RunResult]:
    """The finished runs anywhere below these folders (`results`, `model` …), by path.

    A run is a folder with a config.json of this program and a metrics.json; without the latter it has not finished.
    Runs that were moved aside (`run0.old1`) are left out. UserError naming the file when one of the two is damaged.
    """
    paths = {
        os.path.realpath(path): path.parent for folder in folders for path in sorted(Path(folder).rglob("config.json"))
    }
    found = (_read_run(folder) for folder in paths.values() if not re.search(r"\.(old\d+|partial)$", folder.name))
    return [run for run in found if run]


def read_run(folder: Path) -> RunResult:
    """The finished run in a folder. UserError when there is none, or it is damaged."""
    run = _read_run(folder)
    if run is None:
        raise UserError(f"{folder}: no finished run (config.json and metrics.json) in this folder")
    return run


def _read_run(folder: Path) -> RunResult | None:
    """The run in a folder; None when it has not finished or its config.json is not one of this program."""
    if not (folder / "metrics.json").is_file():
        return None
    with reading(folder / "config.json"):
        config = load_json(folder / "config.json")
        settings = config.get("settings")
        if not isinstance(settings, dict) or not {"name", "task", "net", "pretrained", "seed"} <= settings.keys():
            return None
    with reading(folder / "metrics.json"):
        metrics, task = load_json(folder / "metrics.json"), settings["task"]
        for scores in (metrics[split] for split in IMAGES if metrics[split] is not None):
            _ = scores["images"], lookup(scores, PRIMARY[task])
    return RunResult(folder, settings["name"], task, settings, metrics, config)
