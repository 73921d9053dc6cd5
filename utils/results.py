"""What the run folders say: finding them and reading what they keep.

    python -m utils.results            write the results section of README.md from the runs in results/
    python -m utils.results --check    write nothing; exit code 1 when the section is out of date

Nothing is trained or predicted here. `utils.rows` and `utils.tables` make tables of them, `utils.export` the section.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from utils import UserError
from utils.data import CLASSES
from utils.evaluation import COUNTS, METRICS
from utils.evaluation_cls import TASKS
from utils.logger import run_script

MAX_MASK = 32 << 20  # bytes of a PNG mask
IMAGES = {"validation": 150, "test": 600}  # of the challenge


@dataclass(frozen=True)
class RunResult:
    """A finished run; its tables are read when asked for.

    Attributes:
        folder: where it lies.
        experiment: a name of `utils.experiments.EXPERIMENTS`, or one of its own such as "arl18-scratch".
        task: "segmentation" or "classification".
        settings: of config.json. Older runs lack some of today's.
        metrics: metrics.json; the scores of a split whose truth was not there are None.
        data: the folder of its images, as it was named on the command line; None when config.json does not tell.
    """

    folder: Path
    experiment: str
    task: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    data: Path | None = None

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    def history(self) -> list[dict[str, float]]:
        """One row an epoch, for `utils.visualize.plot_history`. UserError when history.csv is absent or damaged."""
        return _read_table(self.folder / "history.csv", ("epoch",)).to_dict("records")

    def predictions(self, split: str) -> pd.DataFrame:
        """Classification: image_id, the probabilities of `utils.data.CLASSES`, and label where the run keeps the truth.

        label: index into CLASSES. UserError when a file is absent or damaged, or has other images than metrics.json.
        """
        table = self._read(f"{split}_predictions.csv", split, ("image_id", *CLASSES))
        if not (self.folder / f"{split}_truth_official.csv").is_file():
            return table
        truth = self._read(f"{split}_truth_official.csv", split, ("image", *CLASSES))
        labels = pd.Series(truth[list(CLASSES)].to_numpy().argmax(axis=1), truth["image"], name="label")
        if set(labels.index) != set(table["image_id"]):
            raise UserError(f"{self.folder}: predictions and truth of the {split} images name different ones")
        return table.join(labels, on="image_id")

    def per_image(self, split: str) -> pd.DataFrame:
        """Segmentation: image_id, counts and official scores, one row an image. UserError as in `predictions`."""
        return self._read("per_image.csv", split, ("image_id", *COUNTS, *METRICS, "split"))

    def mask_ids(self, split: str) -> list[str]:
        """Segmentation: of the images whose predicted mask the run keeps; none where it keeps no masks."""
        path = self.folder / f"{split}_masks.zip"
        if not path.is_file():
            return []
        try:
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix("_segmentation.png") for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged ({error}); copy it again from the run") from error

    def predicted_mask(self, split: str, image_id: str) -> np.ndarray | None:
        """uint8 [H, W] of 0 and 1 at the image's own size; None where it keeps no masks (as runs of earlier versions).

        UserError when the file is damaged or has no such image.
        """
        path = self.folder / f"{split}_masks.zip"
        if not path.is_file():
            return None
        try:
            with (
                zipfile.ZipFile(path) as archive,
                Image.open(io.BytesIO(_read_member(archive, f"{image_id}_segmentation.png")), formats=("PNG",)) as mask,
            ):
                return (np.array(mask.convert("L")) > 128).astype(np.uint8)
        except (
            OSError,
            KeyError,
            ValueError,
            RuntimeError,
            zlib.error,
            zipfile.BadZipFile,
            Image.DecompressionBombError,
        ) as error:
            raise UserError(f"{path}: damaged, or without {image_id} ({error}); copy it again from the run") from error

    def image_ids(self, split: str) -> frozenset[str]:
        """Of the images that it was scored on. UserError as in `predictions`."""
        table = self.predictions(split) if self.task == "classification" else self.per_image(split)
        return frozenset(table["image_id"])

    def _read(self, name: str, split: str, columns: Sequence[str]) -> pd.DataFrame:
        table = _read_table(self.folder / name, columns)
        if "split" in columns:
            table = table[table["split"] == split].reset_index(drop=True)
        scores = self.metrics[split]
        if table[columns[0]].duplicated().any() or (scores and len(table) != scores["images"]):
            wanted = f"metrics.json is of {scores['images']}" if scores else "expected one row for each"
            raise UserError(
                f"{self.folder / name}: {len(table)} rows of {table[columns[0]].nunique()} {split} images, {wanted}; "
                "copy the files of the run again"
            )
        return table


def find_runs(*folders: str | Path) -> list[RunResult]:
    """The finished runs anywhere below these folders (`results`, `model` …), by path.

    A run is a folder with a config.json of this program and a metrics.json. Those without metrics.json have not
    finished and are left out, as are runs that were moved aside (`run0.old1`) and folders that do not exist.
    UserError naming the file when one of the two is damaged or they do not belong together.
    """
    paths = {path.resolve(): path.parent for folder in folders for path in sorted(Path(folder).rglob("config.json"))}
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
    config = _read_json(folder / "config.json")
    settings = config.get("settings")
    if not isinstance(settings, dict) or not {"name", "net", "pretrained", "seed"} <= settings.keys():
        return None
    metrics = _read_json(folder / "metrics.json")
    scores = [metrics.get(split) for split in IMAGES]
    task = settings.get("task") or ("segmentation" if "official" in (scores[0] or {}) else "classification")
    needed = {"segmentation": {"official", "official_interval_95", "pooled"}, "classification": {*TASKS, "interval_95"}}
    if (
        task not in needed
        or not IMAGES.keys() <= metrics.keys()
        or not all(needed[task] <= each.keys() for each in scores if each)
    ):
        raise UserError(f"{folder / 'metrics.json'}: not the scores of a {task} run, as config.json says it is")
    data = Path(config["data"]) if config.get("data") else None
    return RunResult(folder, settings["name"], task, settings, metrics, data)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """ValueError for one that claims more bytes than any mask has: it would be unpacked into memory."""
    if archive.getinfo(name).file_size > MAX_MASK:
        raise ValueError(f"{name} claims more than {MAX_MASK} bytes")
    return archive.read(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or move this run's folder away") from error
    return content


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file with at least these columns, all of them filled."""
    try:
        table = pd.read_csv(path, dtype={"image_id": str, "image": str})
        if missing := [name for name in columns if name not in table or table[name].isna().any()]:
            raise ValueError(f"no column, or no value in a row of it: {', '.join(missing)}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; copy it from the run, or leave this run out") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())  # pandas breaks lines
        raise UserError(f"{path}: damaged ({reason}); copy it again from the run") from error
    return table


if __name__ == "__main__":
    from utils.export import main  # which builds on this module

    run_script(main)
