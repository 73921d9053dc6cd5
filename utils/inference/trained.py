"""The trained network of a finished run: from its checkpoint, or from the smaller file that is passed on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

import nets
from utils import UserError
from utils.data.cache import ImageCache, prepare
from utils.data.isic import Sample
from utils.data.transforms import TEST_PATCHES, TRAIN_TRANSFORMS, cache_sizes
from utils.device import Precision
from utils.evaluation.runs import RunResult
from utils.files import check_file, written_whole
from utils.inference.classification import class_probabilities
from utils.model.checkpoints import load_best

RELEASED = "weights.safetensors"


def has_weights(folder: Path) -> bool:
    """Whether a run's folder holds what `load_network` loads."""
    return any((folder / name).is_file() for name in ("best.pth", RELEASED))


def load_network(run: RunResult, device: torch.device) -> nn.Module:
    """The run's network with the weights of its best epoch, ready to predict on `device`.

    UserError when the run's folder holds no weights, or others than this network's, or names no network of the task.
    """
    settings = run.settings
    if not has_weights(run.folder):
        raise UserError(f"{run.folder}: no weights (best.pth or {RELEASED}); results hold them for some runs only")
    try:
        _check_settings(run)
        model = nets.create_model(settings["net"], attention=settings.get("attention"), alpha=settings.get("alpha"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{run.folder}: config.json or metrics.json damaged, or of another version ({error}); copy them again"
        ) from error
    if (run.folder / "best.pth").is_file():
        load_best(model, run.folder)
    else:
        _load_released(model, run.folder / RELEASED)
    return model.to(device, memory_format=torch.channels_last).eval()


def write_released(model: nn.Module, path: Path) -> None:
    """Write a network's weights in half precision; vectors and numbers (batch norm, biases, α) stay as they are.

    UserError when a weight is too large for half precision.
    """
    state = {name: tensor.contiguous() for name, tensor in model.cpu().state_dict().items()}
    state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise UserError(f"{broken[0]}: not finite in half precision; pass best.pth on as it is")
    with written_whole(path) as file:
        file.write(safetensors.torch.save(state))


def _load_released(model: nn.Module, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(check_file(path))
        if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
            raise ValueError(f"{broken[0]} is not finite")
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged, or not the weights of this run's network ({reason})") from error


def _check_settings(run: RunResult) -> None:
    """ValueError when they do not tell how to predict, as this program does it."""
    settings, metrics = run.settings, run.metrics
    if settings["net"] not in (nets.SEGMENTERS if run.task == "segmentation" else nets.CLASSIFIERS):
        raise ValueError(f"no network for {run.task} is named {settings['net']}")
    if "batch_size" not in settings or min(settings.get("size", (0,))) < 32:
        raise ValueError("no batch_size, or no size of 32 pixels or more")
    if run.task == "segmentation":
        return
    if (
        settings.get("train_views") not in TRAIN_TRANSFORMS
        or metrics.get("views") not in TEST_PATCHES
        or "flips" not in metrics
    ):
        raise ValueError("train_views, views or flips are not known")


def prepare_for(run: RunResult, samples: Sequence[Sample], folder: Path) -> ImageCache:
    """The photographs decoded into `folder`, as large as the run's network sees them or its patches need them."""
    size = tuple(run.settings["size"])
    if run.task == "segmentation":
        return prepare(samples, size, folder, masks=False)
    stored, center = cache_sizes(samples, size, TRAIN_TRANSFORMS[run.settings["train_views"]])
    return prepare(samples, stored, folder, masks=False, center=center)


def classify(run: RunResult, model: nn.Module, cache: ImageCache, precision: Precision) -> np.ndarray:
    """Probabilities float32 [N, 3] of the photographs, averaged over the views that the run was scored by."""
    size, batch_size = tuple(run.settings["size"]), run.settings["batch_size"]
    views, flips = TEST_PATCHES[run.metrics["views"]], run.metrics["flips"]
    return class_probabilities(model, cache, precision, size, batch_size, views, flips)
