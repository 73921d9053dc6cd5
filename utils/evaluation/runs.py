"""What the run folders say: finding them and reading what they keep.

    python -m utils.evaluation.runs            write the results section of README.md from the runs in results/
    python -m utils.evaluation.runs --check    write nothing; exit code 1 when the section is out of date

Nothing is trained or predicted here. `utils.evaluation.rows` and `utils.evaluation.tables` make tables of them, `utils.evaluation.export` the section.
"""

import io
import os
import re
import reprlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from utils import UserError
from utils.data.images import MAX_PIXELS
from utils.data.isic import CLASSES
from utils.evaluation.classification import SPECIFICITIES, TASKS
from utils.evaluation.segmentation import COUNTS, METRICS
from utils.files import is_one_line, load_json
from utils.logger import run_script

MAX_MASK = 32 << 20  # bytes of a PNG mask
IMAGES = {"validation": 150, "test": 600}  # of the challenge


def _path(value: Any) -> bool:
    return isinstance(value, str) and is_one_line(value)  # of any bytes: a path need not be UTF-8


def _text(value: Any) -> bool:
    return _path(value) and not re.search(r"[\ud800-\udfff]", value)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _positive(value: Any) -> bool:
    return _whole(value) and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _score(value: Any) -> bool:
    return value is None or (_number(value) and 0 <= value <= 1)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _size(value: Any) -> bool:
    return _list_of(_whole)(value) and len(value) == 2 and 0 < value[0] * value[1] <= MAX_PIXELS


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _dict_with(**kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(kind(value.get(name)) for name, kind in kinds.items())


_SETTINGS = {  # of config.json and metrics.json: what each must be, where it is there
    **dict.fromkeys(("name", "net", "loss", "optimizer"), _text),
    **dict.fromkeys(
        ("task", "attention", "alpha", "train_views", "train_images", "validation_images"), _or_none(_text)
    ),
    **dict.fromkeys(("seed", "epochs", "patience"), _whole),
    **dict.fromkeys(("lr", "weight_decay"), _number),
    "batch_size": _positive,
    "pretrained": _flag,
    "size": _size,
    "class_weights": _or_none(_list_of(_number)),
    "weights": _or_none(_dict_with(file=_path, source=_or_none(_text))),
    "ensemble": _dict_with(of=_text, seeds=_list_of(_whole)),
}
_FACTS = {"data": _or_none(_path)}
_SCORING = {"views": _or_none(_text), "flips": _flag, "best_epoch": _whole, "epochs": _whole}
_SCORES: dict[str, dict[tuple[str, ...], tuple[str, ...] | None]] = {  # where a score is, and its interval
    "segmentation": {
        **{("official", name): ("official_interval_95", name) for name in METRICS},
        **{("pooled", name): None for name in METRICS},
        **{("pooled", "mean_of_background_and_lesion", name): None for name in METRICS[3:]},
    },
    "classification": {
        path: ("interval_95", *path)
        for path in (
            ("mean_auc",),
            *((task, name) for task in TASKS for name in ("auc", "accuracy", "sensitivity", "specificity")),
            *((task, "sensitivity_at_specificity", f"{value:.2f}") for task in TASKS for value in SPECIFICITIES),
        )
    },
}
Column = tuple[str, str, float]  # what it holds, in words; the kinds of its dtype; the largest value, the least is 0
_NAMES: Column = ("names", "O", 0)
_PROBABILITIES: Column = ("probabilities", "if", 1)
_SCORED: Column = ("scores", "if", 1)
_COUNTED: Column = ("numbers of pixels", "i", MAX_PIXELS)


@dataclass(frozen=True)
class RunResult:
    """A finished run; its tables are read when asked for.

    Attributes:
        folder: where it lies.
        experiment: a name of `utils.config.EXPERIMENTS`, or one of its own such as "arl18-scratch".
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
        """One row an epoch, for `utils.visualize.figures.plot_history`. UserError when history.csv is absent or damaged."""
        path = self.folder / "history.csv"
        table = _read_table(path, {"epoch": ("whole numbers", "i", 2**53)})
        numbers = all(table[name].dtype.kind in "if" for name in table)
        if not numbers or [*table["epoch"]] != [*range(1, len(table) + 1)]:
            raise UserError(f"{path}: damaged (expected numbers, of epochs 1, 2, 3 …); copy it again from the run")
        return table.to_dict("records")

    def predictions(self, split: str) -> pd.DataFrame:
        """Classification: image_id, the probabilities of `utils.data.isic.CLASSES`, and label where the run keeps the truth.

        label: index into CLASSES. UserError when a file is absent or damaged, or has other images than metrics.json.
        """
        table = self._probabilities(f"{split}_predictions.csv", split, "image_id")
        if not (self.folder / f"{split}_truth_official.csv").is_file():
            return table
        truth = self._probabilities(f"{split}_truth_official.csv", split, "image")
        labels = pd.Series(truth[list(CLASSES)].to_numpy().argmax(axis=1), truth["image"], name="label")
        if set(labels.index) != set(table["image_id"]):
            raise UserError(f"{self.folder}: predictions and truth of the {split} images name different ones")
        return table.join(labels, on="image_id")

    def per_image(self, split: str) -> pd.DataFrame:
        """Segmentation: image_id, counts and official scores, one row an image. UserError as in `predictions`."""
        columns = {**dict.fromkeys(COUNTS, _COUNTED), **dict.fromkeys(METRICS, _SCORED), "split": _NAMES}
        table = self._read("per_image.csv", split, {"image_id": _NAMES, **columns})
        if (table[[*COUNTS]].sum(axis=1) == 0).any():
            raise UserError(f"{self.folder / 'per_image.csv'}: an image of no pixels; copy it again from the run")
        return table

    def mask_ids(self, split: str) -> list[str]:
        """Segmentation: of the images whose predicted mask the run keeps; none where it keeps no masks."""
        path = self.folder / f"{split}_masks.zip"
        if not path.is_file():
            return []
        try:
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix("_segmentation.png") for name in archive.namelist()]
        except Exception as error:  # of bytes that nobody wrote on purpose, decoders raise nearly anything
            raise UserError(f"{path}: damaged ({_reason(error)}); copy it again from the run") from error

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
        except Exception as error:  # as above
            raise UserError(
                f"{path}: damaged, or without {image_id} ({_reason(error)}); copy it again from the run"
            ) from error

    def image_ids(self, split: str) -> frozenset[str]:
        """Of the images that it was scored on. UserError as in `predictions`."""
        table = self.predictions(split) if self.task == "classification" else self.per_image(split)
        return frozenset(table["image_id"])

    def _probabilities(self, name: str, split: str, id_column: str) -> pd.DataFrame:
        table = self._read(name, split, {id_column: _NAMES, **dict.fromkeys(CLASSES, _PROBABILITIES)})
        if ((table[[*CLASSES]].sum(axis=1) - 1).abs() > 1e-3).any():
            raise UserError(f"{self.folder / name}: not probabilities, whose sum is 1; copy it again from the run")
        return table

    def _read(self, name: str, split: str, columns: Mapping[str, Column]) -> pd.DataFrame:
        table = _read_table(self.folder / name, columns)
        if "split" in columns:
            table = table[table["split"] == split].reset_index(drop=True)
        scores = self.metrics[split]
        ids = table[next(iter(columns))]
        if ids.duplicated().any() or (scores and len(table) != scores["images"]):
            wanted = f"metrics.json is of {scores['images']}" if scores else "expected one row for each"
            raise UserError(
                f"{self.folder / name}: {len(table)} rows of {ids.nunique()} {split} images, {wanted}; "
                "copy the files of the run again"
            )
        return table


def find_runs(*folders: str | Path) -> list[RunResult]:
    """The finished runs anywhere below these folders (`results`, `model` …), by path.

    A run is a folder with a config.json of this program and a metrics.json. Those without metrics.json have not
    finished and are left out, as are runs that were moved aside (`run0.old1`) and folders that do not exist.
    UserError naming the file when one of the two is damaged or they do not belong together.
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
    if not is_one_line(str(folder)):
        raise UserError(f"{str(folder)!r}: a line break or control character in a name; rename this run's folder")
    config = _read_json(folder / "config.json")
    settings = config.get("settings")
    if not isinstance(settings, dict) or not {"name", "net", "pretrained", "seed"} <= settings.keys():
        return None
    if odd := _odd(settings, _SETTINGS) or _odd(config, _FACTS):
        raise UserError(f"{folder / 'config.json'}: damaged ({odd}); restore it, or move this run's folder away")
    metrics = _read_json(folder / "metrics.json")
    recognised = "segmentation" if _at(metrics, ("validation", "official")) is not ... else "classification"
    task = settings.get("task") or recognised
    if odd := _odd(metrics, _SCORING) or next(
        filter(None, (_odd_scores(metrics, task, split) for split in IMAGES)), ""
    ):
        raise UserError(
            f"{folder / 'metrics.json'}: not the scores of a {task} run, as config.json says it is ({odd}); "
            "restore it, or move this run's folder away"
        )
    data = Path(config["data"]) if config.get("data") else None
    return RunResult(folder, settings["name"], task, settings, metrics, data)


def _odd(content: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], bool]]) -> str:
    """The first entry that is there and not of its kind, in words; "" without one."""
    odd = (name for name, kind in kinds.items() if name in content and not kind(content[name]))
    return next((f"{name} is {reprlib.repr(content[name])}" for name in odd), "")


def _odd_scores(metrics: Mapping[str, Any], task: str, split: str) -> str:
    """The first of a split's scores that is missing or no score, in words; "" without one, or where all are None."""
    if metrics.get(split, ...) is None and task in _SCORES:
        return ""
    if task not in _SCORES or not _positive(_at(metrics, (split, "images"))):
        return f"no number of {split} images"
    for path, interval in _SCORES[task].items():
        value = _at(metrics, (split, *path))
        ends = _at(metrics, (split, *interval)) if interval else [value, value]
        known = _list_of(_score)(ends) and len(ends) == 2 and (value is None or None not in ends)
        if not _score(value) or not known:
            return f"{split}: no {' '.join(path)}, or no interval of it"
    return ""


def _at(content: Any, path: Sequence[str]) -> Any:
    """What lies there in nested dicts; `...` where nothing does."""
    for name in path:
        content = content.get(name, ...) if isinstance(content, dict) else ...
    return content


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """ValueError for one that claims more bytes than any mask has: it would be unpacked into memory."""
    if archive.getinfo(name).file_size > MAX_MASK:
        raise ValueError(f"{name} claims more than {MAX_MASK} bytes")
    return archive.read(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or move this run's folder away") from error


def _read_table(path: Path, columns: Mapping[str, Column]) -> pd.DataFrame:
    """A CSV file with at least these columns, all of them filled, and with what they are said to hold."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        table = pd.read_csv(path, dtype={"image_id": str, "image": str}, low_memory=False)
        if missing := [name for name in columns if name not in table or table[name].isna().any()]:
            raise ValueError(f"no column, or no value in a row of it: {', '.join(missing)}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; copy it from the run, or leave this run out") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({_reason(error)}); copy it again from the run") from error
    for name, (words, kinds, largest) in columns.items():
        values = table[name]
        right = values.dtype.kind in kinds and (values.map(_text) if kinds == "O" else values.between(0, largest)).all()
        if not right:
            raise UserError(f"{path}: not {words} in column {name}; copy it again from the run")
    return table


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    from utils.evaluation.export import main  # which builds on this module

    run_script(main)
