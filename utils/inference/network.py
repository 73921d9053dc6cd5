"""Running a network over images."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.loader import to_input
from utils.data.transforms import FLIPS
from utils.device import Precision


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Iterable[np.ndarray],
    precision: Precision,
    batch_size: int,
    flips: Sequence[tuple[int, int]] = FLIPS[:1],
) -> Iterator[np.ndarray]:
    """Probabilities for images uint8 [H, W, 3] of one size, each flipped in all the ways of `flips`, in their order.

    Yields float32 arrays of the logits' shape without the batch axis, softmax over classes; flipped as the image was.
    On a GPU a batch is `batch_size` images with all their flips, and the next one is on its way when one is yielded.
    """
    model.eval()
    device, images = precision.device, iter(images)
    gpu = device.type == "cuda"
    waiting = None
    while batch := list(islice(images, batch_size if gpu else max(1, batch_size // len(flips)))):
        pixels = torch.from_numpy(np.stack(batch)).to(device)
        pixels = torch.stack([_flipped(pixels, *steps) for steps in flips], dim=1).flatten(0, 1)
        with precision.autocast():
            logits = model(to_input(pixels, device))
        probabilities = logits.float().softmax(dim=1).to("cpu", non_blocking=gpu)
        there = torch.cuda.current_stream(device).record_event() if gpu else None
        if waiting:
            yield from _arrived(*waiting)
        waiting = probabilities, there
    if waiting:
        yield from _arrived(*waiting)


def _flipped(pixels: Tensor, rows: int, columns: int) -> Tensor:
    return pixels.flip([axis for axis, step in ((1, rows), (2, columns)) if step < 0])


def _arrived(probabilities: Tensor, there: torch.cuda.Event | None) -> np.ndarray:
    if there:
        there.synchronize()
    return probabilities.numpy()
