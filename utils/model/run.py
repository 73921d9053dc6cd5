"""The run folder: what a training run keeps, and finding it again."""

import csv
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils import UserError, distributed
from utils.config import ROOT
from utils.data.isic import Sample
from utils.files import load_json, locked, reading, written_whole
from utils.logger import log, logged_to

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OWN = ("config.json", "history.csv", "last.pth", "best.pth")  # tell that a folder is a run's
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "albumentations", "segmentation-models-pytorch")
AFRESH = "start afresh with -c 0 (the old run is kept)"
KEPT = (
    "history.csv", "per_image.csv", "validation_masks.zip", "test_masks.zip",
    "validation_probabilities.zip", "test_probabilities.zip",
    "validation_predictions.csv", "validation_predictions_official.csv", "validation_truth_official.csv",
    "test_predictions.csv", "test_predictions_official.csv", "test_truth_official.csv", "metrics.json",
)  # fmt: skip # metrics.json last: where it lies, the folder is whole
TOLD = {  # where these facts differ, a continuation has other bits
    "precision": "precision", "cpu_threads": "number of CPU threads", "versions": "versions of packages",
    "arl_kernel": "ARL kernel",
}  # fmt: skip


class Run:
    """A run's folder: config.json, history.csv, metrics.json, checkpoints, figures/, tensorboard/, train.log …

    As a context manager it ends with the lock on its folder given back; one process at a time may hold it. While it is
    open, what the program logs is added to train.log too. Of several processes that train together
    (`utils.distributed`) the first one writes, and on the others nothing is written.

    Args:
        folder: e.g. `model/seg-2/run0`. It is made when absent. A run that lies there is continued when `resume`,
            else moved aside to `run0.old1`, `run0.old2`, … and never written to again.
        settings: what defines the run, plain values by name; a continuation must have the same.
        facts: what the run is made with (`environment`, a note …); a continuation adds its own to a list.

    Raises:
        UserError: the folder holds something that is no run, or a checkpoint of a run with other settings that
            shall be continued; another process has it in use; it cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None, *, resume: bool
    ) -> None:
        self.folder = folder
        self._writer: Any = None
        self._open = ExitStack()
        if distributed.is_main():
            try:
                self._start(settings, facts or {}, resume)
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error.strerror}); choose --output DIR") from error
        distributed.wait_for_all()

    def _start(self, settings: Mapping[str, Any], facts: Mapping[str, Any], resume: bool) -> None:
        folder = self.folder
        place = Path(os.path.realpath(folder))  # two names of one folder have one lock
        place.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{folder} is in use by another process; wait for it, stop it, or choose another run number (-i)"
        self._open.enter_context(locked(place.parent / f".{place.name}.lock", busy))
        settings = json.loads(json.dumps(dict(settings)))  # as they will be read back
        config = {"settings": settings, **facts}
        if folder.is_dir() and any(path.suffix != ".partial" for path in folder.iterdir()):  # left by a kill
            if not any((folder / name).is_file() for name in OWN):
                raise UserError(f"{folder} is not empty and holds no run of this program; choose another -i")
            if resume and (folder / "last.pth").is_file():  # without a checkpoint there is nothing to continue
                config = self._continued(settings, facts)
            elif not resume:
                old = next(p for n in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.old{n}")).exists())
                folder.rename(old)
                log.info("%s: the run that lay here is now %s", folder, old.name)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.partial"):  # by a kill
            left.unlink()
        self.write_json("config.json", config)
        (folder / "figures").mkdir(exist_ok=True)
        self._open.enter_context(logged_to(self.path("train.log")))

    def _continued(self, settings: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """The config that is there, with the facts of this continuation added. UserError when settings differ."""
        config = read_config(self.folder)
        before = config["settings"]
        changed = [
            " ".join(f"{name} {before.get(name)} (now {settings.get(name)})".split())
            for name in sorted(settings)  # an earlier version may have kept more
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise UserError(
                f"{self.folder} was started with {', '.join(changed)}: repeat those settings to continue it, "
                f"choose another -i, or {AFRESH}"
            )
        pixels, now = config.get("prepared", {}), facts.get("prepared", {})
        if differ := [s for s in ("train", "validation") if s in pixels and s in now and pixels[s] != now[s]]:
            raise UserError(
                f"{self.folder} was started with other {' and '.join(differ)} images or masks, or ones prepared in "
                f"another way: put files back that were changed, or {AFRESH}"
            )
        last = [config, *config.get("continued", [])][-1]
        if other := [words for name, words in TOLD.items() if name in last and last[name] != facts.get(name)]:
            log.warning(
                "%s was begun with another %s: from here on its numbers may differ in their last digits from those of "
                "a run that was never stopped", self.folder, " and ".join(other),
            )  # fmt: skip
        return config | {"continued": [*config.get("continued", []), dict(facts)]}

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        with reading(self.path(name), AFRESH):
            return load_json(self.path(name))

    def history(self) -> list[dict[str, float]]:
        """One row an epoch, numbers by column name; empty before the first epoch. UserError when it is damaged."""
        path = self.path("history.csv")
        if not path.is_file():
            return []
        with reading(path, AFRESH), path.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)]:
                raise ValueError("its epochs are not 1, 2, 3 …")
        return [row | {"epoch": epoch} for epoch, row in enumerate(rows, start=1)]

    def write_history(self, rows: list[dict[str, float]]) -> None:
        """Replace history.csv by `rows` (an epoch that was cut off before its checkpoint drops out this way).

        A column that a row lacks, of an epoch that another version trained, is nan there.
        """
        columns = dict.fromkeys(name for row in rows for name in row)
        lines = [",".join(columns)] + [",".join(str(row.get(name, math.nan)) for name in columns) for row in rows]
        self._write("history.csv", "\n".join(lines) + "\n")

    def write_table(self, name: str, table: "pd.DataFrame") -> None:
        self._write(name, table.to_csv(index=False, lineterminator="\n"))

    def _write(self, name: str, text: str) -> None:
        if not distributed.is_main():
            return
        with written_whole(self.path(name)) as file:
            file.write(text.encode())

    def write_events(self, row: Mapping[str, float], picture: np.ndarray | None = None) -> None:
        """Add an epoch's row of the history to the TensorBoard events; where that fails, training does without.

        Tags: train/…, val/… and speed/…; the run's settings stand under HPARAMS. picture: uint8 [H, W, 3] to show.
        """
        if not distributed.is_main() or self._writer is False:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # imports slowly

                # Of a run that goes on, what was written of this epoch and later ones no longer counts.
                self._writer = SummaryWriter(self.path("tensorboard"), purge_step=row["epoch"])
                for summary in _hparams(self.read_json("config.json")["settings"], row):
                    self._writer.file_writer.add_summary(summary)
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(_tag(name), value, row["epoch"])
            if picture is not None:
                self._writer.add_image("val/outlines", picture, row["epoch"], dataformats="HWC")
            self._writer.flush()
        except Exception as error:  # of a broken installation, or in the writer's thread, anything
            log.warning("no TensorBoard events from epoch %d on (%s)", row["epoch"], error)
            self._writer = False

    def save_figure(self, figure: "Figure", name: str) -> Path:
        path = self.path("figures") / name
        path.parent.mkdir(exist_ok=True)
        with written_whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150, bbox_inches="tight")
        return path

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if self._writer:
                self._writer.close()
        finally:
            self._open.__exit__(*error)


def _tag(column: str) -> str:
    """Where TensorBoard shows a column of the history."""
    if column in ("train_seconds", "images_per_second"):
        return f"speed/{column.removeprefix('train_')}"
    return f"val/{column[4:]}" if column.startswith("val_") else f"train/{column.removeprefix('train_')}"


def _hparams(settings: Mapping[str, Any], row: Mapping[str, float]) -> tuple[Any, ...]:
    """The settings and the names of the validation scores, as TensorBoard's HPARAMS page takes them."""
    from torch.utils.tensorboard.summary import hparams

    plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()}
    return hparams(plain, {_tag(name): 0 for name in row if name.startswith("val_")})


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json, whose "settings" are a dict. UserError when it cannot be read, or is damaged."""
    path = folder / "config.json"
    with reading(path, AFRESH):
        config = load_json(path)
        if not isinstance(config["settings"], dict):
            raise ValueError("its settings are no object")
    return config


def copy_results(folder: Path, results: Path) -> None:
    """Copy the small files of a finished run (KEPT, and config.json without the folders of this machine)."""
    results.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    for facts in (config, *config.get("continued", [])):
        facts["command"], data = portable(facts["command"]), Path(facts["data"])
        facts["data"] = data.name if data.is_absolute() else str(data)
    with written_whole(results / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    for source in (folder / name for name in KEPT):
        if source.is_file():
            with written_whole(results / source.name) as file, source.open("rb") as content:
                shutil.copyfileobj(content, file)


def portable(command: str) -> str:
    """A command with absolute paths shortened to their last part."""
    return shlex.join(Path(word).name if word.startswith(("/", "~")) else word for word in shlex.split(command))


def digest(samples: Iterable[Sample]) -> str:
    """How many samples and a hash of their ids and labels: tells whether two runs used the same."""
    ids = sorted(sample.id if sample.label is None else f"{sample.id}:{sample.label}" for sample in samples)
    return f"{len(ids)} images, sha256 {hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}"


def environment(device: torch.device) -> dict[str, Any]:
    """What the run was made with: command, git commit, device, library versions."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # OpenCV comes in packages of several names
            versions[name] = "not found"
    processor = platform.processor() or platform.machine()
    gpu, module = device.type == "cuda", getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name(device) if gpu else f"{device.type} ({processor})",
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "versions": versions,
    }


def _git_commit() -> str | None:
    """The checkout's commit, with "+changes" where tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    ours = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not of a repository that this one lies in
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=ours).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
