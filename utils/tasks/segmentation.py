"""The segmentation task: the outline of the lesion."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from utils.config import Config
from utils.data.cache import ImageCache, prepare
from utils.data.splits import Data, segmentation_data
from utils.data.transforms import SegmentationTransforms, cache_size
from utils.device import Precision
from utils.evaluation.segmentation import SegmentationCounts, summarize
from utils.evaluation.tables import format_scores
from utils.inference.segmentation import TrueMasks, score, write_masks
from utils.logger import log
from utils.loss import create_loss
from utils.model.fit import Validate
from utils.model.run import Run
from utils.visualize.examples import plot_examples


class Segmentation:
    """See `utils.tasks.task.Task`. The best epoch is chosen by the validation images' mean Jaccard at mask size."""

    def read_data(self, config: Config) -> tuple[Data, dict[str, Any]]:
        return segmentation_data(config.data, keep_copies=config.keep_copies), {}

    def settings_from(self, data: Data, config: Config) -> dict[str, Any]:
        return {}

    def prepare(self, data: Data, config: Config) -> dict[str, ImageCache]:
        sizes = {"train": cache_size(config.size), "validation": config.size, "test": config.size}
        return {split: prepare(data[split], sizes[split], config.cache) for split in data if data[split]}

    def transforms(self, config: Config) -> SegmentationTransforms:
        return SegmentationTransforms(config.size)

    def loss(self, config: Config) -> nn.Module:
        return create_loss(config.loss)

    def validation(self, cache: ImageCache, config: Config, precision: Precision) -> Validate:
        masks = TrueMasks()

        def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
            scores = score(model, cache, precision, config.batch_size, masks=masks).official()
            first = {name: scores.pop(name) for name in ("jaccard", "threshold_jaccard", "dice")}
            return first["jaccard"], {f"val_{name}": value for name, value in (first | scores).items()}

        return validate

    def score(
        self, model: nn.Module, cache: ImageCache, split: str, config: Config, precision: Precision, run: Run
    ) -> tuple[dict[str, Any] | None, SegmentationCounts | None]:
        masks = run.path(f"{split}_masks.zip")
        counts = write_masks(model, cache, precision, config.batch_size, masks, config.flips)
        log.info("masks of the %d %s images: %s", len(cache.samples), split, masks)
        if not counts:
            return None, None
        summary = summarize(counts)
        log.info(format_scores(split, summary))
        return summary, counts

    def finish(
        self, model: nn.Module, results: Mapping[str, SegmentationCounts], best_epoch: int, config: Config, run: Run
    ) -> None:
        tables = [counts.per_image().assign(split=split) for split, counts in results.items()]
        run.write_table("per_image.csv", pd.concat(tables))

    def figures(
        self,
        model: nn.Module,
        cache: ImageCache,
        split: str,
        result: SegmentationCounts,
        config: Config,
        precision: Precision,
    ) -> Iterator[tuple[str, Figure]]:
        yield f"{split}.png", plot_examples(model, cache, result, precision, config.flips)
