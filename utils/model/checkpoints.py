"""Checkpoints: last.pth, from which a run goes on, and best.pth, the weights of its best epoch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed
from utils.files import reading, written_whole
from utils.model.run import AFRESH
from utils.model.trainer import Progress
from utils.model.weights import load_file


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that `path` holds the old checkpoint or the whole new one at any moment.

    Of several processes the first one writes.
    """
    if not distributed.is_main():
        return
    with written_whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch closes its archive after Ctrl-C or on a full disk, and fails at that
            if isinstance(error.__context__, (KeyboardInterrupt, OSError)):
                raise error.__context__ from None
            raise


def load_best(model: nn.Module, folder: Path) -> int:
    """Put the weights of a run's best epoch into the model; returns that epoch, counted from 1."""
    path = folder / "best.pth"
    with reading(path, AFRESH):
        checkpoint = load_file(path)
        model.load_state_dict(checkpoint["model"])
        return Progress(**checkpoint["progress"]).best_epoch
