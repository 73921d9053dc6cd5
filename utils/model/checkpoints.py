"""Checkpoints: last.pth, from which a run goes on, and best.pth, the weights of its best epoch."""

from pathlib import Path
from typing import Any

from torch import nn

from utils import distributed
from utils.files import reading
from utils.model.run import AFRESH
from utils.model.trainer import Progress
from utils.model.weights import load_file, save_file


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that `path` holds the old checkpoint or the whole new one at any moment.

    Of several processes the first one writes.
    """
    if distributed.is_main():
        save_file(state, path)


def load_best(model: nn.Module, folder: Path) -> int:
    """Put the weights of a run's best epoch into the model; returns that epoch, counted from 1."""
    path = folder / "best.pth"
    with reading(path, AFRESH):
        checkpoint = load_file(path)
        model.load_state_dict(checkpoint["model"])
        return Progress(**checkpoint["progress"]).best_epoch
