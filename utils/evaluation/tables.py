"""Results tables: our runs with the published numbers beside them, paired tests, and the results section of README.md.

    python -m utils.evaluation.tables            write that section from the runs in results/
    python -m utils.evaluation.tables --check    write nothing; exit code 1 when it is out of date

Every score of ours is a `Score`. Published numbers are plain floats, in columns whose names say so, and none of them
enters any computation.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils import UserError
from utils.config import DEFAULTS
from utils.data.isic import lesions
from utils.evaluation.classification import SPECIFICITIES, TASKS, score_intervals
from utils.evaluation.export import Score, to_markdown
from utils.evaluation.rows import Row, result_rows, row_names
from utils.evaluation.runs import RunResult, find_runs, lookup, reading
from utils.evaluation.segmentation import COUNTS, METRICS, pooled_intervals
from utils.evaluation.statistics import bootstrap_interval, delong_test, holm, paired_bootstrap
from utils.files import check_file, written_whole
from utils.logger import run_script

PUBLISHED_2022 = "published (2022, test) "  # before a metric's name: the earlier project's number for this row
PUBLISHED = "published (test) "

_OFFICIAL = ("accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard")
_MEAN = "mean of background and lesion: "
_POOLED = {  # as all of these: by column, where the score is in metrics.json
    **{name: ("pooled", name) for name in _OFFICIAL[:5]},
    **{_MEAN + name: ("pooled", "mean_of_background_and_lesion", name) for name in _OFFICIAL[3:]},
}
_SHORT = {"MEL": TASKS[0], "SK": TASKS[1]}
_CLASSIFICATION = {
    **{
        f"{short} {name.replace('auc', 'AUC')}": (task, name)
        for short, task in _SHORT.items()
        for name in ("auc", "accuracy", "sensitivity", "specificity")
    },
    "mean AUC": ("mean_auc",),
}
_OPERATING_POINTS = {
    f"{short} at specificity {specificity:.2f}": (task, "sensitivity_at_specificity", f"{specificity:.2f}")
    for short, task in _SHORT.items()
    for specificity in SPECIFICITIES
}
_AUC = {f"{task}_auc": number for number, task in enumerate(TASKS)}  # metrics of `compare`
OTHERS = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
START, END = "<!-- results -->", "<!-- /results -->"
_LEGEND = (
    "Score: mean over seeds ± standard deviation over seeds [95 % bootstrap interval over images]; one seed has no ±. "
    "–: no such run yet, or undefined. The numbers under seeds lead to the runs. Those under “published” are not ours "
    "and all of the official test images. Validation images also chose the best epoch, which flatters their scores. "
    "Intervals tell of other images, not of another training: that is what ± is for.\n"
)


def segmentation_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """Official scores, a line for each of `result_rows`. The published (2022) numbers are no such scores.

    Columns: experiment, network, pretrained, size, seeds (how many), a `Score` for each metric, note (`deviations`).
    An interval is that of the mean over seeds: every resample takes the same images for all of them.
    """
    return _table(runs, "segmentation", split, {name: ("official", name) for name in _OFFICIAL})


def pooled_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """As `segmentation_table`, of all images' pixels together: the lesion, then the means of background and lesion.

    The published (2022) numbers are of this kind and stand beside.
    """
    published = {name: (name,) for name in _OFFICIAL[:3]} | {_MEAN + name: (name,) for name in _OFFICIAL[3:]}
    return _table(runs, "segmentation", split, _POOLED, published)


def classification_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """AUC, and the scores of the most probable class; otherwise as `segmentation_table`, published beside."""
    published = {heading: path for heading, path in _CLASSIFICATION.items() if heading != "mean AUC"}
    return _table(runs, "classification", split, _CLASSIFICATION, published)


def operating_points_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """The highest sensitivity that leaves a specificity of 0.80, 0.90, 0.95; lines as in `classification_table`."""
    return _table(runs, "classification", split, _OPERATING_POINTS)


def published_table(task: str) -> pd.DataFrame:
    """What others reached on the official test images: name, source, floats (NaN: not published)."""
    lines = [
        {"published by": each["by"], "source": each["source"]}
        | {PUBLISHED + heading: value for heading, value in each["scores"].items()}
        for each in OTHERS["others"][task]
    ]
    return pd.DataFrame(lines)


def compare(runs: Sequence[RunResult], metric: str, split: str = "test") -> pd.DataFrame:
    """Every pair of rows that have runs, on the same images: by how much the first scores higher, and paired tests.

    metric: of `METRICS`, per image and averaged over seeds: p is of `paired_bootstrap`. Or "melanoma_auc",
    "seborrheic_keratosis_auc": `delong_test` of the mean AUC over seeds. Ensembles, made of another row's runs, are
    left out. Columns: first, second (`row_names`), images, difference, low, high (95 %), p, p (Holm: adjusted for all
    pairs of the table).

    UserError when rows were scored on different images, or a run does not keep what is needed; ValueError for a metric.
    """
    if metric not in (*METRICS, *_AUC):
        raise ValueError(f"metric {metric!r}: expected one of {', '.join((*METRICS, *_AUC))}")
    rows = result_rows(runs, "classification" if metric in _AUC else "segmentation", split)
    rows = [row for row in rows if row.runs and "ensemble" not in row.settings]
    if metric in _AUC:
        values = [row.probabilities(split)[0][..., _AUC[metric]] for row in rows]  # [S, N] each
    else:
        values = [row.scores(split, metric).mean(axis=0) for row in rows]  # [N] each
    images = [row.per_image(split)[0].reindex(columns=["image_id", "label"]) for row in rows]
    if other := [row.label for row, those in zip(rows, images, strict=True) if not those.equals(images[0])]:
        raise UserError(
            f"{rows[0].label} and {other[0]} were scored on different {split} images or labels: leave one out"
        )
    lines, names = [], row_names(rows)
    for a, b in combinations(range(len(rows)), 2):
        if metric in _AUC:
            result = delong_test((images[0]["label"] == _AUC[metric]).to_numpy(), values[a], values[b])
        else:
            result = paired_bootstrap(values[a], values[b], lesions(images[0]["image_id"]))
        lines.append((names[a], names[b], len(images[0]), result.difference, *result.interval, result.p_value))
    table = pd.DataFrame(lines, columns=["first", "second", "images", "difference", "low", "high", "p"])
    table["p (Holm)"] = holm(table["p"])
    return table


def readable_tables(runs: Sequence[RunResult], task: str, split: str) -> dict[str, pd.DataFrame]:
    """By title; that of classification in two, which are narrow enough to be read."""
    if task == "segmentation":
        official = {"official scores (mean over images at mask size)": segmentation_table(runs, split)}
        return {**official, "all pixels pooled": pooled_table(runs, split)}
    table = classification_table(runs, split)
    hidden = {"melanoma (MEL)": "SK ", "seborrheic keratosis (SK)": "MEL "}
    return {title: table[[name for name in table if other not in name]] for title, other in hidden.items()}


def _table(
    runs: Sequence[RunResult],
    task: str,
    split: str,
    columns: Mapping[str, tuple[str, ...]],
    published: Mapping[str, tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """columns, published: by heading, where to find the score in a run's metrics, or among the row's published ones."""
    lines = []
    for row in result_rows(runs, task, split):
        size, pretrained = row.settings.get("size", ("–",)), row.settings["pretrained"]
        line: dict[str, Any] = {"experiment": row.experiment, "network": row.settings["net"]}
        line |= {"pretrained": "yes" if pretrained else "no", "size": "×".join(map(str, size)), "seeds": len(row.runs)}
        line |= _scores(row, split, columns) if row.runs else dict.fromkeys(columns, Score())
        others = OTHERS["rows"].get(row.experiment)
        for heading, path in (published or {}).items():
            line[PUBLISHED_2022 + heading] = lookup(others, path) if others else math.nan
        lines.append({**line, "note": row.note})
    return pd.DataFrame(lines)


def _scores(row: Row, split: str, columns: Mapping[str, tuple[str, ...]]) -> dict[str, Score]:
    with reading(row.runs[0].folder / "metrics.json"):
        if row.runs[0].task == "segmentation":
            tables = row.per_image(split)
            together = lesions(tables[0]["image_id"])
            means = np.mean([table[list(METRICS)] for table in tables], axis=0)  # [N, 6]
            official = {n: bootstrap_interval(values, together) for n, values in zip(METRICS, means.T, strict=True)}
            counts = np.stack([table[list(COUNTS)] for table in tables])
            known = {"official": official, "pooled": pooled_intervals(counts, groups=together)}
        elif len(row.runs) > 1:
            together = lesions(row.per_image(split)[0]["image_id"])
            known = score_intervals(*row.probabilities(split), groups=together)
        else:  # which need not keep the truth
            known = row.runs[0].metrics[split]["interval_95"]
        return {
            heading: Score.over_seeds([run.score(split, path) for run in row.runs], lookup(known, path))
            for heading, path in columns.items()
        }


def main_scores(summary: Mapping[str, Any]) -> dict[str, tuple[float | None, Sequence[float]]]:
    """Of what either task's `summarize` says of a split, the main scores by name, and their 95 % intervals."""
    if "official" in summary:
        return {name: (value, summary["official_interval_95"][name]) for name, value in summary["official"].items()}
    overall = {"mean_auc": "mean AUC", "balanced_accuracy": "balanced accuracy"}
    paths = {title: (key,) for key, title in overall.items() if key in summary}
    for task in [name for name, scores in summary.items() if isinstance(scores, dict) and "auc" in scores]:
        names = {"auc": "AUC"} | {name: name for name in _OFFICIAL[:3] if name in summary[task]}
        paths |= {f"{task.replace('_', ' ')}: {name}": (task, key) for key, name in names.items()}
    return {name: (lookup(summary, path), lookup(summary["interval_95"], path)) for name, path in paths.items()}


def format_scores(split: str, summary: Mapping[str, Any]) -> str:
    """The main scores of a split as lines of text."""
    kind = "by the most probable class" if "accuracy" in summary else "each class against the rest"
    kind = "official scores (mean over images at mask size)" if "official" in summary else kind
    lines = [f"{split}, {summary['images']} images: {kind} [95 % interval]"]
    scores = main_scores(summary)
    width = max(map(len, scores))
    for name, (value, interval) in scores.items():
        known = "undefined: no such image" if value is None else f"{value:.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"
        lines.append(f"  {name:<{width}} {known}")
    return "\n".join(lines)


def results_section(folder: Path, start: Path) -> str:
    """The generated part of README.md, from the runs below `folder`, with links relative to the folder `start`."""

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, start)).as_posix()

    runs = find_runs(folder)
    parts = [_LEGEND] if runs else [f"No runs in `{link(folder)}/` yet.\n"]
    for task in DEFAULTS:
        there = [run for run in runs if run.task == task]
        for split in ("test", "validation"):
            if any(run.metrics[split] for run in there):
                rows = result_rows(there, task, split)
                links = [" ".join(f"[{run.seed}]({link(run.folder)})" for run in row.runs) or "–" for row in rows]
                for title, table in readable_tables(there, task, split).items():
                    parts.append(f"### {task.capitalize()}, {split}: {title}\n")
                    parts.append(to_markdown(table.assign(seeds=links)))
        if there:
            parts += [f"### {task.capitalize()}: published by others\n", to_markdown(published_table(task))]
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.evaluation.tables", description="Write README.md's results section."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when it is out of date")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs (results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the section (README.md)")
    args = parser.parse_args(argv)
    text = check_file(args.readme).read_text(encoding="utf-8")
    section = f"{START}\n\n{results_section(args.results, args.readme.parent)}\n{END}"
    new, found = re.subn(f"{START}.*?{END}", lambda _: section, text, flags=re.DOTALL)
    if found != 1:
        raise UserError(f"{args.readme}: expected {START} once and {END} once after it, to write the results between")
    if new != text and args.check:
        print(f"{args.readme}: the results section is out of date; python -m utils.evaluation.tables writes it")
        sys.exit(1)
    if new != text:
        with written_whole(args.readme) as file:
            file.write(new.encode())


if __name__ == "__main__":
    run_script(main)
