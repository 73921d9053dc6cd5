"""Results tables: our runs with the published numbers beside them, and paired tests.

Every score of ours is a `Score`. Published numbers are plain floats, in columns whose names say so, and none of them
enters any computation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from utils import UserError
from utils.config import EXPERIMENTS
from utils.evaluation.classification import SPECIFICITIES, TASKS, score_intervals
from utils.evaluation.rows import Row, result_rows, row_names
from utils.evaluation.runs import RunResult
from utils.evaluation.segmentation import COUNTS, METRICS, pooled_intervals
from utils.evaluation.statistics import bootstrap_interval, delong_test, holm, paired_bootstrap, wilcoxon

PUBLISHED_2022 = "published (2022, test) "  # before a metric's name: the earlier project's number for this row
PUBLISHED = "published (test) "

_OFFICIAL = ("accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard")
_MEAN = "mean of background and lesion: "
_POOLED = {  # column: path in metrics.json's "pooled"
    **{name: (name,) for name in _OFFICIAL[:5]},
    **{_MEAN + name: ("mean_of_background_and_lesion", name) for name in _OFFICIAL[3:]},
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
_PAPER, _CHALLENGE = "Zhang et al. 2019, doi 10.1109/TMI.2019.2893944", "ISIC 2017 challenge, arXiv:1710.05006"
_ARL_CNN50 = (0.875, 0.850, 0.658, 0.896, 0.958, 0.868, 0.878, 0.867, 0.917)
_RESNET50 = (0.857, 0.838, 0.632, 0.888, 0.948, 0.842, 0.867, 0.837, math.nan)
REFERENCES: dict[str, tuple[tuple[str, str, dict[str, float]], ...]] = {
    "segmentation": (
        ("Yuan", _CHALLENGE, {"jaccard": 0.765}),
        ("Berseth", _CHALLENGE, {"jaccard": 0.762}),
        ("Bi", _CHALLENGE, {"jaccard": 0.760}),
    ),
    "classification": (
        ("ARL-CNN50", _PAPER, dict(zip(_CLASSIFICATION, _ARL_CNN50, strict=True))),
        ("ResNet50", _PAPER, dict(zip(_CLASSIFICATION, _RESNET50, strict=True))),
        ("Matsunaga", _CHALLENGE, {"mean AUC": 0.911}),
        ("Díaz", _CHALLENGE, {"mean AUC": 0.910}),
        ("RECOD", _CHALLENGE, {"mean AUC": 0.908}),
    ),
}
Intervals = Mapping[tuple[str, ...], Sequence[float]]


@dataclass(frozen=True)
class Score:
    """Mean over seeds, standard deviation over seeds (None for one), 95 % interval over images.

    As text ".757 ± .004 [.722, .790]"; NaN, for a row without runs or an undefined score, as "–".
    """

    mean: float = math.nan
    std: float | None = None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        spread = "" if self.std is None else f" ± {format_number(self.std)}"
        return f"{format_number(self.mean)}{spread} [{', '.join(map(format_number, self.interval))}]"


def segmentation_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """Official scores, a line for each of `utils.evaluation.rows.result_rows`. The published (2022) numbers are no such scores.

    Columns: experiment, network, pretrained, size, seeds (how many), a `Score` for each metric, note (`deviations`).
    The interval of several seeds is that of the images' means over seeds.
    """

    def intervals(row: Row) -> Intervals:
        by_name = row.runs[0].metrics[split]["official_interval_95"]
        if len(row.runs) > 1:
            means = np.mean([table[list(METRICS)] for table in row.per_image(split)], axis=0)  # [N, 6]
            by_name = {name: bootstrap_interval(values) for name, values in zip(METRICS, means.T, strict=True)}
        return {("official", name): interval for name, interval in by_name.items()}

    return _table(runs, "segmentation", split, {name: ("official", name) for name in _OFFICIAL}, intervals)


def pooled_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """As `segmentation_table`, of all images' pixels together: the lesion, then the means of background and lesion.

    The published (2022) numbers are of this kind and stand beside.
    """

    def intervals(row: Row) -> Intervals:
        drawn = pooled_intervals(np.stack([table[list(COUNTS)] for table in row.per_image(split)]))
        return {("pooled", *path): _at(drawn, path) for path in _POOLED.values()}

    columns = {heading: ("pooled", *path) for heading, path in _POOLED.items()}
    published = {name: (name,) for name in _OFFICIAL[:3]} | {_MEAN + name: (name,) for name in _OFFICIAL[3:]}
    return _table(runs, "segmentation", split, columns, intervals, published)


def classification_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """AUC, and the scores of the most probable class; columns and lines as in `segmentation_table`, published beside.

    The interval of several seeds is that of their mean score: every resample takes the same images for all of them.
    """

    published = {heading: path for heading, path in _CLASSIFICATION.items() if heading != "mean AUC"}
    return _table(runs, "classification", split, _CLASSIFICATION, _classification_intervals(split), published)


def operating_points_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """The highest sensitivity that leaves a specificity of 0.80, 0.90, 0.95; lines as in `classification_table`."""
    return _table(runs, "classification", split, _OPERATING_POINTS, _classification_intervals(split))


def published_table(task: str) -> pd.DataFrame:
    """What others reached on the official test images: name, source, floats (NaN: not published)."""
    lines = [
        {"published by": name, "source": source, **{PUBLISHED + heading: value for heading, value in scores.items()}}
        for name, source, scores in REFERENCES[task]
    ]
    return pd.DataFrame(lines)


def compare(runs: Sequence[RunResult], metric: str, split: str = "test") -> pd.DataFrame:
    """Every pair of rows that have runs, on the same images: by how much the first scores higher, and paired tests.

    Ensembles are left out: they are made of the runs of another row.

    metric: of `utils.evaluation.segmentation.METRICS`, per image and averaged over seeds: p is of `paired_bootstrap`, and
    Wilcoxon's stands beside. Or "melanoma_auc", "seborrheic_keratosis_auc": `delong_test` of the mean AUC over seeds.
    Columns: first, second, images, difference, low, high (95 %), p, p (Holm), p Wilcoxon, p Wilcoxon (Holm); "(Holm)"
    is adjusted for all pairs of the table. first and second are `utils.evaluation.rows.row_names`.

    UserError when rows were scored on different images, or a run does not keep what is needed; ValueError for a metric.
    """
    if metric not in (*METRICS, *_AUC):
        raise ValueError(f"metric {metric!r}: expected one of {', '.join((*METRICS, *_AUC))}")
    rows = result_rows(runs, "classification" if metric in _AUC else "segmentation", split)
    rows = [row for row in rows if row.runs and "ensemble" not in row.settings]
    values, keys = [], []
    for row in rows:
        tables = row.per_image(split)
        if metric in _AUC:
            probabilities, classes = row.probabilities(split)
            values.append(probabilities[..., _AUC[metric]])
        else:
            values.append(row.scores(split, metric).mean(axis=0))
        keys.append(list(tables[0]["image_id"]) + ([*classes] if metric in _AUC else []))
        if keys[-1] != keys[0]:
            raise UserError(
                f"{rows[0].label} and {row.label} were scored on different {split} images or labels "
                f"({values[0].shape[-1]} and {values[-1].shape[-1]} images): compare runs on the same"
            )
    lines, names = [], row_names(rows)
    for a, b in combinations(range(len(rows)), 2):
        if metric in _AUC:
            result, more = delong_test(classes == _AUC[metric], values[a], values[b]), ()
        else:
            result, more = paired_bootstrap(values[a], values[b]), (wilcoxon(values[a], values[b]),)
        pair = (names[a], names[b], values[a].shape[-1])
        lines.append((*pair, result.difference, *result.interval, result.p_value, *more))
    tests = ["p"] if metric in _AUC else ["p", "p Wilcoxon"]
    table = pd.DataFrame(lines, columns=["first", "second", "images", "difference", "low", "high", *tests])
    for name in tests:
        table.insert(table.columns.get_loc(name) + 1, f"{name} (Holm)", holm(table[name]))
    return table


def _classification_intervals(split: str) -> Callable[[Row], Intervals]:
    def intervals(row: Row) -> Intervals:
        several = len(row.runs) > 1
        known = score_intervals(*row.probabilities(split)) if several else row.runs[0].metrics[split]["interval_95"]
        return {path: _at(known, path) for path in (*_CLASSIFICATION.values(), *_OPERATING_POINTS.values())}

    return intervals


def _table(
    runs: Sequence[RunResult],
    task: str,
    split: str,
    columns: Mapping[str, tuple[str, ...]],
    intervals: Callable[[Row], Intervals],
    published: Mapping[str, tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """columns, published: by heading, where to find the score in a run's metrics, or in `Experiment.published`."""
    lines = []
    for row in result_rows(runs, task, split):
        size, pretrained = row.settings.get("size", ("–",)), row.settings["pretrained"]
        line: dict[str, Any] = {"experiment": row.experiment, "network": row.settings["net"]}
        line |= {"pretrained": "yes" if pretrained else "no", "size": "×".join(map(str, size)), "seeds": len(row.runs)}
        known = intervals(row) if row.runs else {}
        for heading, path in columns.items():
            values = [_at(run.metrics[split], path) for run in row.runs]
            line[heading] = Score()
            if values and None not in values:
                std = float(np.std(values, ddof=1)) if len(values) > 1 else None
                line[heading] = Score(float(np.mean(values)), std, tuple(known[path]))
        others = EXPERIMENTS[row.experiment].published if row.experiment in EXPERIMENTS else {}
        for heading, path in (published or {}).items():
            line[PUBLISHED_2022 + heading] = _at(others, path) if others else math.nan
        lines.append({**line, "note": row.note})
    return pd.DataFrame(lines)


def _at(scores: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        scores = scores[name]
    return scores


def format_scores(split: str, summary: Mapping[str, Any]) -> str:
    """What either task's `summarize` says of a split, as lines of text: the main scores with their 95 % intervals."""

    def line(name: str, value: float | None, interval: Sequence[float]) -> str:
        known = "undefined: no such image" if value is None else f"{value:.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]"
        return f"  {name:<18} {known}"

    if official := summary.get("official"):
        title, intervals = "official scores (mean over images at mask size)", summary["official_interval_95"]
        lines = [line(name, value, intervals[name]) for name, value in official.items()]
    else:
        title, intervals = "classes by the highest probability", summary["interval_95"]
        names = {"mean AUC": "mean_auc", "balanced accuracy": "balanced_accuracy"}
        lines = [line(name, summary[key], intervals[key]) for name, key in names.items()]
        names = {"AUC": "auc", **{name: name for name in ("accuracy", "sensitivity", "specificity")}}
        for task in TASKS:
            lines.append(f" {task.replace('_', ' ')}")
            lines += [line(name, summary[task][key], intervals[task][key]) for name, key in names.items()]
    return "\n".join([f"{split}, {summary['images']} images: {title} [95 % interval]", *lines])


def format_number(value: float, digits: int = 3) -> str:
    """.757, or "–" for NaN. Rounded before, so that a last bit that differs between machines does not show."""
    if math.isnan(value):
        return "–"
    text = f"{round(value, 9):.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text
