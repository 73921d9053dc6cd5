"""Results tables as text: Markdown, LaTeX, CSV, files of them, and the results section of README.md."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from utils import UserError
from utils.config import DEFAULTS
from utils.evaluation.rows import result_rows
from utils.evaluation.runs import RunResult, find_runs
from utils.evaluation.tables import (
    Score,
    classification_table,
    format_number,
    pooled_table,
    published_table,
    segmentation_table,
)
from utils.files import written_whole

START, END = "<!-- results -->", "<!-- /results -->"
BAR = r"\|"  # "|" within a cell of a Markdown table
_LEGEND = (
    "Score: mean over seeds ± standard deviation over seeds [95 % bootstrap interval over images]; one seed has no ±. "
    "–: no such run yet, or undefined. The numbers under seeds lead to the runs. Those under “published” are not ours "
    "and all of the official test images. Validation images also chose the best epoch, which flatters their scores. "
    "Intervals tell of other images, not of another training: that is what ± is for.\n"
)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell as it is printed: ".757 ± .004 [.722, .790]", ".020", "<.001" (p values), "–" for NaN."""

    def text(column: str, value: Any, digits: int) -> str:
        if not isinstance(value, float):
            return str(value)
        return "<.001" if column.split()[0] == "p" and value < 0.0005 else format_number(value, digits)

    def column(name: str) -> list[str]:
        values = list(table[name])
        known = [value for value in values if isinstance(value, float) and not math.isnan(value)]
        fine = name.startswith("published") and any(abs(value - round(value, 3)) > 1e-9 for value in known)
        return [text(name, value, 4 if fine else 3) for value in values]  # published ones in their own digits

    return pd.DataFrame({name: column(name) for name in table}, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    table = as_text(table)
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(text.replace('|', BAR) for text in line)} |\n" for line in lines)


def to_csv(table: pd.DataFrame) -> str:
    """Numbers in full; of a column "jaccard" of scores "jaccard", "jaccard std", "jaccard low", "jaccard high".

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
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")


def to_latex(table: pd.DataFrame) -> str:
    """A tabular that needs no package."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    signs |= {"±": r"$\pm$", "×": r"$\times$", "–": "--", **{sign: "\\" + sign for sign in "&%$#_{}"}}
    table = as_text(table)
    first, *others = (
        " & ".join(text.translate(str.maketrans(signs)) for text in line) + r" \\"
        for line in (list(table.columns), *table.to_numpy().tolist())
    )
    ends = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\end{tabular}"
    return "\n".join([ends[0], r"\hline", first, r"\hline", *others, r"\hline", ends[1], ""])


def export_table(table: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a table as name.csv, name.md and name.tex; the folder is made. UserError when it cannot be written."""
    texts = {".csv": to_csv(table), ".md": to_markdown(table), ".tex": to_latex(table)}
    paths = [folder / f"{name}{ending}" for ending in texts]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_bytes(text.encode())
    except OSError as error:
        raise UserError(
            f"{folder}: tables cannot be written there ({error.strerror}); choose another folder"
        ) from error
    return paths


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
        prog="python -m utils.evaluation.runs", description="Write README.md's results section."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when it is out of date")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs (results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the section (README.md)")
    args = parser.parse_args(argv)
    try:
        text = args.readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.readme} cannot be read ({error}); choose --readme FILE") from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end or text.count(START) > 1 or text.count(END) > 1:
        raise UserError(f"{args.readme}: expected {START} once and {END} once after it, to write the results between")
    section = f"\n\n{results_section(args.results, args.readme.parent)}\n"
    section = section.replace("\n", "\r\n") if "\r\n" in before + after else section
    new = before + start + section + end + after
    if new != text and args.check:
        print(f"{args.readme}: the results section is out of date; python -m utils.evaluation.runs writes it")
        sys.exit(1)
    if new != text:
        with written_whole(args.readme) as file:
            file.write(new.encode())


def readable_tables(runs: Sequence[RunResult], task: str, split: str) -> dict[str, pd.DataFrame]:
    """By title; that of classification in two, which are narrow enough to be read."""
    if task == "segmentation":
        official = {"official scores (mean over images at mask size)": segmentation_table(runs, split)}
        return {**official, "all pixels pooled": pooled_table(runs, split)}
    table = classification_table(runs, split)
    hidden = {"melanoma (MEL)": "SK ", "seborrheic keratosis (SK)": "MEL "}
    return {title: table[[name for name in table if other not in name]] for title, other in hidden.items()}
