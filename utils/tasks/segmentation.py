"""The segmentation task: the outline of the lesion."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from utils import distributed
from utils.config import Config
from utils.data.cache import ImageCache, prepare
from utils.data.extra import extra_samples
from utils.data.splits import Data, read_data
from utils.data.transforms import SegmentationTransforms, cache_size
from utils.device import Precision
from utils.evaluation.export import format_scores
from utils.evaluation.segmentation import Counts, official_scores, per_image_table, summarize
from utils.inference.segmentation import TrueMasks, score, write_masks
from utils.logger import log
from utils.loss import Loss, loss_of
from utils.model.fit import Picture, Validate
from utils.model.run import Run
from utils.visualize.examples import outlined_examples, plot_examples


class Segmentation:
    """The task of one run: its data, loss, scores and figures. Settings that only the data tell are put into `config`.

    The best epoch is chosen by the validation images' mean Jaccard at mask size.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.groups: dict[str, str | None] = {}  # by image id, of data of one's own

    def read_data(self) -> Data:
        """The images of each split. UserError when data are missing or faulty."""
        self.config, data = read_data(self.config, masks=True)
        self.groups = {sample.id: sample.group for samples in data.values() for sample in samples}
        if self.config.extra:
            data["extra"] = extra_samples(self.config, data, masks=True)
        return data

    def prepare(self, data: Data) -> dict[str, ImageCache]:
        """Every split decoded before training starts, so that an unreadable file shows now and not after it."""
        size = self.config.size
        sizes = {"train": cache_size(size), "extra": cache_size(size), "validation": size, "test": size}
        return {split: prepare(data[split], sizes[split], self.config.cache) for split in data if data[split]}

    def transforms(self) -> SegmentationTransforms:
        """What makes training images and their targets of cached ones."""
        return SegmentationTransforms(self.config.size)

    def loss(self) -> nn.Module:
        return Loss(self.config.loss)

    def validation(self, cache: ImageCache, precision: Precision) -> Validate:
        """What scores a network after each epoch, always by the same images; the loss is at the network's size."""
        masks, criterion = TrueMasks(), self.loss()

        def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
            losses: dict[int, float] = {}

            def look(index: int, lesion: np.ndarray) -> None:
                losses[index] = loss_of(
                    criterion, np.stack([1 - lesion, lesion])[None], cache.frame(index)[None, ..., 3]
                )

            counts = score(model, cache, precision, self.config.batch_size, masks=masks, look=look)
            scores = official_scores([*counts.values()])
            loss = float(np.mean([value for _, value in sorted(distributed.gather([*losses.items()]))]))
            first = {"loss": loss} | {name: scores.pop(name) for name in ("jaccard", "threshold_jaccard", "dice")}
            return first["jaccard"], {f"val_{name}": value for name, value in (first | scores).items()}

        return validate

    def picture(self, cache: ImageCache, precision: Precision) -> Picture | None:
        """What shows, during training, a few of the cache's images as a network sees them; None for nothing."""
        return partial(outlined_examples, cache=cache, precision=precision)

    def score(
        self, model: nn.Module, cache: ImageCache, split: str, precision: Precision, run: Run
    ) -> tuple[dict[str, Any] | None, Counts | None]:
        """Predict a split and write the predictions into the run's folder.

        Returns the scores for metrics.json, and what `finish` and `figures` need; None, None where there is no truth.
        """
        prefix = run.path(split)
        counts = write_masks(model, cache, precision, self.config.batch_size, prefix, self.config.flips)
        log.info("masks of the %d %s images: %s_masks.zip", len(cache.samples), split, prefix)
        if not counts:
            return None, None
        summary = summarize(counts, self.groups)
        log.info(format_scores(split, summary))
        return summary, counts

    def finish(self, model: nn.Module, results: Mapping[str, Counts], best_epoch: int, run: Run) -> None:
        """Write what concerns all splits or the model; results: by split, as `score` returned them."""
        tables = [per_image_table(counts, self.groups).assign(split=split) for split, counts in results.items()]
        run.write_table("per_image.csv", pd.concat(tables))

    def figures(
        self, model: nn.Module, cache: ImageCache, split: str, result: Counts, precision: Precision
    ) -> Iterator[tuple[str, Figure]]:
        """Figures of a split by file name; result: as `score` returned it."""
        yield f"{split}.png", plot_examples(model, cache, result, precision, self.config.flips)
