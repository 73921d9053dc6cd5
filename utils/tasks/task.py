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
    """Segmentation or classification: its data, loss, scores and figures."""

    def read_data(self, config: Config) -> tuple[Data, dict[str, Any]]:
        """The images of each split, and further facts for config.json. UserError when data are missing or faulty."""

    def settings_from(self, data: Data, config: Config) -> dict[str, Any]:
        """Settings that only the data tell, by their names in `Config`."""

    def prepare(self, data: Data, config: Config) -> dict[str, ImageCache]:
        """Every split decoded before training starts, so that an unreadable file shows now and not after it."""

    def transforms(self, config: Config) -> Transforms:
        """What makes training images and their targets of cached ones."""

    def loss(self, config: Config) -> nn.Module:
        """(logits, targets) → scalar."""

    def validation(self, cache: ImageCache, config: Config, precision: Precision) -> Validate:
        """What scores a network after each epoch, always by the same images."""

    def score(
        self, model: nn.Module, cache: ImageCache, split: str, config: Config, precision: Precision, run: Run
    ) -> tuple[dict[str, Any] | None, Any]:
        """Predict a split and write the predictions into the run's folder.

        Returns the scores for metrics.json, and what `finish` and `figures` need; None, None where there is no truth.
        """

    def finish(self, model: nn.Module, results: Mapping[str, Any], best_epoch: int, config: Config, run: Run) -> None:
        """Write what concerns all splits or the model; results: by split, as `score` returned them."""

    def figures(
        self, model: nn.Module, cache: ImageCache, split: str, result: Any, config: Config, precision: Precision
    ) -> Iterator[tuple[str, Figure]]:
        """Figures of a split by file name; result: as `score` returned it."""
