"""Which runs make one row of a results table, and in what they differ from the experiment they are named after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from nets.pretrained import find_pretrained
from utils import UserError
from utils.config import DEFAULTS, EXPERIMENTS, Config, Experiment, default_attention, experiments
from utils.data.isic import CLASSES, lesions
from utils.evaluation.runs import IMAGES, RunResult, groups_of
from utils.files import reading

# By what `utils.model.run.digest` says of the challenge's images, each without labels (segmentation) and with them.
_TRAIN = {"b2eebcf001ee3ca1", "5cc1395c5e7c5f0e"}  # the 2,000 less `utils.data.isic.LEFT_OUT`
_TRAIN_WITH_COPIES = {"6c9fe817e0e7cca8", "e207a8a3f1179450"}
_EXTRA, _EXTRA_WITH_COPIES = {"04d780f6fd6f49b4"}, {"4019f43efcbd443f"}  # and the 1,320 of the ISIC Archive
_KNOWN = {
    "train": _TRAIN | _TRAIN_WITH_COPIES | _EXTRA | _EXTRA_WITH_COPIES,
    "validation": {"bd160fd18a14af16", "cf672a04da0db6dc"},
}
_KEYS = {field.name for field in fields(Config)} | {f"{part}_images" for part in (*_KNOWN, "extra")}
_KEYS |= {"ensemble", "extra_epochs", "stored_size"}  # the last is of the size
_VIEWS = {"9": "scored by nine patches", "1": "scored by the whole frame"}


@dataclass(frozen=True)
class Row:
    """A line of a table: the runs of an experiment, one or more, that differ in nothing but the seed."""

    experiment: str
    runs: tuple[RunResult, ...]
    note: str = ""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.runs[0].settings

    @property
    def name(self) -> str:
        """The folder that holds its runs where that says more (cls-b1-scratch, of cls-b1), else the experiment."""
        folder = self.runs[0].folder.parent.name
        return folder if folder.startswith(f"{self.experiment}-") else self.experiment

    def per_image(self, split: str) -> list[pd.DataFrame]:
        """Each run's predictions (classification) or scores (segmentation), sorted by image_id.

        UserError when they are of different images, or of different labels.
        """
        tables = []
        for run in self.runs:
            table = run.predictions(split) if run.task == "classification" else run.per_image(split)
            tables.append(table.sort_values("image_id", ignore_index=True))
            known = [name for name in ("image_id", "label") if name in table and name in tables[0]]
            if not tables[0][known].equals(tables[-1][known]):
                raise UserError(
                    f"{run.folder} and {self.runs[0].folder} were scored on different images: leave one out"
                )
        return tables

    def lesions(self, split: str) -> list[str]:
        """What each image shows (`utils.data.isic.lesions`), in the order of `per_image`."""
        table = self.per_image(split)[0]
        return lesions(table["image_id"], groups_of(table))

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
        """Segmentation: float64 [S, N] by seed and image, of one of `METRICS`. Errors as in `per_image`."""
        return np.stack([table[metric] for table in self.per_image(split)])


def result_rows(runs: Sequence[RunResult], task: str, split: str) -> list[Row]:
    """The rows of a task's table, of the runs with scores of the split: those of EXPERIMENTS in their order, each
    followed by its ensemble; then other names. Runs of other classes than ISIC 2017's are in none.

    Runs of one experiment with other deviations are rows of their own; so is a run that repeats another one's seed
    with another result (with the same result it is a copy, and left out).
    """
    found: dict[str, dict[tuple, list[RunResult]]] = {}
    seen: list[tuple[RunResult, list[str]]] = []
    for run in sorted(runs, key=lambda run: (run.seed, run.folder.as_posix())):
        if run.task != task or not run.metrics[split] or run.classes != CLASSES:
            continue
        images, note = run.metrics[split]["images"], deviations(run)
        if split == "test" and images != IMAGES[split]:
            note.append(f"scored on {images} images")
        same = [one for one, told in seen if (one.experiment, one.seed, told) == (run.experiment, run.seed, note)]
        if any(one.metrics == run.metrics for one in same):
            continue
        seen.append((run, note))
        told = (*note, f"seed {run.seed} again ({len(same)})") if same else tuple(note)
        found.setdefault(run.experiment, {}).setdefault(told, []).append(run)
    order, rows = experiments(task), []

    def place(name: str) -> tuple[int, str]:
        row = name.removesuffix("-ensemble")
        return (order.index(row) if row in order else len(order), name)

    for name in sorted(found, key=place):
        groups = sorted(found[name].items(), key=lambda item: (len(item[0]), item[0]))
        rows += [Row(name, tuple(group), ", ".join(note)) for note, group in groups]
    return rows


def leading(rows: Sequence[Row]) -> list[Row]:
    """Of rows, the best first, the first ensemble and of each network the one of the most runs, of these the first."""
    shown: dict[str, Row] = {}
    for row in rows:
        kind = "ensemble" if "ensemble" in row.settings else row.settings["net"]
        if kind not in shown or len(row.runs) > len(shown[kind].runs):
            shown[kind] = row
    return [row for row in rows if any(row is each for each in shown.values())]


def row_names(rows: Sequence[Row]) -> list[str]:
    """Short names that tell rows apart: `Row.name`; of two with one name the second is "seg-4 #2"."""
    names = [row.name for row in rows]
    numbers = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if number == 1 else f"{name} #{number}" for name, number in zip(names, numbers, strict=True)]


def deviations(run: RunResult) -> list[str]:
    """How a run differs from the row of EXPERIMENTS that it is named after, in words for a table; empty if it does not.

    A run with a name of its own is held against its task's defaults. A setting that the run's config does not have is
    passed over. Not told: the seed, the device and its precision.
    """
    with reading(run.folder / "config.json"):
        settings, row, ensemble = run.settings, _row_of(run), run.settings.get("ensemble", {})
        if len(ensemble) > 1:
            return [text for text in [_together(ensemble), *_other_images(run)] if text]
        told = [
            text.format(**settings) for name, text in _words(settings, row).items() if _differs(settings, name, row)
        ]
        told += [f"{name} {settings[name]}" for name in sorted(settings.keys() - _KEYS)]  # of another version
        weights, source = settings.get("weights") or {}, find_pretrained(settings["net"])
        if weights and not (settings["pretrained"] and source and weights["file"] in source.files):
            told.append(f"weights {weights['file']}")
        if ensemble:
            told.insert(0, _together(ensemble))
        return [text for text in [*told, *_other_images(run), *_other_views(run.metrics, row)] if text]


def _together(ensemble: Mapping[str, Sequence[int]]) -> str:
    members = (" ".join(["ensemble of", row, *map(str, seeds)]) for row, seeds in ensemble.items())
    return " and ".join(members).replace("and ensemble of", "and")


def _row_of(run: RunResult) -> Experiment:
    name = next(iter(run.settings.get("ensemble", ())), run.experiment)  # seg-b1, or seg-b1-ham10000
    while name and name not in EXPERIMENTS:
        name = name.rpartition("-")[0]
    if name:
        return EXPERIMENTS[name]
    net, pretrained = run.settings["net"], run.settings["pretrained"]
    return replace(DEFAULTS[run.task], name=run.experiment, net=net, pretrained=pretrained, **default_attention(net))


def _differs(settings: Mapping[str, Any], name: str, row: Experiment) -> bool:
    value = settings.get(name)
    return name in settings and (tuple(value) if isinstance(value, list) else value) != getattr(row, name)


def _words(settings: Mapping[str, Any], row: Experiment) -> dict[str, str]:
    """What a note says of each setting that differs from the row's, to be filled in."""
    return {
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
        "train_views": "trained on {train_views}",
    }


def _other_images(run: RunResult) -> list[str]:
    told = []
    if extra := run.settings.get("extra_images"):
        licence = f" ({run.licence.partition(':')[0]})" if run.licence else ""
        epochs = run.settings.get("extra_epochs")  # of an earlier version
        epochs = f" of the first {epochs} epochs" if epochs else ""
        share = f"{run.settings['extra_share']:.0%} of each batch{epochs}"
        told.append(f"with {extra.partition(',')[0]} of {' and '.join(run.settings['extra'])}, {share}{licence}")
    for part, known in _KNOWN.items():
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


def _other_views(metrics: Mapping[str, Any], row: Experiment) -> list[str]:
    views, flips = metrics.get("views", row.views), metrics.get("flips", False)
    told = [] if views == row.views else [_VIEWS.get(views, f"scored by views {views}")]
    return told if flips == row.flips else [*told, "flips averaged" if flips else "flips not averaged"]


def _power(value: float) -> str:
    """0.00025 as 2.5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"
