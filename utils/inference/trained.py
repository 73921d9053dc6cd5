"""The trained network of a finished run: from its checkpoint, or from the smaller file that is passed on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

import nets
from utils import UserError
from utils.command_line import SCRIPTS
from utils.config import EXPERIMENTS, ROOT, configure
from utils.data.cache import load_image
from utils.data.images import image_size
from utils.data.isic import Sample, read_split
from utils.data.own import own_data
from utils.data.transforms import FRAME, TEST_PATCHES, TRAIN_TRANSFORMS, Pixels, Size, Sizes, cache_sizes, take
from utils.device import Precision
from utils.evaluation.runs import PRIMARY, RunResult, read_run
from utils.files import reading, written_whole
from utils.inference.classification import classify
from utils.inference.segmentation import outline
from utils.model.checkpoints import load_best
from utils.model.weights import load_file

RELEASED = "weights.safetensors"
RESULTS = ROOT / "results"


def chosen_runs(name: str, results: Path = RESULTS, ensemble: bool = False) -> list[RunResult]:
    """The run in the folder `name`; or of a row ("seg-b1") its best released run; or of "best" the best of each task.

    Best by the validation images: runs on one's own data, which have others, are not among "best". With `ensemble`, all
    released runs of a row, two or more. UserError when no run is there, or none of the row is released.
    """
    # The second place is for one who stands in another folder.
    folder = next((folder for folder in (Path(name), ROOT / name) if folder.is_dir()), None)
    if ensemble and (name == "best" or folder):
        raise UserError(f"{name}: --uncertainty compares the runs of a row: give the row's name")
    if folder:
        return [read_run(folder)]
    released = [read_run(path.parent) for path in sorted(results.glob(f"*/*/{RELEASED}"))]
    of_name = [run for run in released if run.folder.parent.name == name or (name == "best" and not run.own)]
    if not of_name:
        rows = ", ".join(dict.fromkeys(run.folder.parent.name for run in released)) or "none"
        row = EXPERIMENTS.get(name)
        train = f"; train it and give its folder (python {SCRIPTS[row.task]} --experiment {name})" if row else ""
        raise UserError(f"{name}: no folder, and no row with released weights (there are: {rows}; or: best){train}")
    if ensemble and len(of_name) == 1:
        raise UserError(
            f"{name}: one run of it has weights, and --uncertainty is how far two or more differ; leave it away"
        )
    if ensemble:
        return of_name
    best: dict[str, RunResult] = {}
    for run in sorted(of_name, key=lambda run: run.primary):
        best[run.task] = run
    return [best[task] for task in PRIMARY if task in best]


def run_label(run: RunResult) -> str:
    return f"{run.experiment}, seed {run.seed}"


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("best.pth", RELEASED))


def weights_file(folder: Path) -> Path:
    """What `load_network` loads of a run's folder. UserError when it holds no weights."""
    if not has_weights(folder):
        raise UserError(
            f"{folder}: no weights (best.pth or {RELEASED}), as in most folders of results/; python predict.py best "
            f"takes those that are there, python {' or '.join(SCRIPTS.values())} --experiment trains a row anew"
        )
    return folder / ("best.pth" if (folder / "best.pth").is_file() else RELEASED)


def load_network(run: RunResult, device: torch.device) -> nn.Module:
    """The run's network with the weights of its best epoch, ready to predict on `device`.

    UserError when the run's folder holds no weights, or others than this network's, or names no network of the task.
    """
    path = weights_file(run.folder)
    with reading(f"{run.folder}: config.json or metrics.json"):
        model = _network(run.task, run.settings, run.metrics)
    if path.name == RELEASED:
        state = load_file(path)
        with reading(path):
            model.load_state_dict(state)
    else:
        load_best(model, run.folder)
    return model.to(device, memory_format=torch.channels_last).eval()


def _network(task: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> nn.Module:
    """KeyError or ValueError when config and metrics do not tell how to predict, as those of another version."""
    _ = settings["size"], settings["batch_size"]
    if task == "classification":
        _ = TRAIN_TRANSFORMS[settings["train_views"]], TEST_PATCHES[metrics["views"]], metrics["flips"]
    options = {name: settings.get(name) for name in ("attention", "alpha")}
    return nets.create_model(settings["net"], len(settings.get("classes") or ()) or None, **options)


def write_released(model: nn.Module, path: Path) -> None:
    """Write a network's weights in half precision; vectors and numbers (batch norm, biases, α) stay as they are."""
    state = {name: tensor.contiguous() for name, tensor in model.cpu().state_dict().items()}
    state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    with written_whole(path) as file:
        file.write(safetensors.torch.save(state))


def stored_sizes(run: RunResult, original: Size) -> Sizes:
    """At which size a run's network has a photograph of the (width, height) `original` kept, and its center."""
    size = tuple(run.settings["size"])
    if run.task == "segmentation":
        return size, None
    return cache_sizes(original, size, TRAIN_TRANSFORMS[run.settings["train_views"]])


def predict_photographs(
    run: RunResult, model: nn.Module, images: Iterable[Pixels], precision: Precision
) -> Iterator[np.ndarray]:
    """What a run's network says of each photograph in turn, by the views that the run was scored by.

    images: kept at `stored_sizes`. A segmenter gives the lesion probability float32 [h, w] at the network's size, a
    classifier the probabilities float32 [3] of the classes.
    """
    size, batch_size, flips = tuple(run.settings["size"]), run.settings["batch_size"], run.metrics.get("flips", False)
    if run.task == "segmentation":
        return outline(model, images, precision, batch_size, flips)
    return classify(model, images, precision, size, batch_size, TEST_PATCHES[run.metrics["views"]], flips)


def training_data(run: RunResult, folder: Path) -> Mapping[str, Sequence[Sample]]:
    """The images there that a run is trained and validated on, by split; one's own are split as they were for the run.

    UserError when there are none to train on.
    """
    drawn = {name: value for name in ("split", "split_seed", "fold") if (value := run.settings.get(name)) != "given"}
    config = configure(task=run.task, net=run.settings["net"], pretrained=False, data=folder, **drawn)
    masks = run.task == "segmentation"
    if own := own_data(config, masks=masks):
        return own[1]
    data = {split: read_split(folder, split, with_labels=not masks) for split in ("train", "validation")}
    if not data["train"]:
        raise UserError(f"{folder}: no training image there; choose the folder by --data")
    return data


def read_frame(run: RunResult, path: Path) -> np.ndarray:
    """`whole_frame` of a photograph's file. UserError when it cannot be read."""
    return whole_frame(run, load_image(path, stored_sizes(run, image_size(path))))


def whole_frame(run: RunResult, pixels: Pixels) -> np.ndarray:
    """A photograph that is kept at `stored_sizes` as features and maps are made of it: uint8 [h, w, 3], all of it.

    At the network's size; for a network that knows patches of photographs, larger, so that things are as large in it.
    """
    (width, height), scale = run.settings["size"], 1
    if run.task == "classification":
        scale = TRAIN_TRANSFORMS[run.settings["train_views"]].frame_scale
    return take(pixels, FRAME, (scale * width, scale * height))
