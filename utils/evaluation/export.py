"""Scores as text, and results tables: Markdown, LaTeX, CSV, and files of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.evaluation.runs import lookup


@dataclass(frozen=True)
class Score:
    """Mean over seeds, standard deviation over seeds (None for one), 95 % interval over images (None: not known).

    As text ".757 ± .004 [.722, .790]"; NaN, for an undefined score, as "–".
    """

    mean: float = math.nan
    std: float | None = None
    interval: tuple[float, float] | None = None

    @classmethod
    def over_seeds(cls, values: Sequence[float | None], interval: Sequence[float] | None) -> "Score":
        """Undefined where the score of one seed is (None)."""
        if None in values:
            return cls()
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), spread, tuple(interval) if interval else None)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        spread = "" if self.std is None else f" ± {format_number(self.std)}"
        ends = "" if self.interval is None else f" [{', '.join(map(format_number, self.interval))}]"
        return f"{format_number(self.mean)}{spread}{ends}"


def format_number(value: float, digits: int = 3) -> str:
    """.757, or "–" for NaN. Rounded before, so that a last bit that differs between machines does not show."""
    if math.isnan(value):
        return "–"
    text = f"{round(value, 9):.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell as it is printed: ".757 ± .004 [.722, .790]", ".020", "<.001" (p values), "–" for NaN."""

    def column(name: str) -> list[str]:
        values = list(table[name])
        numbers = [value for value in values if isinstance(value, float) and not math.isnan(value)]
        # Published numbers keep their own digits.
        fine = name.startswith("published") and any(abs(value - round(value, 3)) > 1e-9 for value in numbers)
        return [text(name, value, 4 if fine else 3) for value in values]

    def text(name: str, value: Any, digits: int) -> str:
        if not isinstance(value, float):
            return str(value)
        return "<.001" if name.split()[0] == "p" and value < 0.0005 else format_number(value, digits)

    return pd.DataFrame({name: column(name) for name in table}, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    return as_text(table).to_markdown(index=False, disable_numparse=True) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """A tabular for the package booktabs."""
    return as_text(table).to_latex(index=False, escape=True).replace("<", "$<$")  # "<" alone is another sign


def to_csv(table: pd.DataFrame) -> str:
    """Numbers of seven digits; of a column "jaccard" of scores "jaccard", "jaccard std", "jaccard low", "jaccard high".

    What is undefined is empty.
    """
    columns = {}
    for name in table:
        values = list(table[name])
        if not any(isinstance(value, Score) for value in values):
            columns[name] = values
            continue
        columns[name] = [score.mean for score in values]
        columns[f"{name} std"] = [score.std for score in values]
        for end, word in enumerate(("low", "high")):
            columns[f"{name} {word}"] = [score.interval[end] if score.interval else None for score in values]
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n", float_format="%.7g")


def export_table(table: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a table as name.csv, name.md and name.tex; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".csv": to_csv(table), ".md": to_markdown(table), ".tex": to_latex(table)}
    for ending, text in texts.items():
        (folder / f"{name}{ending}").write_bytes(text.encode())
    return [folder / f"{name}{ending}" for ending in texts]


def format_scores(split: str, summary: Mapping[str, Any]) -> str:
    """The main scores of what either task's `summarize` says of a split, and their intervals, as lines of text."""
    values, intervals = summary, summary.get("interval_95")
    if "official" in summary:
        kind = "official scores (mean over images at mask size)"
        values, intervals = summary["official"], summary["official_interval_95"]
        paths = {name: (name,) for name in values}
    else:
        kind = "by the most probable class" if "accuracy" in summary else "each class against the rest"
        overall = {"mean_auc": "mean AUC", "balanced_accuracy": "balanced accuracy"}
        paths = {title: (key,) for key, title in overall.items() if key in summary}
        names = {"auc": "AUC"} | {name: name for name in ("accuracy", "sensitivity", "specificity")}
        for task in [name for name, scores in summary.items() if isinstance(scores, dict) and "auc" in scores]:
            title = task.replace("_", " ")
            paths |= {f"{title}: {names[key]}": (task, key) for key in names if key in summary[task]}
    lines, width = [f"{split}, {summary['images']} images: {kind} [95 % interval]"], max(map(len, paths))
    for name, path in paths.items():
        text = "undefined: no such image"
        if (value := lookup(values, path)) is not None:
            text = "{:.4f}  [{:.4f}, {:.4f}]".format(value, *lookup(intervals, path))
        lines.append(f"  {name:<{width}} {text}")
    return "\n".join(lines)
