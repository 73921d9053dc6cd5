"""Put the predictions of several runs together: the mean of their probabilities.

    python -m utils.inference.ensemble seg-b1            the seeds of a row
    python -m utils.inference.ensemble cls-b1 cls-b4     those of several rows, each run with equal weight

Reads results/<row>/seed<k>/, needs no weights, and writes results/<rows>-ensemble/seed0/ in the form of a run's
results, so that tables and notebooks show it as a row of its own. The data are needed for the true masks only. Masks of
a segmenter that keeps no probabilities, as old runs do not, count as probabilities of 0 and 1.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import lesions, read_split
from utils.data.own import files_by_id, is_own
from utils.evaluation import classification, segmentation
from utils.evaluation.classification import official_predictions, official_truth, predictions_table
from utils.evaluation.export import format_scores
from utils.evaluation.rows import Row
from utils.evaluation.runs import RunResult, find_runs, groups_of
from utils.evaluation.segmentation import Counts, confusion_counts, per_image_table
from utils.files import listed
from utils.inference.segmentation import add_file, enlarged, png, zip_file
from utils.logger import log, run_script
from utils.model.run import environment


def find_members(folders: Sequence[Path]) -> tuple[RunResult, ...]:
    """The runs below each results/<row>/, by row and seed. UserError when they are fewer than two, a row has
    none, they are of two tasks or of other classes, or those of a row differ in other things than the seed.
    """
    rows = {folder: sorted(find_runs(folder), key=lambda run: run.seed) for folder in folders}
    members = tuple(run for row in rows.values() for run in row)
    for folder, row in rows.items():
        if not row or len(members) < 2:
            raise UserError(f"{folder}: {len(row)} finished runs; an ensemble takes two or more")
        for one, other in pairwise(row):
            ours, theirs = ({**_scoring(run), **run.settings, "seed": None} for run in (one, other))
            if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
                raise UserError(f"{other.folder} and {one.folder} differ in {', '.join(differ)}: leave one out")
            if one.seed == other.seed:
                raise UserError(f"{one.folder} and {other.folder} are both of seed {one.seed}: leave one out")
    for what in (lambda run: run.task, lambda run: listed(run.classes, 10)):
        if other := [run for run in members if what(run) != what(members[0])]:
            raise UserError(f"{members[0].folder} is of {what(members[0])}, {other[0].folder} of {what(other[0])}")
    return members


def _scoring(run: RunResult) -> dict[str, Any]:
    """What of its metrics tells how it was scored."""
    return {name: run.metrics[name] for name in ("views", "flips") if name in run.metrics}


def _agreed(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have alike; of extra training images, what those say that have some."""
    found = {}
    for name, value in (item for one in each for item in one.items()):
        others = [one.get(name, value if name.startswith("extra") else None) for one in each]
        if all(other == value for other in others):
            found[name] = value
    return found


def make_ensemble(members: Sequence[RunResult], folder: Path, data: Path) -> None:
    """Write the ensemble's predictions and scores to `folder`, in place of what is there, once all of them are made.

    A split that no member predicted is left out. UserError when members predict other images, or masks are missing.
    """
    partial = folder.with_name(f"{folder.name}.partial")  # which `find_runs` passes over
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_ensemble(members, partial, data)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_ensemble(members: Sequence[RunResult], folder: Path, data: Path) -> None:
    first, metrics, per_image = members[0], _agreed([_scoring(run) for run in members]), []
    kind = "predictions.csv" if first.task == "classification" else "masks.zip"
    for split in ("validation", "test"):
        metrics[split] = None
        if not first.metrics[split] and not any((run.folder / f"{split}_{kind}").is_file() for run in members):
            continue
        if first.task == "classification":
            metrics[split] = _average(members, split, folder)
        elif counts := _merge(members, split, folder, data):
            groups = groups_of(first.per_image(split))
            metrics[split] = segmentation.summarize(counts, groups)
            per_image.append(per_image_table(counts, groups).assign(split=split))
        if metrics[split]:
            log.info(format_scores(split, metrics[split]))
    if per_image:
        pd.concat(per_image).to_csv(folder / "per_image.csv", index=False, lineterminator="\n")
    rows: dict[str, list[int]] = {}
    for run in members:
        rows.setdefault(run.folder.parent.name, []).append(run.seed)
    settings = _agreed([run.settings for run in members]) | {"name": f"{'+'.join(rows)}-ensemble", "seed": 0}
    settings["net"] = " + ".join(dict.fromkeys(run.settings["net"] for run in members))
    settings["pretrained"] = all(run.settings["pretrained"] for run in members)
    licence = next((run.licence for run in members if run.licence), None)
    config = {"settings": settings | {"ensemble": rows}, "licence": licence, **environment(torch.device("cpu"))}
    for name, content in (("config.json", config), ("metrics.json", metrics)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _average(members: Sequence[RunResult], split: str, folder: Path) -> dict[str, Any] | None:
    """Of classification; the scores of a split whose truth the members keep."""
    tables = Row(members[0].experiment, tuple(members)).per_image(split)
    ids, classes, groups = list(tables[0]["image_id"]), members[0].classes, groups_of(tables[0])
    mean = np.mean([table[list(classes)] for table in tables], axis=0).astype(np.float32)
    table = predictions_table(ids, mean, classes, groups)
    files = {"predictions": table, "predictions_official": official_predictions(table, classes)}
    scores = None
    if "label" in tables[0]:
        labels = tables[0]["label"].to_numpy()
        files["truth_official"] = official_truth(dict(zip(ids, labels.tolist(), strict=True)), classes)
        scores = classification.summarize(mean, labels, classes, lesions(ids, groups))
    for name, content in files.items():
        content.to_csv(folder / f"{split}_{name}.csv", index=False, lineterminator="\n")
    return scores


def _merge(members: Sequence[RunResult], split: str, folder: Path, data: Path) -> Counts | None:
    """Of segmentation; the counts of a split that the members were scored on. A draw is no lesion."""
    if is_own(data):
        truth = files_by_id(data / "masks", masks=True)
    else:
        there = read_split(data, split, with_labels=False) if data.is_dir() else []
        truth = {sample.id: sample.mask for sample in there}
    ids, *others = (set(run.mask_ids(split)) for run in members)
    if not ids or any(other != ids for other in others):
        raise UserError(f"{members[0].folder.parent}: the runs keep {split} masks of different images, or none")
    counts = {}
    with zip_file(folder / f"{split}_masks.zip") as archive:
        for image_id in sorted(ids):
            mask = _mean(members, split, image_id) > 0.5
            add_file(archive, f"{image_id}_segmentation.png", png(255 * mask))
            if path := truth.get(image_id):
                true = read_mask(path)
                there = mask if mask.shape == true.shape else _mean(members, split, image_id, true.shape[::-1]) > 0.5
                counts[image_id] = confusion_counts(there, true)
    scored = members[0].metrics[split]
    if scored and len(counts) != scored["images"]:
        raise UserError(f"{data}: true masks of {len(counts)} of the {split} images; choose the folder by --data")
    return counts if scored else None


def _mean(members: Sequence[RunResult], split: str, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mean lesion probability, float [height, width] of size = (width, height), or else of the masks' own size."""
    masks = [run.predicted_mask(split, image_id) for run in members]
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(f"{members[0].folder}: masks of {image_id} differ in size between the runs")
    each = []
    for run, mask in zip(members, masks, strict=True):
        probability = run.lesion_probability(split, image_id)
        each.append(enlarged(np.float32(mask) if probability is None else probability, size or mask.shape[::-1]))
    return np.mean(each, axis=0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.inference.ensemble", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", help="folders below --results")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results are (%(default)s)")
    parser.add_argument("--data", type=Path, help="for true masks (that of the first run, else Data/ISIC2017)")
    args = parser.parse_args(argv)
    folders = [args.results / row for row in dict.fromkeys(args.rows)]
    members = find_members(folders)
    log.info("ensemble of %s", ", ".join(str(run.folder) for run in members))
    name, data = f"{'+'.join(folder.name for folder in folders)}-ensemble", members[0].data
    data = args.data or (data if data and data.is_dir() else Path("Data/ISIC2017"))
    make_ensemble(members, args.results / name / "seed0", data)


if __name__ == "__main__":
    run_script(main)
