"""What the run folders say: finding them, reading what they keep, and which of them make one row of a table.

    python -m utils.results            write the results section of README.md from the runs in results/
    python -m utils.results --check    write nothing; exit code 1 when the section is out of date

Nothing is trained or predicted here. `utils.tables` makes the tables, `utils.export` the section.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils import UserError
from utils.data import CLASSES
from utils.evaluation import COUNTS, METRICS
from utils.evaluation_cls import TASKS
from utils.experiments import DEFAULTS, EXPERIMENTS, Experiment, experiments
from utils.logger import run_script
from utils.weights import PRETRAINED

IMAGES = {"validation": 150, "test": 600}  # of the challenge

# By what `utils.run.digest` says of the challenge's images, each without labels (segmentation) and with them.
_TRAIN = {"b2eebcf001ee3ca1", "5cc1395c5e7c5f0e"}  # the 2,000 less `utils.data.LEFT_OUT`
_TRAIN_WITH_COPIES = {"6c9fe817e0e7cca8", "e207a8a3f1179450"}
_EXTRA, _EXTRA_WITH_COPIES = {"04d780f6fd6f49b4"}, {"4019f43efcbd443f"}  # and the 1,320 of the ISIC Archive
_VALIDATION = {"bd160fd18a14af16", "cf672a04da0db6dc"}
_VIEWS = {"center9": "scored by nine central patches", "1": "scored by the whole frame"}


@dataclass(frozen=True)
class RunResult:
    """A finished run; its tables are read when asked for.

    Attributes:
        folder: where it lies.
        experiment: a name of `utils.experiments.EXPERIMENTS`, or one of its own such as "arl18-scratch".
        task: "segmentation" or "classification".
        settings: of config.json. Older runs lack some of today's.
        metrics: metrics.json; the scores of a split whose truth was not there are None.
    """

    folder: Path
    experiment: str
    task: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]

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
    found = (_read_run(folder) for folder in paths.values() if not re.search(r"\.old\d+$", folder.name))
    return [run for run in found if run]


def deviations(run: RunResult) -> list[str]:
    """How a run differs from the row of EXPERIMENTS that it is named after, in words for a table; empty if it does not.

    A run with a name of its own is held against its task's defaults. A setting that the run's config does not have is
    passed over. Not told: the seed, the device and its precision.
    """
    settings, row = run.settings, _row_of(run)

    def differs(name: str) -> bool:
        value = settings.get(name)
        return name in settings and (tuple(value) if isinstance(value, list) else value) != getattr(row, name)

    weights = settings.get("weights") or {}
    source = PRETRAINED.get(settings["net"])
    other_weights = weights and not (settings["pretrained"] and source and weights["file"] in source.files)
    words = {
        "net": "network {net}",
        "pretrained": "pretrained" if settings["pretrained"] else "not pretrained",
        "size": "{size[0]}×{size[1]} px",
        "epochs": f"{{epochs}} of {row.epochs} epochs" if settings.get("epochs", 0) < row.epochs else "{epochs} epochs",
        "batch_size": "batch {batch_size}",
        "optimizer": "{optimizer}",
        "lr": f"lr {_power(settings.get('lr', 0))}",
        "weight_decay": f"weight decay {_power(settings.get('weight_decay', 0))}",
        "patience": "patience {patience}",
        "loss": "{loss} loss",
        "class_weights": f"class weights {' '.join(f'{weight:g}' for weight in settings.get('class_weights') or ())}",
        "attention": "attention {attention}",
        "alpha": "alpha {alpha}" if settings.get("alpha") else "",
    }
    told = [text.format(**settings) for name, text in words.items() if text and differs(name)]
    if other_weights:
        told.append(f"weights {weights['file']}")
    return [*told, *_other_images(run), *_other_views(run.metrics)]


def _row_of(run: RunResult) -> Experiment:
    if run.experiment in EXPERIMENTS:
        return EXPERIMENTS[run.experiment]
    net, pretrained = run.settings["net"], run.settings["pretrained"]
    arl = {"attention": "spatial", "alpha": "learn"} if net.startswith("arl") else {}
    return replace(DEFAULTS[run.task], name=run.experiment, net=net, pretrained=pretrained, **arl)


def _other_images(run: RunResult) -> list[str]:
    told = []
    for part, known in (
        ("train", _TRAIN | _TRAIN_WITH_COPIES | _EXTRA | _EXTRA_WITH_COPIES),
        ("validation", _VALIDATION),
    ):
        count, _, sha256 = (run.settings.get(f"{part}_images") or "").partition(" images, sha256 ")
        if not count:
            told.append(f"{part} images not recorded")
        elif sha256 not in known:
            told.append(f"{count} other {part} images ({sha256[:6]})")  # tells apart what must not be averaged
        elif run.task == "classification" and sha256 in _TRAIN | _TRAIN_WITH_COPIES:
            told.append("without the 1320 extra training images")
        if sha256 in _TRAIN_WITH_COPIES | _EXTRA_WITH_COPIES:
            told.append("copies of scored images in training")
    return told


def _other_views(metrics: Mapping[str, Any]) -> list[str]:
    views = metrics.get("views", "9")
    told = [] if views == "9" else [_VIEWS.get(views, f"views {views}")]
    return [*told, "flips averaged"] if metrics.get("flips") else told


def _power(value: float) -> str:
    """0.00025 as 2.5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


@dataclass(frozen=True)
class Row:
    """A line of a table: the runs of an experiment that differ in nothing but the seed. Without one, not run yet."""

    experiment: str
    runs: tuple[RunResult, ...] = ()
    note: str = ""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.runs[0].settings if self.runs else asdict(EXPERIMENTS[self.experiment])

    @property
    def label(self) -> str:
        return f"{self.experiment} ({self.note})" if self.note else self.experiment

    def per_image(self, split: str) -> list[pd.DataFrame]:
        """Each run's predictions (classification) or scores (segmentation), sorted by image_id.

        UserError when they are of different images, or of different labels.
        """
        tables = []
        for run in self.runs:
            table = run.predictions(split) if run.task == "classification" else run.per_image(split)
            tables.append(table.sort_values("image_id", ignore_index=True))
            known = [name for name in ("image_id", "label") if name in table]
            if not tables[0][known].equals(tables[-1][known]):
                raise UserError(
                    f"{run.folder} and {self.runs[0].folder} were scored on different images: leave one out"
                )
        return tables

    def probabilities(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Classification: float64 [S, N, 3] by seed and image, columns as CLASSES, and class indices [N].

        UserError as in `per_image`, and when a run does not keep the truth.
        """
        tables = self.per_image(split)
        for run, table in zip(self.runs, tables, strict=True):
            if "label" not in table:
                raise UserError(f"{run.folder}: no truth beside its predictions (…_truth_official.csv); copy it there")
        return np.stack([table[list(CLASSES)] for table in tables]), tables[0]["label"].to_numpy()

    def scores(self, split: str, metric: str) -> np.ndarray:
        """Segmentation: float64 [S, N] by seed and image, of one of `utils.evaluation.METRICS`. Errors: `per_image`."""
        return np.stack([table[metric] for table in self.per_image(split)])


def result_rows(runs: Sequence[RunResult], task: str, split: str) -> list[Row]:
    """The rows of a task's table: those of EXPERIMENTS in their order, each also without a run; then other names.

    Of the runs, those with scores of the split. Runs of one experiment with other deviations are rows of their own; so
    is a run that repeats another one's seed with another result (with the same result it is a copy, and left out).
    """
    found: dict[str, dict[tuple, list[RunResult]]] = {name: {} for name in experiments(task)}
    scored = [run for run in runs if run.task == task and run.metrics[split]]
    for run in sorted(scored, key=lambda run: (run.seed, run.folder.as_posix())):
        images = run.metrics[split]["images"]
        note = deviations(run)
        if split == "test" and images != IMAGES[split]:
            note.append(f"scored on {images} images")
        groups = found.setdefault(run.experiment, {})
        for repeats in range(len(scored)):
            told = [*note, f"seed {run.seed} again ({repeats})"] if repeats else note
            group = groups.setdefault(tuple(told), [])
            before = [other for other in group if other.seed == run.seed]
            if not before:
                group.append(run)
            if not before or before[0].metrics == run.metrics:
                break
    rows = []
    for name in [*experiments(task), *sorted(found.keys() - set(experiments(task)))]:
        groups = sorted(found[name].items(), key=lambda item: (len(item[0]), item[0]))
        rows += [Row(name, tuple(group), ", ".join(note)) for note, group in groups] or [Row(name)]
    return rows


def _read_run(folder: Path) -> RunResult | None:
    """The run in a folder; None when it has not finished or its config.json is not one of this program."""
    if not (folder / "metrics.json").is_file():
        return None
    settings = _read_json(folder / "config.json").get("settings")
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
    return RunResult(folder, settings["name"], task, settings, metrics)


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
