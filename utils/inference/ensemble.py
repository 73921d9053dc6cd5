"""Put the predictions of a row's seeds together: the mean of probabilities, the majority of masks.

    python -m utils.inference.ensemble seg-b1 cls-b1 --data Data/ISIC2017

Reads results/<row>/seed<k>/, needs no weights, and writes results/<row>-ensemble/seed0/ in the form of a run's results,
so that tables and notebooks show it as a row of its own. The data are needed for the true masks only.
"""

import argparse
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, read_split
from utils.evaluation import classification, segmentation
from utils.evaluation.classification import official_truth, predictions_table
from utils.evaluation.rows import Row
from utils.evaluation.runs import RunResult, find_runs
from utils.evaluation.segmentation import SegmentationCounts, confusion_counts
from utils.evaluation.tables import format_scores
from utils.files import written_whole
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

    A split that no member predicted is left out. UserError when members predict other images, or something else than
    probabilities, or segmentation's true masks are not in `data`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        partial, old = (folder.with_name(folder.name + end) for end in (".partial", ".old.partial"))
        if old.exists() and not folder.exists():  # a kill between the two renamings
            old.rename(folder)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        try:
            _write_ensemble(members, partial, data)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{folder}: another process makes this ensemble; wait for it") from error


def _write_ensemble(members: Sequence[RunResult], folder: Path, data: Path) -> None:
    first = members[0]
    settings = {**first.settings, "name": f"{first.experiment}-ensemble", "seed": 0}
    settings["ensemble"] = {"of": first.experiment, "seeds": [run.seed for run in members]}
    metrics = _scoring(first)
    kind, combine = ("predictions.csv", _average) if first.task == "classification" else ("masks.zip", _vote)
    per_image = []
    for split in ("validation", "test"):
        metrics[split] = None
        if first.metrics[split] or any((run.folder / f"{split}_{kind}").is_file() for run in members):
            metrics[split], table = combine(members, split, folder, data)
            per_image += [] if table is None else [table.assign(split=split)]
    if per_image:
        _write_table(folder / "per_image.csv", pd.concat(per_image))
    for name, content in (
        ("config.json", {"settings": settings, **environment(torch.device("cpu"))}),
        ("metrics.json", metrics),
    ):
        with written_whole(folder / name) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def _average(members: Sequence[RunResult], split: str, folder: Path, data: Path) -> tuple[dict | None, None]:
    """Of classification; the scores of a split whose truth the members keep."""
    tables = Row(members[0].experiment, tuple(members)).per_image(split)
    ids = list(tables[0]["image_id"])
    mean = np.mean([table[list(CLASSES)] for table in tables], axis=0).astype(np.float32)
    _write_table(folder / f"{split}_predictions.csv", predictions_table(ids, mean))
    if "label" not in tables[0]:
        return None, None
    labels = tables[0]["label"].to_numpy()
    _write_table(folder / f"{split}_truth_official.csv", official_truth(dict(zip(ids, labels.tolist(), strict=True))))
    summary = classification.summarize(mean, labels)
    log.info(format_scores(split, summary))
    return summary, None


def _vote(
    members: Sequence[RunResult], split: str, folder: Path, data: Path
) -> tuple[dict | None, pd.DataFrame | None]:
    """Of segmentation; the scores of a split whose true masks are in `data`, and by image. A draw is no lesion."""
    truth = {sample.id: sample.mask for sample in read_split(data, split, with_labels=False)} if data.is_dir() else {}
    counts = SegmentationCounts()
    with written_whole(folder / f"{split}_masks.zip") as file, zipfile.ZipFile(file, "w") as archive:
        for image_id in _common_ids(members, split):
            masks = [run.predicted_mask(split, image_id) for run in members]
            if len({mask.shape for mask in masks}) > 1:
                raise UserError(f"{members[0].folder}: masks of {image_id} differ in size between the seeds")
            mask = 2 * np.sum(masks, axis=0, dtype=np.int16) > len(masks)
            add_mask(archive, image_id, mask_png(mask))
            if path := truth.get(image_id):
                counts.add_counts(image_id, confusion_counts(mask, read_mask(path).astype(bool)))
    if not members[0].metrics[split]:
        return None, None
    if len(counts) != members[0].metrics[split]["images"]:
        raise UserError(f"{data}: true masks of {len(counts)} of the {split} images; choose the folder by --data")
    summary = segmentation.summarize(counts)
    log.info(format_scores(split, summary))
    return summary, counts.per_image()


def _common_ids(members: Sequence[RunResult], split: str) -> list[str]:
    each = [set(run.mask_ids(split)) for run in members]
    if any(ids != each[0] for ids in each) or not each[0]:
        raise UserError(f"{members[0].folder.parent}: the seeds keep {split} masks of different images, or none")
    return sorted(each[0])


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as file:
        file.write(table.to_csv(index=False, lineterminator="\n").encode())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.inference.ensemble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
