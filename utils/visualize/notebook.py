"""What the notebooks need beside the parts of the scripts: their data, settings for a trial, showing things."""

import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import torch
from matplotlib.figure import Figure

import nets
from utils import UserError
from utils.command_line import SCRIPTS
from utils.config import Config
from utils.data.cache import ImageCache
from utils.data.isic import CLASSES, Sample, find_files
from utils.data.loader import train_loader
from utils.data.own import is_own
from utils.data.synthetic import make_synthetic
from utils.data.transforms import Transforms
from utils.evaluation.export import Score, as_text, export_table
from utils.evaluation.rows import Row, row_names
from utils.evaluation.tables import PUBLISHED
from utils.logger import log, start_logging
from utils.model.run import Run
from utils.visualize.comparison import save_figure
from utils.visualize.examples import photograph
from utils.visualize.figures import Panel
from utils.visualize.overlay import jpeg
from utils.visualize.style import words

WIDTH, LARGE = 936, 150_000  # pixels of a figure that is a page wide; bytes of a PNG, which plots alone stay below
# With SMOKE=1 in the environment a notebook, or the script made of it, runs through in about a minute.
SMOKE = os.environ.get("SMOKE", "0") not in ("", "0")
_LEFT = '<th style="text-align: left">'
_DIFFERENCE = ["difference", "low", "high"]
_FRESH = ["-p", "0", "--lr", "1e-3"]
_TRIAL = {  # flags that end within ten minutes on two cores
    "classification": ["--size", "80", "80", "--epochs", "4", "--lr", "1e-3", "--output", "model/trial"],
    "segmentation": ["--size", "80", "60", "--epochs", "3", "--output", "model/trial"],
}
_SYNTHETIC = {  # counts and size of the synthetic data for each task, and flags that suit them
    "classification": (
        {"train": 600, "validation": 120, "test": 120},
        (192, 144),
        [*_FRESH, "--size", "64", "64", "--epochs", "8", "--output", "model/synthetic"],
    ),
    "segmentation": (
        {"train": 160, "validation": 40, "test": 40},
        (384, 288),
        [*_FRESH, "--size", "96", "72", "--epochs", "10", "--output", "model/synthetic"],
    ),
    "smoke": (
        {"train": 24, "validation": 12, "test": 12},
        (96, 72),
        [*_FRESH, "--size", "32", "32", "--epochs", "2", "--batch-size", "8", "--output", "model/smoke"],
    ),
}


def find_data(folder: str | Path, task: str, full: bool = False) -> tuple[Path, list[str]]:
    """Where to find images, and flags of the task's script that suit them.

    `folder` where the challenge's images lie in it, and flags for a trial of minutes, none when `full`; else synthetic
    data, drawn in Data/ when they are not there yet, and flags for them. With SMOKE they are always synthetic, and
    very few.

    task: "segmentation" or "classification". UserError for a folder of one's own.
    """
    start_logging()
    if not SMOKE and is_own(Path(folder)):
        raise UserError(f"{folder}: a folder of one's own; python {SCRIPTS[task]} --data {folder} trains on it")
    if not SMOKE and str(folder) and Path(folder).is_dir() and find_files(folder, "train").images:
        return Path(folder), [] if full else _TRIAL[task]
    kind = "smoke" if SMOKE else task
    counts, size, flags = _SYNTHETIC[kind]
    reason = "SMOKE is set" if SMOKE else f"no training images in {folder!r}"
    log.info("%s: synthetic data instead, drawn and not photographed; scores on them say nothing about skin", reason)
    return make_synthetic(Path("Data") / f"synthetic_{kind}", counts, size), flags


def folders(text: str) -> list[str]:
    """The folders that a notebook's parameter names: one of that very name, or several with spaces between them.

    Among several, quotes hold a name with spaces together.
    """
    return [text] if Path(text).is_dir() else shlex.split(Path(text).as_posix())  # "\\" is Windows' "/"


def photographs(samples: Sequence[Sample]) -> list[Panel]:
    """Panels for `plot_contours`: id and class as title, the true outline where there is a mask."""
    titles = [s.id if s.label is None else f"{s.id}\n{CLASSES[s.label].replace('_', ' ')}" for s in samples]
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


def ranked(
    table: pd.DataFrame,
    names: Sequence[str],
    by: str,
    differences: Mapping[str, pd.DataFrame],
    more: Sequence[str] = (),
) -> pd.DataFrame:
    """A results table as it fits a screen: the best row first, and by how much each one differs from it.

    Columns: row, the score `by`; those of `differences` (by score, tables of `utils.evaluation.tables.compare`), each
    with the difference from the best row that is compared and its 95 % interval; then `more`, and seeds. table: of
    `utils.evaluation.tables`; names: of its rows.
    """
    table = table.assign(row=list(names))
    table = table.loc[table[by].map(lambda score: -score.mean).sort_values(kind="stable").index]
    shown = {"row": table["row"], words(by): table[by]}
    for score, pairs in differences.items():
        known = {}  # Score of one row less another, by their names
        for first, second, value, low, high in pairs[["first", "second", *_DIFFERENCE]].itertuples(index=False):
            known[first, second] = Score(value, None, (low, high))
            known[second, first] = Score(-value, None, (-high, -low))
        best = next((name for name in table["row"] if name in {*pairs["first"], *pairs["second"]}), "none")
        less = [known.get((name, best), Score()) for name in table["row"]]
        shown |= {words(score): table[score], f"{words(score)}: less {best}": pd.Series(less, table.index)}
    return pd.DataFrame(shown | {words(name): table[name] for name in (*more, "seeds")})


def notes(rows: Sequence[Row]) -> pd.DataFrame:
    """In what rows differ from the settings of the row that they are named after; those that do not are left out."""
    told = [(name, row.note) for name, row in zip(row_names(rows), rows, strict=True) if row.note]
    return pd.DataFrame(told, columns=["row", "its runs differ from the row's settings by"])


def published(table: pd.DataFrame) -> pd.DataFrame:
    """`utils.evaluation.tables.published_table` with short names of columns, the widest known scores first."""
    short = {name: name.removeprefix(PUBLISHED) for name in table}
    return table.rename(columns=short).drop(columns=[short[name] for name in table if "accuracy" in name])


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
        content.savefig(png, dpi=WIDTH / 7.2, bbox_inches="tight")
        _show_png(png.getvalue())
        return
    table = as_text(content)
    if "ipykernel" in sys.modules:
        from IPython.display import HTML, display

        with pd.option_context("display.max_colwidth", None):
            html = table.to_html(index=False)
        html = re.sub(r"<td>(?=[^<]{,60}<)", '<td style="white-space: nowrap; text-align: left">', html)
        html = html.replace("<td>", '<td style="text-align: left">').replace("<th>", _LEFT)
        display(HTML(f'<div style="font-size: 90%">{html}</div>'))
    else:
        print(table.to_string(index=False))


def keep(content: Figure | pd.DataFrame, folder: str | Path, name: str, shown: pd.DataFrame | None = None) -> None:
    """Write a figure or a table, name.pdf and name.png or name.csv, name.md and name.tex, and show it, or `shown`."""
    if isinstance(content, Figure):
        save_figure(content, Path(folder), name)
    else:
        export_table(content, Path(folder), name)
    show(content if shown is None else shown)


def show_saved(run: Run, *names: str) -> None:
    """Show figures that a run has saved."""
    for name in names:
        path = run.path("figures") / name
        if path.is_file():
            _show_png(path.read_bytes())
        else:
            print(f"{name}: this network has none")


def _show_png(content: bytes) -> None:
    """As JPEG where there are photographs in it: a fifth of the bytes in a saved notebook."""
    if "ipykernel" in sys.modules:  # IPython is there when a kernel is
        from IPython.display import Image, display

        picture = PIL.Image.open(io.BytesIO(content))
        if len(content) > LARGE:
            content = jpeg(np.asarray(picture.convert("RGB")))
        display(Image(content, width=min(WIDTH, picture.width)))
