"""Results tables, the published numbers, paired tests between rows; and the files that show the runs of results/.

    python -m utils.evaluation.tables            write results/TABLES.md and *.csv, and the two tables of each README
    python -m utils.evaluation.tables --check    write nothing; exit code 2 when one of them is out of date

Both first make every score again from the predictions that its run keeps, and stop where another one stands in
metrics.json. Every score of ours is a `Score`. Published numbers are plain floats, in a table of their own.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from utils import UserError
from utils.config import DEFAULTS
from utils.data.isic import CLASSES
from utils.evaluation.classification import SPECIFICITIES, TASKS, auc, score_intervals
from utils.evaluation.export import Score, to_csv, to_markdown
from utils.evaluation.pages import WORDS, readme_table
from utils.evaluation.rows import Row, result_rows, row_names
from utils.evaluation.runs import RunResult, find_runs, lookup
from utils.evaluation.score import wrong_scores
from utils.evaluation.segmentation import COUNTS, METRICS, pooled_intervals
from utils.evaluation.statistics import RESAMPLES, bootstrap_interval, holm, paired_bootstrap, resample, weighted_mean
from utils.files import listed, load_json, reading, written_whole
from utils.logger import log, run_script

PUBLISHED = "published (test) "  # before a metric's name

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
_WIDE = {  # columns of the tables of results/, the primary score first
    "segmentation": {name: ("official", name) for name in (*_OFFICIAL[3:], *_OFFICIAL[:3])}
    | {f"pooled {name}": path for name, path in _POOLED.items()},
    "classification": {"mean AUC": ("mean_auc",)} | _CLASSIFICATION | _OPERATING_POINTS,
}
_RATES = {"accuracy": "acc", "sensitivity": "se", "specificity": "sp"}
_OVERALL = {"jaccard": "jaccard", "dice": "dice", "threshold_jaccard": "tji", "mean AUC": "mean_auc"}
_TEST = {name: (key,) for name, key in (_OVERALL | _RATES).items()}  # of these, where a run's `test_scores` have them
_BOTH = {f"{_MEAN}jaccard": "jsi2", f"{_MEAN}dice": "dsc2"}
_TEST |= {f"pooled {name}": ("pooled", key) for name, key in (_RATES | _BOTH).items()}
for _name, _key in ({"AUC": "auc"} | _RATES).items():
    _TEST |= {f"{short} {_name}": (task, _key) for short, task in _SHORT.items()}
_TEST_INTERVALS = {"jaccard": ("jaccard_ci",)} | {f"{short} AUC": (task, "ci") for short, task in _SHORT.items()}
_SECTIONS = {  # of TABLES.md, by title: a pattern for the start of the columns' names
    "segmentation": {"mean over images, each at its mask's size": "[a-z_]+$", "all pixels pooled": "pooled"},
    "classification": {"melanoma (MEL)": "mean|MEL", "seborrheic keratosis (SK)": "mean|SK"},
}
_ELSEWHERE = {  # by column: where `utils.evaluation.score --json` has the score and its interval
    "jaccard": (("masks", "official", "jaccard"), ("masks", "official_interval_95", "jaccard")),
    "dice": (("masks", "official", "dice"), ("masks", "official_interval_95", "dice")),
    "MEL AUC": (("probabilities", "melanoma", "auc"), ("probabilities", "interval_95", "melanoma", "auc")),
}
_AUC = {f"{task}_auc": number for number, task in enumerate(TASKS)}  # metrics of `compare`
OTHERS = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
_HEAD = """# Results tables

Made by `python -m utils.evaluation.tables`; [docs/scores.md](../docs/scores.md#the-tables) says how to read them.
"""


def segmentation_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """Official scores, a line for each of `result_rows`.

    Columns: experiment, network, pretrained, size, seeds (how many), a `Score` for each metric, note (`deviations`).
    An interval is that of the mean over seeds: every resample takes the same images for all of them.
    """
    columns = {name: ("official", name) for name in _OFFICIAL}
    return _table(result_rows(runs, "segmentation", split), split, columns)


def pooled_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """Of all images' pixels together: the lesion, then the means of background and lesion."""
    return _table(result_rows(runs, "segmentation", split), split, _POOLED)


def classification_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """AUC, and the scores of the most probable class."""
    return _table(result_rows(runs, "classification", split), split, _CLASSIFICATION)


def operating_points_table(runs: Sequence[RunResult], split: str) -> pd.DataFrame:
    """The highest sensitivity that leaves a specificity of 0.80, 0.90, 0.95."""
    return _table(result_rows(runs, "classification", split), split, _OPERATING_POINTS)


def published_table(task: str) -> pd.DataFrame:
    """What others reached on the official test images: name, source, floats (NaN: not published)."""
    lines = [
        {"published by": each["by"], "source": each["source"]}
        | {PUBLISHED + heading: value for heading, value in each["scores"].items()}
        for each in OTHERS[task]
    ]
    return pd.DataFrame(lines)


def compare(runs: Sequence[RunResult], metric: str, split: str = "test") -> pd.DataFrame:
    """Every pair of rows, on the same images: by how much the first scores higher, and paired tests.

    metric: of `METRICS`, or "melanoma_auc", "seborrheic_keratosis_auc"; averaged over seeds. p: of `paired_bootstrap`.
    Ensembles, made of another row's runs, are left out. Columns: first, second (`row_names`), images, difference, low,
    high (95 %), p, p (Holm: adjusted for all pairs of the table). UserError when rows were scored on different images,
    or a run does not keep what is needed.
    """
    rows = result_rows(runs, "classification" if metric in _AUC else "segmentation", split)
    rows = [row for row in rows if "ensemble" not in row.settings]
    images = [row.per_image(split)[0].reindex(columns=["image_id", "label"]) for row in rows]
    lines, names = [], row_names(rows)
    if other := [name for name, those in zip(names, images, strict=True) if not those.equals(images[0])]:
        raise UserError(f"{names[0]} and {other[0]} were scored on different {split} images or labels: leave one out")
    resamples = max(RESAMPLES, 100 * math.comb(len(rows), 2))  # else no p of many pairs is below 0.05 after Holm
    scores = [_resampled(row, metric, split, resamples) for row in rows]
    for (first, a), (second, b) in combinations(zip(names, scores, strict=True), 2):
        result = paired_bootstrap(a, b)
        lines.append((first, second, len(images[0]), result.difference, *result.interval, result.p_value))
    table = pd.DataFrame(lines, columns=["first", "second", "images", "difference", "low", "high", "p"])
    table["p (Holm)"] = holm(table["p"])
    return table


def _resampled(row: Row, metric: str, split: str, resamples: int) -> tuple[float, np.ndarray]:
    """A metric's mean over seeds, of all images and in each of the resamples [R]."""
    weights = resample(row.runs[0].metrics[split]["images"], row.lesions(split), resamples)
    if metric not in _AUC:
        values = row.scores(split, metric).mean(axis=0)  # [N]
        return values.mean(), weighted_mean(values, weights)
    probabilities, labels = row.probabilities(split)
    positive, each = labels == _AUC[metric], probabilities[..., _AUC[metric]]  # [N], [S, N]
    return np.mean([auc(p, positive) for p in each]), np.mean([auc(p, positive, weights) for p in each], axis=0)


def _table(rows: Sequence[Row], split: str, columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """columns: by heading, where to find the score in a run's metrics."""
    lines = []
    for row in rows:
        size = "×".join(map(str, row.settings.get("size", ["–"])))  # an ensemble may have several
        line = {"experiment": row.name, "network": row.settings["net"]}
        line |= {"pretrained": "yes" if row.settings["pretrained"] else "no", "size": size, "seeds": len(row.runs)}
        lines.append({**line, **_scores(row, split, columns), "note": row.note})
    return pd.DataFrame(lines, columns=["experiment", "network", "pretrained", "size", "seeds", *columns, "note"])


def _scores(row: Row, split: str, columns: Mapping[str, tuple[str, ...]]) -> dict[str, Score]:
    with reading(row.runs[0].folder / "metrics.json"):
        if row.runs[0].task == "segmentation":
            tables = row.per_image(split)
            together = row.lesions(split)
            means = np.mean([table[list(METRICS)] for table in tables], axis=0)  # [N, 6]
            official = {n: bootstrap_interval(values, together) for n, values in zip(METRICS, means.T, strict=True)}
            counts = np.stack([table[list(COUNTS)] for table in tables])
            known = {"official": official, "pooled": pooled_intervals(counts, groups=together)}
        elif len(row.runs) > 1:
            known = score_intervals(*row.probabilities(split), groups=row.lesions(split))
        else:  # which need not keep the truth
            known = row.runs[0].metrics[split]["interval_95"]
        return {
            heading: Score.over_seeds([run.score(split, path) for run in row.runs], lookup(known, path))
            for heading, path in columns.items()
        }


def wide_table(rows: Sequence[Row], task: str) -> pd.DataFrame:
    """Every validation score of rows, then as "test …" what `RunResult.test_scores` has of them."""
    table = _table(rows, "validation", _WIDE[task])
    for name in (name for name in _WIDE[task] if name in _TEST):
        cells = []
        for row in rows:
            known = [run.test_scores for run in row.runs]
            values = [lookup(scores, _TEST[name]) if scores else None for scores in known]
            ends = _TEST_INTERVALS.get(name) if len(known) == 1 and known[0] else None
            cells.append(Score.over_seeds(values, lookup(known[0], ends) if ends else None))
        table.insert(len(table.columns) - 1, f"test {name}", cells)
    return table


def elsewhere_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Scores on other data, in the `elsewhere_NAME.json` that `utils.evaluation.score --json` left in a run's folder.

    Nothing is chosen by them. Columns: experiment, seed, data (NAME), images, a `Score` for each metric.
    """
    lines = []
    for run in runs:
        for path in sorted(run.folder.glob("elsewhere_*.json")):
            line = {"experiment": run.experiment, "seed": run.seed, "data": path.stem.removeprefix("elsewhere_")}
            with reading(path):
                scores = load_json(path)
                line["images"] = max(each["images"] for each in scores.values())
                for name, (value, ends) in _ELSEWHERE.items():
                    there = value[0] in scores
                    line[name] = Score.over_seeds([lookup(scores, value)], lookup(scores, ends)) if there else Score()
            lines.append(line)
    return pd.DataFrame(lines)


def ranked_rows(runs: Sequence[RunResult], task: str) -> list[Row]:
    """The rows of runs with validation scores, the best by the primary one first."""
    return sorted(result_rows(runs, task, "validation"), key=lambda row: -np.mean([run.primary for run in row.runs]))


def result_files(folder: Path) -> dict[Path, str]:
    """TABLES.md and CSV files of the runs below `folder`, and the READMEs beside it with their tables made anew."""
    runs, files, parts = find_runs(folder), {}, [_HEAD]
    readmes = {path: path.read_text(encoding="utf-8") for name in WORDS if (path := folder.parent / name).is_file()}
    for task in DEFAULTS:
        rows = ranked_rows(runs, task)
        singles = [replace(row, runs=(run,)) for row in rows for run in row.runs]
        table, each = wide_table(rows, task), wide_table(singles, task)
        paths = {run.folder: run.folder.relative_to(folder).as_posix() for row in rows for run in row.runs}
        links = [" ".join(f"[{run.seed}]({paths[run.folder]})" for run in row.runs) for row in (*rows, *singles)]
        shown = {title: (table.assign(seeds=links[: len(rows)]), names) for title, names in _SECTIONS[task].items()}
        shown["every run"] = each.assign(seeds=links[len(rows) :]), "jaccard|dice|threshold|mean|.* AUC"
        for title, (whole, pattern) in shown.items():
            names = [name for name in _WIDE[task] if re.match(pattern, name)]
            columns = [column for name in names for column in (name, f"test {name}") if column in whole]
            text = to_markdown(whole[[*whole.columns[:5], *columns, "note"]])
            parts.append(f"## {task.capitalize()}: {title}\n\n{text}")
        parts.append(f"## {task.capitalize()}: published by others\n\n{to_markdown(published_table(task))}")
        files[folder / f"{task}.csv"] = to_csv(table)
        files[folder / f"{task}_runs.csv"] = to_csv(
            each.assign(seeds=[*paths.values()]).rename(columns={"seeds": "run"})
        )
        for path, text in readmes.items():
            start, end = f"<!-- {task} -->", f"<!-- /{task} -->"
            new = f"{start}\n\n{readme_table(rows, table, task, path)}\n{end}"
            readmes[path], found = re.subn(f"{start}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
            if found != 1:
                raise UserError(f"{path}: expected {start} once and {end} once after it, to write the table between")
    if len(elsewhere := elsewhere_table([run for run in runs if not run.own])):
        parts.append(f"## Trained on ISIC 2017, seen elsewhere\n\n{to_markdown(elsewhere)}")
    return {**files, folder / "TABLES.md": "\n".join(parts), **readmes}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.evaluation.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 when something is out of date")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs (results)")
    parser.add_argument("--data", type=Path, help="score by the challenge's masks and labels in this folder")
    args = parser.parse_args(argv)
    if not (runs := find_runs(args.results)):
        raise UserError(f"{args.results}: no finished runs below this folder; reproduce.py puts them there")
    if wrong := [problem for run in runs for problem in wrong_scores(run, args.data)]:
        raise UserError("\n  ".join(["scores that the predictions do not give:", *wrong[:10]]))
    log.info("%d runs: every score in metrics.json is that of the run's predictions", len(runs))
    if others := [str(run.folder) for run in runs if run.classes != CLASSES]:
        log.info("of other classes than ISIC 2017's, and in none of the tables: %s", listed(others, 3, 1000))
    files = result_files(args.results)
    old = {path: text for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text}
    for path, text in {} if args.check else old.items():
        with written_whole(path) as file:
            file.write(text.encode())
    if args.check and old:
        raise UserError(f"out of date: {', '.join(map(str, old))}; python -m utils.evaluation.tables writes them")
    log.info("%d files are up to date: %s", len(files), ", ".join(map(str, files)))


if __name__ == "__main__":
    run_script(main)
