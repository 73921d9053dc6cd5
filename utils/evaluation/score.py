"""Score masks or probabilities against a truth of one's own, with intervals.

    python -m utils.evaluation.score predictions ../ph2                    predict.py's output, a folder of one's own
    python -m utils.evaluation.score model/mine-mobilenet-5fold mine       all folds of a cross-validation together
    python -m utils.evaluation.score masks/ truth_masks/
    python -m utils.evaluation.score probabilities.csv labels.csv

Images are paired by their names. The scores are those of a run: official ones for masks, at the true masks' size; for
probabilities each class against the rest. Of classes that only one side knows there is no score. Images of one `group`
in labels.csv are drawn together for the intervals.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, find_files, lesions, read_labels, separator
from utils.data.own import IDS, as_id, files_by_id, read_table
from utils.evaluation.classification import auc, summarize
from utils.evaluation.export import format_scores
from utils.evaluation.runs import IMAGES, RunResult, find_runs, groups_of
from utils.evaluation.segmentation import COUNTS, confusion_counts
from utils.evaluation.segmentation import summarize as summarize_masks
from utils.evaluation.statistics import interval, resample
from utils.files import check_file, listed, reading, written_whole
from utils.logger import log, progress, run_script

Masks = dict[str, Callable[[], np.ndarray]]  # by image id, what reads one: uint8 [H, W] of 0 and 1


def score(predictions: Path, truth: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields "masks" or "probabilities", whichever both sides have, and their scores (as `metrics.json` has them).

    UserError when there is nothing to compare, or masks differ in size.
    """
    runs = find_runs(predictions) if predictions.is_dir() else []
    masks, table = _of_runs(runs) if runs else _of_files(predictions)
    true_masks = _masks(truth / "masks" if (truth / "masks").is_dir() else truth) if truth.is_dir() else {}
    path = truth / "labels.csv" if truth.is_dir() else truth
    classes, labels, groups = _labels(path) if path.is_file() else ((), {}, None)
    if masks and true_masks:
        yield "masks", score_masks(masks, true_masks, groups)
    only_masks = masks and table is not None and not set(classes) & set(table)  # the summary of a segmenter
    if table is not None and labels and not only_masks:
        yield "probabilities", score_probabilities(table, classes, labels, groups)


def _of_runs(runs: list[RunResult]) -> tuple[Masks, pd.DataFrame | None]:
    """What runs, such as the folds of a cross-validation, predict of their test images, put together."""
    masks: Masks = {}
    for run in runs:
        for id_ in run.mask_ids("test") if run.task == "segmentation" else ():
            if id_ in masks:
                raise UserError(f"{run.folder}: {id_} is a test image of another run too: give the folds of one split")
            masks[id_] = lambda run=run, id_=id_: run.predicted_mask("test", id_)
    tables = [run.predictions("test") for run in runs if run.task == "classification"]
    if not tables:
        return masks, None
    table = pd.concat(tables, ignore_index=True).drop(columns=["label", "group"], errors="ignore")
    if table["image_id"].duplicated().any() or table.isna().any(axis=None):
        raise UserError(
            f"{runs[0].folder.parent}: runs of the same test images, or other classes: give folds of one split"
        )
    return masks, table


def _of_files(path: Path) -> tuple[Masks, pd.DataFrame | None]:
    """A folder of masks, one that predict.py wrote, or a table of probabilities."""
    csv_path = path / "summary.csv" if path.is_dir() else check_file(path)
    table = None
    if csv_path.is_file():
        with reading(csv_path):
            table = pd.read_csv(csv_path, sep=_separator(csv_path))
            key = next((name for name in IDS if name in table), table.columns[0])
            table = table.rename(columns={key: "image_id"})
            table["image_id"] = table["image_id"].astype(str).map(as_id)
    return _masks(path, table is not None) if path.is_dir() else {}, table


def _separator(path: Path) -> str:
    with check_file(path).open(encoding="utf-8-sig", errors="replace") as file:
        return separator(file.readline())


def _masks(folder: Path, predicted: bool = False) -> Masks:
    """All images there, or those named as masks where there are any: predict.py puts other pictures beside them.

    predicted: it is a folder of predict.py's, of a classifier perhaps, whose pictures are no masks.
    """
    files = files_by_id(folder, masks=True)
    named = {id_: file for id_, file in files.items() if file.stem != id_}
    return {id_: lambda file=file: read_mask(file) for id_, file in (named if named or predicted else files).items()}


def _labels(path: Path) -> tuple[tuple[str, ...], dict[str, int], dict[str, str] | None]:
    """Classes, labels and groups of the challenge's label file, or one's own."""
    columns = pd.read_csv(path, nrows=0, encoding="utf-8-sig", sep=_separator(path)).columns
    if [name.strip() for name in columns] == ["image_id", *CLASSES[:2]]:
        return CLASSES, read_labels(path), None
    return read_table(path)[:3]


def score_masks(masks: Masks, truth: Masks, groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """As `utils.evaluation.segmentation.summarize`. UserError when a pair differs in size."""
    counts = {}
    for id_ in progress(_common(masks.keys(), truth.keys()), "comparing masks"):
        predicted, true = masks[id_](), truth[id_]()
        if predicted.shape != true.shape:
            sizes = "{1}×{0} and {3}×{2}".format(*predicted.shape, *true.shape)
            raise UserError(f"{id_}: the predicted and the true mask differ in size ({sizes}): resize the photographs")
        counts[id_] = confusion_counts(predicted, true)
    return summarize_masks(counts, groups)


def score_probabilities(
    table: pd.DataFrame, classes: tuple[str, ...], labels: dict[str, int], groups: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All scores where both sides know the same classes, else the AUC of each class that both know."""
    shared = [name for name in classes if name in table]
    if not shared:
        raise UserError(f"no class in common: {', '.join(classes)} in the truth, {', '.join(table)} predicted")
    table = table.dropna(subset=shared).set_index("image_id")  # predict.py leaves those empty of what it could not read
    table = table.loc[_common(table.index, labels.keys())]
    true, together = np.array([labels[id_] for id_ in table.index]), lesions(table.index, groups)
    if len(shared) == len(classes) and (table[list(classes)].sum(axis=1) - 1).abs().max() < 2e-3:  # four digits
        values = table[list(classes)].to_numpy()
        return summarize(values / values.sum(axis=1, keepdims=True), true, classes, together)
    log.info("only these classes are known to both sides, each is scored against the rest: %s", ", ".join(shared))
    scores: dict[str, Any] = {"images": len(true), "interval_95": {}}
    for name in shared:
        p, positive = table[name].to_numpy(), true == classes.index(name)
        value = auc(p, positive)
        scores[name] = {"auc": None if np.isnan(value) else value}
        scores["interval_95"][name] = {"auc": interval(auc(p, positive, resample(len(true), together)))}
    return scores


def _common(predicted: Iterable[str], true: Iterable[str]) -> list[str]:
    """Ids that both sides have, sorted; what only one has is told."""
    predicted, true = set(predicted), set(true)
    if not predicted & true:
        raise UserError(f"no image in common: predicted {listed(sorted(predicted))}; true {listed(sorted(true))}")
    for title, ids in (("without a prediction", true - predicted), ("without a truth", predicted - true)):
        if ids:
            log.warning("%d images %s are not scored: %s", len(ids), title, listed(sorted(ids)))
    return sorted(predicted & true)


def wrong_scores(run: RunResult, data: Path | None = None) -> Iterator[str]:
    """Each number of metrics.json that the run's own predictions do not give, in words.

    data: the challenge's folder; predictions are then scored by its masks and labels, not by what the run keeps.
    """
    for split in IMAGES:
        if run.metrics[split]:
            found = dict(_numbers(_scores_again(run, split, data)))
            for name, value in _numbers(run.metrics[split]):
                ours = found.get(name)
                if value != ours and (None in (value, ours) or abs(value - ours) > 1e-6):
                    yield f"{run.folder}/metrics.json: {split} {name} is {value}, its predictions give {ours}"


def _scores_again(run: RunResult, split: str, data: Path | None) -> dict[str, Any]:
    files = find_files(data, split) if data and not run.own else None
    with reading(f"{run.folder}, {split}"):
        if run.task == "classification":
            table = run.predictions(split)
            labels = table["image_id"].map(read_labels(files.labels)) if files else table["label"]
            together = lesions(table["image_id"], groups_of(table))
            return summarize(table[[*run.classes]].to_numpy(), labels.to_numpy(), run.classes, together)
        counts, table = {}, run.per_image(split)
        for id_, *pixels in table[["image_id", *COUNTS]].itertuples(index=False):
            if files:
                pixels = confusion_counts(run.predicted_mask(split, id_), read_mask(files.masks[id_]))
            counts[id_] = tuple(pixels)
        return summarize_masks(counts, groups_of(table))


def _numbers(nested: Any, name: str = "") -> Iterator[tuple[str, float | None]]:
    """Every number of nested dictionaries and lists, by the names that lead to it."""
    if isinstance(nested, dict | list):
        for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
            yield from _numbers(value, f"{name} {key}".strip())
    else:
        yield name, nested


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.evaluation.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path, help="folder of masks, of predict.py or of runs; or a CSV file")
    parser.add_argument("truth", type=Path, help="folder with masks/ or labels.csv; folder of masks; or a CSV file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    args = parser.parse_args(argv)
    found = dict(score(args.predictions, args.truth))
    if not found:
        raise UserError(
            f"{args.truth}: no truth of what is in {args.predictions}; expected masks/ or labels.csv in it, a folder "
            "of masks, or a table (of the challenge's data, its …_Part1_GroundTruth/ or …_Part3_GroundTruth.csv)"
        )
    for name, scores in found.items():
        log.info(format_scores(name, scores))
    if args.json:
        with written_whole(args.json) as file:
            file.write((json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
