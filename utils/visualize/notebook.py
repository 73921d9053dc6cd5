"""What the notebooks need beside the parts of the scripts: their data, settings for a trial, showing things."""

import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

import nets
from utils.config import Config
from utils.data.cache import ImageCache
from utils.data.isic import CLASSES, Sample, find_files
from utils.data.loader import train_loader
from utils.data.synthetic import make_synthetic
from utils.data.transforms import Transforms
from utils.evaluation.export import Score, as_text, export_table, main_scores
from utils.logger import log, start_logging
from utils.model.run import Run
from utils.visualize.comparison import save_figure
from utils.visualize.examples import photograph
from utils.visualize.figures import Panel

# With SMOKE=1 in the environment a notebook, or the script made of it, runs through in about a minute.
SMOKE = os.environ.get("SMOKE", "0") not in ("", "0")
_QUICK = ["-p", "0", "--lr", "1e-3"]
_SYNTHETIC = {  # counts and size of the synthetic data for each task, and flags that suit them and two cores
    "classification": (
        {"train": 1200, "validation": 200, "test": 200},
        (192, 144),
        [*_QUICK, "--size", "64", "64", "--epochs", "25", "--output", "model/synthetic"],
    ),
    "segmentation": (
        {"train": 160, "validation": 40, "test": 40},
        (384, 288),
        [*_QUICK, "--size", "128", "128", "--epochs", "20", "--output", "model/synthetic"],
    ),
    "smoke": (
        {"train": 24, "validation": 12, "test": 12},
        (96, 72),
        [*_QUICK, "--size", "32", "32", "--epochs", "2", "--batch-size", "8", "--output", "model/smoke"],
    ),
}


def find_data(folder: str | Path, task: str) -> tuple[Path, list[str]]:
    """Where to find images, and flags of the task's script that suit them.

    `folder` where the challenge's images lie in it, and no flags; else synthetic data, drawn in Data/ when they are
    not there yet, and flags for a short run. With SMOKE they are always synthetic, and very few.

    task: "segmentation" or "classification".
    """
    start_logging()
    folder = Path(folder)
    if not SMOKE and folder.is_dir() and find_files(folder, "train").images:
        return folder, []
    kind = "smoke" if SMOKE else task
    counts, size, flags = _SYNTHETIC[kind]
    reason = "SMOKE is set" if SMOKE else f"{folder} holds no training images"
    log.info("%s: synthetic data instead, drawn and not photographed; scores on them say nothing about skin", reason)
    return make_synthetic(Path("Data") / f"synthetic_{kind}", counts, size), flags


def folders(text: str) -> list[str]:
    """The folders that a notebook's parameter names: one of that very name, or several with spaces between them.

    Among several, quotes hold a name with spaces together.
    """
    return [text] if Path(text).is_dir() else shlex.split(Path(text).as_posix())  # "\\" is Windows' "/"


def photographs(samples: Sequence[Sample]) -> list[Panel]:
    """Panels for `plot_contours`: id and class as title, the true outline where there is a mask."""
    titles = [s.id if s.label is None else f"{s.id}: {CLASSES[s.label].replace('_', ' ')}" for s in samples]
    return [photograph(sample, title) for sample, title in zip(samples, titles, strict=True)]


def some_of_each_class(samples: Sequence[Sample], count: int = 4) -> list[Sample]:
    return [s for label in range(len(CLASSES)) for s in [s for s in samples if s.label == label][:count]]


def training_images(cache: ImageCache, transforms: Transforms, seed: int = 0) -> list[Panel]:
    """What the first epoch draws of each image of a cache, as the network gets it, with its mask or class."""
    loader = train_loader(cache, transforms, len(cache.samples), seed, torch.device("cpu"), workers=0)
    images, targets = next(iter(loader))
    if targets.ndim == 1:
        return [Panel(CLASSES[t].replace("_", " "), i.numpy()) for i, t in zip(images, targets.tolist(), strict=True)]
    return [Panel("", image.numpy(), mask.numpy()) for image, mask in zip(images, targets, strict=True)]


def settings_table(config: Config) -> pd.DataFrame:
    """What the experiment's row and the notebook's parameters amount to."""
    settings = {name: value for name, value in config.settings().items() if value is not None}
    return pd.DataFrame(
        {"setting": [name.replace("_", " ") for name in settings], "value": map(str, settings.values())}
    )


def scores_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The main scores of a split of metrics.json, of either task, with their 95 % intervals."""
    scores = {
        name: Score() if value is None else Score(value, None, tuple(interval))
        for name, (value, interval) in main_scores(summary).items()
    }
    return pd.DataFrame({"score": scores.keys(), "value [95 % interval]": map(str, scores.values())})


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
        notes = table.pop("note") if "note" in table else []
        show(table)
        for name, note in zip(table.iloc[:, 0], notes, strict=False):
            if note:
                print(f"{name}: {note}")
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
