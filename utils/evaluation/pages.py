"""The two tables of each README: a row of each network, each number with a link to its runs."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nets.pretrained import find_pretrained
from utils.config import EXPERIMENTS
from utils.evaluation.rows import Row, leading
from utils.files import check_file, reading

SHOWN = {"segmentation": "jaccard", "classification": "mean AUC"}  # columns of the tables
WORDS = {
    "README.md": {
        "head": "row | network | starts from | {0}, validation | {0}, test | trained in",
        "jaccard": "Jaccard",
        "mean AUC": "mean AUC",
        "random": "random weights",
        "time": "{minutes} min, {cores} core{s}",
        "gpu": "{minutes} min, {device}",
        "ensemble": "{0} runs together",
        "epochs": "; {0} of {1} epochs",
    },
    "README.zh.md": {
        "head": "行 | 网络 | 初始权重 | {0}，验证集 | {0}，测试集 | 训练用时",
        "jaccard": "Jaccard",
        "mean AUC": "平均 AUC",
        "random": "随机权重",
        "time": "{minutes} 分钟，{cores} 核",
        "gpu": "{minutes} 分钟，{device}",
        "ensemble": "{0} 次训练合并",
        "epochs": "；{0}/{1} 轮",
    },
}


def readme_table(rows: Sequence[Row], table: pd.DataFrame, task: str, readme: Path) -> str:
    """Markdown of six columns; rows and their line of `utils.evaluation.tables.wide_table`, the best first.

    Shown are those that `leading` chooses.
    """
    words, score = WORDS[readme.name], SHOWN[task]
    lines = [words["head"].format(words[score]), " | ".join(["---"] * 6)]
    known, shown = {row.name: row for row in rows}, leading(rows)
    for row, (_, line) in zip(rows, table.iterrows(), strict=True):
        if not any(row is each for each in shown):
            continue
        folder = Path(os.path.commonpath([run.folder for run in row.runs]))
        link = Path(os.path.relpath(folder, readme.parent)).as_posix()
        scores = [re.sub(r"^[\d.]+", rf"[\g<0>]({link})", str(line[name])) for name in (score, f"test {score}")]
        network = f"`{line['network'].replace(' + ', '`, `')}` {line['size']}".removesuffix(" –")
        members = [known.get(name, row) for name in row.settings.get("ensemble", [row.name])]
        start = ", ".join(dict.fromkeys(_start(member, words) for member in members))
        lines.append(" | ".join([row.name, network, start, *scores, _training(row, words)]))
    return "".join(f"| {line} |\n" for line in lines)


def _start(row: Row, words: dict[str, str]) -> str:
    weights, known = row.settings.get("weights") or {}, find_pretrained(row.settings["net"])
    if not row.settings["pretrained"]:
        return words["random"]
    # The first file of a network of timm's is that of its hub, which may have seen other images; arl18.pth is ours.
    files = known.files[1:] if known and known.hub else known.files if known and known.url else ()
    if "ImageNet" in weights.get("source", ""):
        return "ImageNet"
    return known.learnt_from if weights.get("file") in files else f"`{weights.get('file')}`"


def _training(row: Row, words: dict[str, str]) -> str:
    """How long training took, without validation, and on what; and how many epochs short of the row's it stopped."""
    if "ensemble" in row.settings:
        return words["ensemble"].format(sum(map(len, row.settings["ensemble"].values())))
    minutes = []
    for path in (run.folder / "history.csv" for run in row.runs):
        with reading(path):
            minutes.append(pd.read_csv(check_file(path))["train_seconds"].sum() / 60)
    cores, device = _span([run.config["cpu_threads"] for run in row.runs]), row.runs[0].config["device"]
    known = {"minutes": _span(np.round(minutes).astype(int)), "cores": cores, "s": "s" * (cores != "1")}
    told = words["time" if device.startswith("cpu") else "gpu"].format(**known, device=device)
    short = row.name in EXPERIMENTS and re.search(r"(\d+) of (\d+) epochs", row.note)
    return told + (words["epochs"].format(*short.groups()) if short else "")


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}–{high}"
