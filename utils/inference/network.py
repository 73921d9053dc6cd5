"""Running a network over photographs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.loader import to_input
from utils.device import Precision


@torch.inference_mode()
def predict(
    model: nn.Module,
    photographs: Iterable[np.ndarray],
    precision: Precision,
    batch_size: int,
    flips: Sequence[tuple[int, int]],
) -> Iterator[np.ndarray]:
    """Probabilities for photographs, each given by its views: uint8 [V, H, W, 3], of one shape for all.

    Every view is flipped in all the F ways of `flips`. Yields for each photograph a float32 array [V, F, …] of the
    logits' shape, softmax over classes; flipped as the view was. On a CPU every photograph is a batch of its own, so
    that nothing else decides its numbers, to the bit. On a GPU a batch is `batch_size` views with all their flips, and
    the next one is on its way when one is yielded.
    """
    model.eval()
    device, photographs = precision.device, iter(photographs)
    gpu = device.type == "cuda"
    waiting = None
    for first in photographs:
        together = 1 if device.type == "cpu" else max(1, batch_size // len(first))
        batch = list(islice(chain([first], photographs), together))
        pixels = torch.from_numpy(np.concatenate(batch)).to(device)
        pixels = torch.stack([_flipped(pixels, *steps) for steps in flips], dim=1).flatten(0, 1)
        with precision.autocast():
            logits = model(to_input(pixels, device))
        probabilities = logits.float().softmax(dim=1).to("cpu", non_blocking=gpu)
        there = torch.cuda.current_stream(device).record_event() if gpu else None
        if waiting:
            yield from _arrived(*waiting)
        waiting = probabilities.reshape(len(batch), -1, len(flips), *probabilities.shape[1:]), there
    if waiting:
        yield from _arrived(*waiting)


def _flipped(pixels: Tensor, rows: int, columns: int) -> Tensor:
    return pixels.flip([axis for axis, step in ((1, rows), (2, columns)) if step < 0])


def _arrived(probabilities: Tensor, there: torch.cuda.Event | None) -> np.ndarray:
    if there:
        there.synchronize()
    return probabilities.numpy()
