"""Running a network over images."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import nn

from utils.data.loader import to_input
from utils.device import Precision


@torch.inference_mode()
def predict(
    model: nn.Module, images: Iterable[np.ndarray], precision: Precision, batch_size: int
) -> Iterator[np.ndarray]:
    """Probabilities for images uint8 [H, W, 3] of one size, in their order.

    Yields float32 arrays of the logits' shape without the batch axis, softmax over classes.
    """
    model.eval()
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        with precision.autocast():
            logits = model(to_input(torch.from_numpy(np.stack(batch)), precision.device))
        yield from logits.float().softmax(dim=1).cpu().numpy()
