"""The classification task: melanoma, seborrheic keratosis or nevus."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from utils import UserError
from utils.config import Config
from utils.data.cache import ImageCache, prepare
from utils.data.extra import extra_samples
from utils.data.isic import CLASSES, lesions
from utils.data.splits import Data, read_data
from utils.data.transforms import TEST_PATCHES, TRAIN_TRANSFORMS, Transforms, cache_sizes
from utils.device import Precision
from utils.evaluation.classification import (
    classification_scores,
    official_predictions,
    official_truth,
    predictions_table,
    scored_classes,
    summarize,
)
from utils.evaluation.export import format_scores
from utils.inference.classification import class_probabilities, labels_of
from utils.logger import log
from utils.loss import Loss, loss_of
from utils.model.fit import Validate
from utils.model.run import Run
from utils.model.weights import export_arl18
from utils.visualize.examples import plot_saliency
from utils.visualize.figures import plot_classification


class Classification:
    """As `Segmentation`. The best epoch is chosen by AUC(melanoma) + AUC(seborrheic keratosis)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kind = TRAIN_TRANSFORMS[config.train_views]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes or CLASSES

    def read_data(self) -> Data:
        self.config, data = read_data(self.config, masks=False)
        weights, count = self.config.class_weights, len(self.classes)
        if weights == "balanced":
            weights = balanced_weights(labels_of(data["train"]), self.classes)
        elif set(weights) == {1.0}:
            weights = (1.0,) * count
        if len(weights) != count:
            names = ", ".join(self.classes)
            raise UserError(f"--class-weights: {len(weights)} numbers for {count} classes ({names}); give one for each")
        self.config = replace(self.config, class_weights=weights)
        if self.config.extra:
            data["extra"] = extra_samples(self.config, data, masks=False)
        return data

    def prepare(self, data: Data) -> dict[str, ImageCache]:
        size = partial(cache_sizes, size=self.config.size, transforms=self.kind)
        return {split: prepare(data[split], size, self.config.cache, masks=False) for split in data if data[split]}

    def transforms(self) -> Transforms:
        return self.kind.build(self.config.size)

    def loss(self) -> nn.Module:
        return Loss(self.config.loss, self.config.class_weights)

    def validation(self, cache: ImageCache, precision: Precision) -> Validate:
        size, batch_size, truth = self.config.size, self.config.batch_size, labels_of(cache.samples)

        def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
            """By the same patches of the same images every epoch, whatever `--views`."""
            patches, flips = self.kind.selection, self.kind.selection_flips
            probabilities = class_probabilities(model, cache, precision, size, batch_size, patches, flips)
            scores = classification_scores(probabilities, truth, self.classes)
            aucs = {name: scores[name]["auc"] for name in scored_classes(self.classes)}
            columns = {"val_loss": loss_of(self.loss(), probabilities, truth), "val_mean_auc": scores["mean_auc"]}
            columns |= {f"val_{name}_auc": value for name, value in aucs.items()}
            more = {f"val_{name}": scores[name] for name in ("balanced_accuracy", "accuracy")}
            return sum(aucs.values()), columns | more

        return validate

    def picture(self, cache: ImageCache, precision: Precision) -> None:
        return None

    def score(
        self, model: nn.Module, cache: ImageCache, split: str, precision: Precision, run: Run
    ) -> tuple[dict[str, Any] | None, np.ndarray | None]:
        size, batch_size = self.config.size, self.config.batch_size
        patches, flips = TEST_PATCHES[self.config.views], self.config.flips
        probabilities = class_probabilities(model, cache, precision, size, batch_size, patches, flips)
        groups = {sample.id: sample.group for sample in cache.samples}
        table = predictions_table([*groups], probabilities, self.classes, groups)
        run.write_table(f"{split}_predictions.csv", table)
        run.write_table(f"{split}_predictions_official.csv", official_predictions(table, self.classes))
        log.info("probabilities of the %d %s images: %s", len(table), split, run.path(f"{split}_predictions.csv"))
        if any(sample.label is None for sample in cache.samples):
            return None, None
        truth = {sample.id: sample.label for sample in cache.samples}
        run.write_table(f"{split}_truth_official.csv", official_truth(truth, self.classes))
        summary = summarize(probabilities, labels_of(cache.samples), self.classes, lesions(truth, groups))
        log.info(format_scores(split, summary))
        return summary, probabilities

    def finish(self, model: nn.Module, results: Mapping[str, np.ndarray], best_epoch: int, run: Run) -> None:
        """The best weights of the paper's ARL-18 become the ARL-UNet's encoder, unless their origin is in doubt."""
        config = self.config
        if (config.net, config.attention, config.alpha) != ("arl18", "spatial", "learn") or config.classes:
            return
        if config.keep_copies or config.weights:
            log.info("arl18.pth is not made of weights that saw copies of test images, or that started from --weights")
            return
        source = {
            "run": f"{config.name}/{run.folder.name}",
            "val_mean_auc": round(run.history()[best_epoch - 1]["val_mean_auc"], 4),
            "data": str(config.data),
            "training": run.read_json("config.json")["settings"]["train_images"],
        }
        export_arl18(model, config.output, source)

    def figures(
        self, model: nn.Module, cache: ImageCache, split: str, result: np.ndarray, precision: Precision
    ) -> Iterator[tuple[str, Figure]]:
        labels, size = labels_of(cache.samples), self.config.size
        title = f"{self.config.name}, {len(labels)} {split} images"
        yield f"{split}_scores.png", plot_classification(result, labels, title, self.classes)
        maps = plot_saliency(model, cache, result, size, precision.device, self.kind.frame_scale, self.classes)
        for name, figure in maps.items():
            yield f"{split}_{name}.png", figure


def balanced_weights(labels: Sequence[int], classes: Sequence[str] = CLASSES) -> tuple[float, ...]:
    """Weights that give every class the same share of the loss: N / (classes · images of the class)."""
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise UserError(f"--class-weights balanced: no training image of {classes[int(counts.argmin())]}")
    return tuple(round(float(weight), 4) for weight in len(labels) / (len(classes) * counts))
