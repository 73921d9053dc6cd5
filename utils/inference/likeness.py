"""Whether a photograph is like those that a network was trained on, told from its features, and from its pixels.

    python -m utils.inference.likeness model/seg-4/run0

writes likeness.safetensors into a run's folder, as `utils.inference.release` does. Of every channel of
the encoder's levels but the first and the last, mean and standard deviation over the positions are taken. (The last
level knows classes and hardly anything else: of twelve pictures without skin it told one.) The distance of a
photograph is the root mean square of these numbers, standardised by mean and standard deviation over training images;
beyond the distance that 99 % of those keep, it is unlike them. How many validation images are is the false-alarm rate.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from utils.config import Config
from utils.data.isic import Sample
from utils.data.loader import to_input
from utils.data.parallel import in_order
from utils.device import find_device
from utils.evaluation.runs import RunResult, read_run
from utils.files import reading, written_whole
from utils.inference.trained import load_network, read_frame, training_data
from utils.logger import log, progress, run_script
from utils.model.weights import load_file

FILE = "likeness.safetensors"
MOST = 1000  # training images, evenly chosen, that the statistics are made of
SHARE = 0.99  # of them that are called like
GREY, UNIFORM = 6, 4  # of 255: spread of a pixel's colours, and of the photograph's brightness, below which it is told


@dataclass(frozen=True)
class Likeness:
    """Statistics of the training images' features.

    Attributes:
        mean, std: float32 [C], of what `frame_features` gives.
        threshold: the distance beyond which a photograph is unlike them.
    """

    mean: np.ndarray
    std: np.ndarray
    threshold: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Root mean square of the standardised features [..., C] over the channels: about 1 for a training image."""
        return np.sqrt((((features - self.mean) / self.std) ** 2).mean(-1))

    def unlike(self, model: nn.Module, frame: np.ndarray) -> bool:
        """Of a whole frame uint8 [h, w, 3] (`whole_frame`)."""
        return bool(self.distance(frame_features(model, frame)) > self.threshold)


@torch.inference_mode()
def frame_features(model: nn.Module, frame: np.ndarray) -> np.ndarray:
    """What the distance is made of, float32 [C], for a frame uint8 [h, w, 3]."""
    encoder = getattr(model, "encoder", model)  # a classifier is its own
    image = to_input(torch.from_numpy(np.ascontiguousarray(frame))[None], next(model.parameters()).device)
    levels = encoder.features(image)[1:-1]
    return torch.cat([part for level in levels for part in torch.std_mean(level, (2, 3))], 1)[0].cpu().numpy()


def pixel_faults(frame: np.ndarray) -> list[str]:
    """What is told of a photograph uint8 [h, w, 3] without a network: no colours, nothing in it."""
    told = []
    if np.ptp(frame.astype(np.int16), axis=2).mean() < GREY:
        told.append("grey: hardly any colour")
    if frame.mean(axis=2).std() < UNIFORM:
        told.append("nearly uniform: nothing to be seen")
    return told


def read_likeness(folder: Path) -> Likeness | None:
    """Of a run's folder; None where it was not made."""
    if not (folder / FILE).is_file():
        return None
    state = load_file(folder / FILE)
    with reading(folder / FILE):
        mean, std = (state[name].float().numpy() for name in ("mean", "std"))
        return Likeness(mean, std, float(state["threshold"]))


def write_likeness(run: RunResult, model: nn.Module, train: Sequence[Sample], validation: Sequence[Sample]) -> None:
    """Make likeness.safetensors in the run's folder of its training images; the log has the false-alarm rate."""
    chosen = [train[i] for i in np.linspace(0, len(train) - 1, min(MOST, len(train))).astype(int)]
    frames = in_order(partial(read_frame, run), [sample.image for sample in (*chosen, *validation)])
    total = len(chosen) + len(validation)
    features = np.stack([frame_features(model.eval(), each) for each in progress(frames, "features", total)])
    own, others = features[: len(chosen)], features[len(chosen) :]
    found = Likeness(own.mean(0), np.maximum(own.std(0), 1e-3), np.inf)
    tensors = {"mean": found.mean, "std": found.std, "threshold": np.quantile(found.distance(own), SHARE)}
    state = {
        name: torch.tensor(value).to(torch.float16 if value.ndim else torch.float32) for name, value in tensors.items()
    }
    with written_whole(run.folder / FILE) as file:
        file.write(safetensors.torch.save(state))
    found = read_likeness(run.folder)
    alarms = int((found.distance(others) > found.threshold).sum()) if len(others) else 0
    log.info(
        "%s: of %d training images; unlike them are %d of %d validation images",
        run.folder / FILE, len(chosen), alarms, len(others),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.inference.likeness", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, with weights")
    parser.add_argument("--data", type=Path, help="data folder (the one that the run was trained on)")
    args = parser.parse_args(argv)
    run = read_run(args.run)
    data = training_data(run, args.data or run.data or Config.data)
    write_likeness(run, load_network(run, find_device(None)), data["train"], data["validation"])


if __name__ == "__main__":
    run_script(main)
