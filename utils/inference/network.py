"""Running a network over photographs."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import torch
from torch import nn

from utils.data.loader import to_input
from utils.device import Precision


@torch.inference_mode()
def predict(
    model: nn.Module, photographs: Iterable[np.ndarray], precision: Precision, batch_size: int
) -> Iterator[np.ndarray]:
    """Probabilities for photographs, each given by its views: uint8 [V, H, W, 3], of one shape for all.

    Yields for each a float32 array [V, …] of the logits' shape, softmax over classes. On a CPU every photograph is a
    batch of its own, so that nothing else decides its numbers, to the bit; elsewhere a batch holds `batch_size` views.
    """
    model.eval()
    photographs = iter(photographs)
    for first in photographs:
        together = 1 if precision.device.type == "cpu" else max(1, batch_size // len(first))
        batch = list(islice(chain([first], photographs), together))
        with precision.autocast():
            logits = model(to_input(torch.from_numpy(np.concatenate(batch)), precision.device))
        probabilities = logits.float().softmax(dim=1).cpu().numpy()
        yield from probabilities.reshape(len(batch), -1, *probabilities.shape[1:])
