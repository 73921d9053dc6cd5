"""What the notebooks need beside the parts of the scripts: their data, settings for a trial, showing things."""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

import nets
from utils.config import Experiment
from utils.data.cache import ImageCache
from utils.data.isic import CLASSES, Sample, find_files
from utils.data.loader import train_loader
from utils.data.synthetic import make_synthetic
from utils.data.transforms import Transforms
from utils.evaluation.classification import TASKS
from utils.evaluation.export import as_text, export_table
from utils.evaluation.tables import Score
from utils.logger import log, start_logging
from utils.model.run import Run
from utils.visualize.comparison import save_figure
from utils.visualize.examples import photograph
from utils.visualize.figures import Panel

# With SMOKE=1 in the environment a notebook, or the script made of it, runs through in about a minute.
SMOKE = os.environ.get("SMOKE", "0") not in ("", "0")
_QUICK = ["-p", "0", "--lr", "1e-3"]
_SAMPLES = {  # counts and size of the embedded sample for each task, and flags that suit it and two cores
    "classification": (
        ({"train": 1200, "validation": 200, "test": 200}, (192, 144)),
        [*_QUICK, "--size", "64", "64", "--epochs", "25", "--output", "model/sample"],
    ),
    "segmentation": (
        ({"train": 160, "validation": 40, "test": 40}, (384, 288)),
        [*_QUICK, "--size", "128", "128", "--epochs", "20", "--output", "model/sample"],
    ),
    "smoke": (
        ({"train": 24, "validation": 12, "test": 12}, (96, 72)),
        [*_QUICK, "--size", "32", "32", "--epochs", "2", "--batch-size", "8", "--output", "model/smoke"],
    ),
}


def find_data(folder: str | Path, task: str) -> tuple[Path, list[str]]:
    """Where to find images, and the flags of the script that suit them.

    `folder` where the challenge's images lie in it, and no flags; else an embedded sample, drawn in Data/ when it is
    not there yet, and flags for a short run. With SMOKE it is always a sample, a very small one.

    task: "segmentation" or "classification".
    """
    start_logging()
    folder = Path(folder)
    if not SMOKE and folder.is_dir() and find_files(folder, "train").images:
        return folder, []
    kind = "smoke" if SMOKE else task
    (counts, size), flags = _SAMPLES[kind]
    reason = "SMOKE is set" if SMOKE else f"{folder} holds no training images"
    log.info("%s: the embedded sample instead, drawn and not photographed; its scores say nothing about skin", reason)
    return make_synthetic(Path("Data") / f"sample_{kind}", counts, size), flags


def photographs(samples: Sequence[Sample]) -> list[Panel]:
    """Panels for `plot_contours`: id and class as title, the true outline where there is a mask."""
    titles = [s.id if s.label is None else f"{s.id}: {CLASSES[s.label].replace('_', ' ')}" for s in samples]
    return [photograph(sample, title) for sample, title in zip(samples, titles, strict=True)]


def some_of_each_class(samples: Sequence[Sample], count: int = 4) -> list[Sample]:
    return [s for label in range(len(CLASSES)) for s in [s for s in samples if s.label == label][:count]]


def training_views(cache: ImageCache, views: Transforms, seed: int = 0) -> list[Panel]:
    """The first epoch's view of each image of a cache, as the network gets it, with its mask or class."""
    loader = train_loader(cache, views, len(cache.samples), seed, torch.device("cpu"), workers=0)
    images, targets = next(iter(loader))
    if targets.ndim == 1:
        return [Panel(CLASSES[t].replace("_", " "), i.numpy()) for i, t in zip(images, targets.tolist(), strict=True)]
    return [Panel("", image.numpy(), mask.numpy()) for image, mask in zip(images, targets, strict=True)]


def settings_table(row: Experiment) -> pd.DataFrame:
    """What the experiment's row, the notebook's parameters and flags amount to; the published numbers are left out."""
    settings = {name: value for name, value in asdict(row).items() if name != "published" and value is not None}
    return pd.DataFrame(
        {"setting": [name.replace("_", " ") for name in settings], "value": map(str, settings.values())}
    )


def scores_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The main scores of a split of metrics.json, of either task, with their 95 % intervals."""
    if "official" in summary:
        scores, intervals = summary["official"], summary["official_interval_95"]
        found = {name: (value, intervals[name]) for name, value in scores.items()}
    else:
        intervals = summary["interval_95"]
        found = {name: (summary[name], intervals[name]) for name in ("mean_auc", "balanced_accuracy")}
        for task in TASKS:
            names = ("auc", "accuracy", "sensitivity", "specificity")
            found |= {f"{task}: {name}": (summary[task][name], intervals[task][name]) for name in names}
    scores = [Score() if value is None else Score(value, None, tuple(interval)) for value, interval in found.values()]
    names = [name.replace("_", " ").replace("auc", "AUC") for name in found]
    return pd.DataFrame({"score": names, "value [95 % interval]": map(str, scores)})


class Stopped(KeyboardInterrupt):
    """What a notebook shows of an interrupted training, in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def train(script: ModuleType, command: Sequence[str]) -> Run:
    """`seg_main` or `cls_main` with a command line; an interruption becomes one line that says how to go on."""
    try:
        return script.main(list(command))
    except KeyboardInterrupt as request:
        where = str(request).partition(";")[0] or "after the last checkpoint"
        raise Stopped(f"stopped {where}: run this cell again to go on from there") from None


def network_table(names: Sequence[str]) -> pd.DataFrame:
    """Parameters of networks, in millions, and how many of them are the α of an ARL block."""
    rows = []
    for name in names:
        state = dict(nets.create_model(name).named_parameters())
        millions = round(sum(tensor.numel() for tensor in state.values()) / 1e6, 2)
        alphas = sum(key.endswith("attention.alpha") for key in state)
        rows.append({"network": name, "million parameters": millions, "of them α": alphas})
    return pd.DataFrame(rows)


def show(content: Figure | pd.DataFrame) -> None:
    """Show a figure or table below the cell; a plain script prints tables and shows no figures."""
    if isinstance(content, Figure):
        png = io.BytesIO()
        content.savefig(png, dpi=100, bbox_inches="tight")
        _show_png(data=png.getvalue())
    elif "ipykernel" in sys.modules:
        from IPython.display import HTML, display

        with pd.option_context("display.max_colwidth", None):
            html = content.to_html(index=False).replace("<td>", '<td style="white-space: nowrap">')
        display(HTML(f'<div style="font-size: 85%">{html}</div>' if len(content.columns) > 8 else html))
    else:
        print(content.to_string(index=False))


def keep(content: Figure | pd.DataFrame, folder: str | Path, name: str) -> None:
    """Show a figure or a table, and write it: name.pdf and name.png, or name.csv, name.md and name.tex."""
    if isinstance(content, Figure):
        show(content)
        paths = save_figure(content, Path(folder), name)
    else:
        paths = export_table(content, Path(folder), name)
        table = as_text(content)
        notes = table.pop("note") if "note" in table else pd.Series("", table.index)
        if notes.any():
            table["experiment"] += notes.astype(bool).map({True: "*", False: ""})
        show(table)
        for line in notes.index[notes.astype(bool)]:
            print(f"{table['experiment'][line]}, {table['size'][line]}: {notes[line]}")
    log.info("%s: %s", folder, ", ".join(path.name for path in paths))


def show_saved(run: Run, *names: str) -> None:
    """Show figures that a run has saved, and say where they lie."""
    for name in names:
        path = run.path("figures") / name
        if path.is_file():
            _show_png(filename=str(path), width=1000)
        log.info("figure: %s%s", path, "" if path.is_file() else " (this network has none)")


def _show_png(**options) -> None:
    if "ipykernel" in sys.modules:  # IPython is there when a kernel is
        from IPython.display import Image, display

        display(Image(**options))
