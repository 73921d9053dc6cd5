"""Put the predictions of a row's seeds together: the mean of probabilities, the majority of masks.

    python -m utils.inference.ensemble seg-b1 cls-b1 --data Data/ISIC2017

Reads results/<row>/seed<k>/, needs no weights, and writes results/<row>-ensemble/seed0/ in the form of a run's results,
so that tables and notebooks show it as a row of its own. The data are needed for the true masks only.
"""

import argparse
import json
import shutil
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, lesions, read_split
from utils.evaluation import classification, segmentation
from utils.evaluation.classification import official_predictions, official_truth, predictions_table
from utils.evaluation.export import format_scores
from utils.evaluation.rows import Row
from utils.evaluation.runs import RunResult, find_runs
from utils.evaluation.segmentation import SegmentationCounts, confusion_counts
from utils.inference.segmentation import add_mask, mask_png
from utils.logger import log, run_script
from utils.model.run import environment


def find_members(folder: Path) -> tuple[RunResult, ...]:
    """The runs below results/<row>/, by seed. UserError when they are fewer than two, or differ in other things."""
    members = tuple(sorted(find_runs(folder), key=lambda run: run.seed))
    if len(members) < 2:
        raise UserError(f"{folder}: {len(members)} finished runs; an ensemble takes two or more seeds")
    for run in members[1:]:
        ours, theirs = ({**_scoring(each), **each.settings, "seed": None} for each in (members[0], run))
        if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            raise UserError(f"{run.folder} and {members[0].folder} differ in {', '.join(differ)}: leave one out")
    for one, other in pairwise(members):
        if one.seed == other.seed:
            raise UserError(f"{one.folder} and {other.folder} are both of seed {one.seed}: leave one out")
    return members


def _scoring(run: RunResult) -> dict[str, Any]:
    """What of its metrics tells how it was scored."""
    return {name: run.metrics[name] for name in ("views", "flips") if name in run.metrics}


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
    first, metrics, per_image = members[0], _scoring(members[0]), []
    kind = "predictions.csv" if first.task == "classification" else "masks.zip"
    for split in ("validation", "test"):
        metrics[split] = None
        if not first.metrics[split] and not any((run.folder / f"{split}_{kind}").is_file() for run in members):
            continue
        if first.task == "classification":
            metrics[split] = _average(members, split, folder)
        elif counts := _vote(members, split, folder, data):
            metrics[split] = segmentation.summarize(counts)
            per_image.append(counts.per_image().assign(split=split))
        if metrics[split]:
            log.info(format_scores(split, metrics[split]))
    if per_image:
        pd.concat(per_image).to_csv(folder / "per_image.csv", index=False, lineterminator="\n")
    settings = {**first.settings, "name": f"{first.experiment}-ensemble", "seed": 0}
    settings["ensemble"] = {"of": first.experiment, "seeds": [run.seed for run in members]}
    config = {"settings": settings, **environment(torch.device("cpu"))}
    for name, content in (("config.json", config), ("metrics.json", metrics)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _average(members: Sequence[RunResult], split: str, folder: Path) -> dict[str, Any] | None:
    """Of classification; the scores of a split whose truth the members keep."""
    tables = Row(members[0].experiment, tuple(members)).per_image(split)
    ids = list(tables[0]["image_id"])
    mean = np.mean([table[list(CLASSES)] for table in tables], axis=0).astype(np.float32)
    table = predictions_table(ids, mean)
    files = {"predictions": table, "predictions_official": official_predictions(table)}
    scores = None
    if "label" in tables[0]:
        labels = tables[0]["label"].to_numpy()
        files["truth_official"] = official_truth(dict(zip(ids, labels.tolist(), strict=True)))
        scores = classification.summarize(mean, labels, groups=lesions(ids))
    for name, content in files.items():
        content.to_csv(folder / f"{split}_{name}.csv", index=False, lineterminator="\n")
    return scores


def _vote(members: Sequence[RunResult], split: str, folder: Path, data: Path) -> SegmentationCounts | None:
    """Of segmentation; the counts of a split that the members were scored on. A draw is no lesion."""
    truth = {sample.id: sample.mask for sample in read_split(data, split, with_labels=False)} if data.is_dir() else {}
    ids, *others = (set(run.mask_ids(split)) for run in members)
    if not ids or any(other != ids for other in others):
        raise UserError(f"{members[0].folder.parent}: the seeds keep {split} masks of different images, or none")
    counts = SegmentationCounts()
    with zipfile.ZipFile(folder / f"{split}_masks.zip", "w") as archive:
        for image_id in sorted(ids):
            masks = [run.predicted_mask(split, image_id) for run in members]
            if len({mask.shape for mask in masks}) > 1:
                raise UserError(f"{members[0].folder}: masks of {image_id} differ in size between the seeds")
            mask = 2 * np.sum(masks, axis=0, dtype=np.int16) > len(masks)
            add_mask(archive, image_id, mask_png(mask))
            if path := truth.get(image_id):
                counts.add_counts(image_id, confusion_counts(mask, read_mask(path)))
    scored = members[0].metrics[split]
    if scored and len(counts) != scored["images"]:
        raise UserError(f"{data}: true masks of {len(counts)} of the {split} images; choose the folder by --data")
    return counts if scored else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.inference.ensemble", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", help="folders below --results")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results are (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("Data/ISIC2017"), help="for true masks (%(default)s)")
    args = parser.parse_args(argv)
    for row in args.rows:
        members = find_members(args.results / row)
        log.info("%s: seeds %s", row, ", ".join(str(run.seed) for run in members))
        make_ensemble(members, args.results / f"{row}-ensemble" / "seed0", args.data)


if __name__ == "__main__":
    run_script(main)
