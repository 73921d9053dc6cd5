"""What a task is: the interface that `utils.tasks.train` goes by."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from matplotlib.figure import Figure
from torch import nn

from utils.config import Config
from utils.data.cache import ImageCache
from utils.data.splits import Data
from utils.data.transforms import Transforms
from utils.device import Precision
from utils.model.fit import Validate
from utils.model.run import Run


class Task(Protocol):
    """Segmentation or classification, of one run: its data, loss, scores and figures."""

    config: Config

    def __init__(self, config: Config) -> None: ...

    def read_data(self) -> tuple[Data, dict[str, Any]]:
        """The images of each split, and further facts for config.json. UserError when data are missing or faulty.

        Settings that only the data tell are put into `config`.
        """

    def prepare(self, data: Data) -> dict[str, ImageCache]:
        """Every split decoded before training starts, so that an unreadable file shows now and not after it."""

    def transforms(self) -> Transforms:
        """What makes training images and their targets of cached ones."""

    def loss(self) -> nn.Module:
        """(logits, targets) → scalar."""

    def validation(self, cache: ImageCache, precision: Precision) -> Validate:
        """What scores a network after each epoch, always by the same images."""

    def score(
        self, model: nn.Module, cache: ImageCache, split: str, precision: Precision, run: Run
    ) -> tuple[dict[str, Any] | None, Any]:
        """Predict a split and write the predictions into the run's folder.

        Returns the scores for metrics.json, and what `finish` and `figures` need; None, None where there is no truth.
        """

    def finish(self, model: nn.Module, results: Mapping[str, Any], best_epoch: int, run: Run) -> None:
        """Write what concerns all splits or the model; results: by split, as `score` returned them."""

    def figures(
        self, model: nn.Module, cache: ImageCache, split: str, result: Any, precision: Precision
    ) -> Iterator[tuple[str, Figure]]:
        """Figures of a split by file name; result: as `score` returned it."""
