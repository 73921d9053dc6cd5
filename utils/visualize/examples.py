"""Finished runs on the same photographs: which of them compare, what they get wrong, where their networks look."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from utils import UserError
from utils.data.cache import ImageCache
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import CLASSES, Sample, read_split
from utils.data.loader import to_input
from utils.data.transforms import FRAME, TRAIN_TRANSFORMS, take
from utils.device import Precision, find_device
from utils.evaluation.classification import TASKS
from utils.evaluation.rows import Row
from utils.evaluation.runs import RunResult, find_runs
from utils.evaluation.segmentation import SegmentationCounts
from utils.evaluation.statistics import bootstrap_interval
from utils.evaluation.tables import Score
from utils.inference.classification import examples, labels_of
from utils.inference.saliency import attention_maps, class_activation_maps, grad_cam, mass_inside, to_image_size
from utils.inference.segmentation import lesion_mask, predict_lesions
from utils.inference.trained import has_weights, load_network
from utils.logger import log
from utils.model.fit import alphas
from utils.visualize.figures import NAMES, HeatRow, Panel, best_median_worst, plot_contours, plot_heatmaps

ARL_AND_PLAIN = ((r"arl\d+", r"resnet\d+"), ("arl_mobilenet", "mobilenet"))  # patterns for names of networks
_BATCH = 16  # photographs at a time through a network


def comparable_runs(folders: Sequence[str | Path], task: str, split: str, data: str | Path) -> list[RunResult]:
    """The finished runs of a task below `folders` that were scored on the same images of a split.

    They are those of the images in `data`; where no run was scored on them, those of the images that most runs were
    scored on. The log names the runs that are left out, or what to do when there is none.
    """
    groups: dict[frozenset[str], list[RunResult]] = {}
    for run in find_runs(*folders):
        if run.task == task and run.metrics[split]:
            groups.setdefault(run.image_ids(split), []).append(run)
    if not groups:
        script = {"segmentation": "seg_main.py", "classification": "cls_main.py"}[task]
        where = " or ".join(map(str, folders))
        log.info("no finished %s run with %s scores below %s: python %s makes one", task, split, where, script)
        return []
    there = _ids(data, split)
    chosen = max(groups, key=lambda ids: (ids <= there, len(groups[ids])))
    for ids, runs in groups.items():
        if ids != chosen:
            names = ", ".join(str(run.folder) for run in runs)
            log.info("left out, scored on %d other images: %s", len(ids), names)
    log.info("runs scored on the same %d %s images: %d", len(chosen), split, len(groups[chosen]))
    return groups[chosen]


def find_samples(runs: Sequence[RunResult], split: str, data: str | Path) -> tuple[Path, list[Sample]]:
    """Where the images lie that these runs were scored on, and those images, sorted by id.

    Looked for in `data`, then in the folder that a run names as its own. Where they are in none: `data`, no images,
    and a line in the log.
    """
    if not runs:
        return Path(data), []
    wanted = runs[0].image_ids(split)
    for folder in dict.fromkeys([Path(data), *(run.data for run in runs if run.data)]):
        if wanted <= _ids(folder, split):
            return folder, [sample for sample in read_split(folder, split) if sample.id in wanted]
    log.info("%s does not hold the %d %s images of these runs: no photographs are shown", data, len(wanted), split)
    return Path(data), []


def photograph(sample: Sample, title: str, height: int = 240, prediction: np.ndarray | None = None) -> Panel:
    """A panel for `plot_contours`, `height` pixels high, with the true outline where there is a mask.

    prediction: mask [h, w] of 0 and 1 of the whole frame, of any size.
    """
    columns, rows = image_size(sample.image)
    size = (max(1, round(height * columns / rows)), height)
    mask = read_mask(sample.mask, size) if sample.mask else None
    if prediction is not None:
        prediction = np.array(Image.fromarray(prediction.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    return Panel(title, read_image(sample.image, size), mask, prediction)


def segmentation_failures(rows: Sequence[Row], split: str, samples: Sequence[Sample], count: int = 6) -> list[Panel]:
    """The `count` images with the lowest Jaccard on average over rows, one after the other, each by every row.

    Shown is the mask of a row's first seed, where its run keeps masks; the number is its Jaccard.
    """
    jaccards = np.stack([row.scores(split, "jaccard").mean(axis=0) for row in rows])  # [rows, N], sorted by id
    worst = np.argsort(jaccards.mean(axis=0), kind="stable")[:count]
    first = [row.per_image(split)[0]["jaccard"] for row in rows]
    panels = []
    for index in worst:
        for row, values in zip(rows, first, strict=True):
            title = f"{samples[index].id}\n{row.experiment}, Jaccard {values[index]:.3f}"
            mask = row.runs[0].predicted_mask(split, samples[index].id)
            panels.append(photograph(samples[index], title, prediction=mask))
    return panels


def classification_failures(rows: Sequence[Row], split: str, samples: Sequence[Sample], count: int = 4) -> list[Panel]:
    """Of each class the `count` images whose class gets the lowest probability on average over rows and seeds."""
    each = [row.probabilities(split) for row in rows]
    mean = np.mean([probabilities.mean(axis=0) for probabilities, _ in each], axis=0)  # [N, 3], sorted by id
    labels, panels = each[0][1], []
    for label in range(len(CLASSES)):
        (indices,) = np.nonzero(labels == label)
        for index in indices[np.argsort(mean[indices, label], kind="stable")[:count]]:
            said = int(mean[index].argmax())
            title = f"{samples[index].id}\n{NAMES[label]}, p = {mean[index, label]:.2f}\n"
            title += f"said {NAMES[said]}, p = {mean[index, said]:.2f}"
            panels.append(photograph(samples[index], title))
    return panels


def compare_maps(rows: Sequence[Row], split: str, samples: Sequence[Sample]) -> tuple[Figure, pd.DataFrame] | None:
    """Class activation maps of an ARL network and its plain counterpart on the same photographs, for the true class.

    Taken are an ARL-CNN and a ResNet, else the two MobileNets, with the highest mean AUC that keep their weights; of
    each the first seed.
    The figure shows the best and the worst recognised image of each class (by the ARL network). The table has the share
    of the maps' mass that lies on the lesion, beside the lesion's share of the frame, which a map that looks everywhere
    alike would get: over the images that have a mask and in which both networks find something of the class. None, with
    a line in the log, when a run, its weights or the photographs are not there.
    """
    pairs = [[_with_weights(rows, split, net) for net in nets] for nets in ARL_AND_PLAIN]
    pair = next((pair for pair in pairs if None not in pair), None)
    if pair is None or not samples:
        log.info("no maps to compare: they need photographs, and the weights of an ARL network's run and a plain one's")
        return None
    probabilities, labels = pair[0].probabilities(split)
    maps = [_true_class_maps(row.runs[0], samples, labels) for row in pair]
    lines = [
        {"experiment": row.experiment, "network": row.settings["net"], **scores}
        for row, scores in zip(pair, _on_the_lesion(maps, samples), strict=True)
    ]
    titles = [f"{row.experiment}\n{row.settings['net']}" for row in pair]
    figure_rows = []
    for index in examples(probabilities[0], labels):
        panel = photograph(samples[index], f"{samples[index].id}\n{NAMES[labels[index]]}")
        heats = {title: each[index] for title, each in zip(titles, maps, strict=True)}
        figure_rows.append(HeatRow(panel.title, panel.image, heats, panel.truth))
    return plot_heatmaps(figure_rows, "Class activation maps of the true class"), pd.DataFrame(lines)


def _ids(folder: str | Path, split: str) -> set[str]:
    return {sample.id for sample in read_split(folder, split, with_labels=False)} if Path(folder).is_dir() else set()


def _with_weights(rows: Sequence[Row], split: str, net: str) -> Row | None:
    there = [row for row in rows if re.fullmatch(net, row.settings["net"]) and has_weights(row.runs[0].folder)]
    return max(there, key=lambda row: row.runs[0].metrics[split]["mean_auc"] or 0, default=None)


def _true_class_maps(run: RunResult, samples: Sequence[Sample], labels: np.ndarray) -> np.ndarray:
    """float32 [N, h, w]; the network sees the whole frame as in `plot_saliency`."""
    settings, device = run.settings, find_device(None)
    model = load_network(run, device)
    scale = TRAIN_TRANSFORMS[settings.get("train_views", "patches")].frame_scale
    size = (scale * settings["size"][0], scale * settings["size"][1])
    maps = []
    for start in range(0, len(samples), _BATCH):
        here = slice(start, start + _BATCH)
        frames = np.stack([read_image(sample.image, size) for sample in samples[here]])
        images = to_input(torch.from_numpy(frames), device)
        maps.append(class_activation_maps(model, images, labels[here].tolist()).cpu().numpy())
    return np.concatenate(maps)


def _on_the_lesion(maps: Sequence[np.ndarray], samples: Sequence[Sample]) -> list[dict[str, object]]:
    """Of each network's maps [N, h, w]: columns of the table of `compare_maps`."""
    size, shares, areas = (128, 128), [], []  # the whole frame, finer than any map
    for index, sample in enumerate(samples):
        mask = read_mask(sample.mask, size) if sample.mask else None
        if mask is not None and mask.any():
            heats = to_image_size(torch.from_numpy(np.stack([each[index] for each in maps])), size, scaled=False)
            shares.append([mass_inside(heat, mask) for heat in heats])
            areas.append(float(mask.mean()))
    of_maps, of_frame = np.reshape(shares, (-1, len(maps))), np.array(areas)
    kept = np.isfinite(of_maps).all(axis=1)  # a map without a positive value has no mass

    def score(values: np.ndarray) -> Score:
        return Score(float(values.mean()), None, bootstrap_interval(values)) if values.size else Score()

    return [
        {
            "images": int(kept.sum()),
            "of the map's mass on the lesion": score(values),
            "of the frame": score(of_frame[kept]),
        }
        for values in of_maps[kept].T
    ]


def plot_examples(
    model: nn.Module,
    cache: ImageCache,
    counts: SegmentationCounts,
    precision: Precision,
    flips: bool = False,
    width: int = 480,
) -> Figure:
    """The best, median and worst scored images with the true and the predicted outline, drawn `width` pixels wide."""
    per_image = counts.per_image()
    position = {sample.id: index for index, sample in enumerate(cache.samples)}
    panels = []
    for group, rows in best_median_worst(per_image["jaccard"].to_numpy()).items():
        indices = [position[per_image["image_id"][row]] for row in rows]
        predicted = predict_lesions(model, cache, precision, 4, flips, indices)
        for row, (index, probability) in zip(rows, predicted, strict=True):
            sample = cache.samples[index]
            columns, lines = image_size(sample.image)
            size = (width, max(1, round(width * lines / columns)))
            panels.append(
                Panel(
                    f"{group}: {sample.id}, Jaccard {per_image['jaccard'][row]:.3f}",
                    read_image(sample.image, size),
                    read_mask(sample.mask, size),
                    lesion_mask(probability, size),
                )
            )
    title = f"Best, median and worst of {len(counts)} images by Jaccard (mean {per_image['jaccard'].mean():.3f})"
    return plot_contours(panels, title, columns=len(panels) // 3 if len(panels) >= 3 else len(panels))


SHOWN = 320  # pixels of a photograph's width in figures


def plot_saliency(
    model: nn.Module,
    cache: ImageCache,
    probabilities: np.ndarray,
    size: tuple[int, int],
    device: torch.device,
    scale: int,
) -> dict[str, Figure]:
    """Figures of where the network looks, on the best and worst recognised image of each class.

    "cam": class activation maps for the class that `probabilities` predict and for both classes of the challenge,
    Grad-CAM at two layers; "attention": the map of every ARL block, where there are any. The true outline is drawn
    where it is known.

    The network sees the whole frame at `scale` × its input `size` (`TrainTransforms.frame_scale`): things are as large then
    as it knows them, and the maps have as many positions.
    """
    labels = labels_of(cache.samples)
    chosen = examples(probabilities, labels)
    enlarged = (scale * size[0], scale * size[1])
    frames = [take(cache.pixels()[index], FRAME, enlarged) for index in chosen]
    images = to_input(torch.from_numpy(np.stack(frames)), device)
    predicted = torch.from_numpy(probabilities[chosen].argmax(axis=1)).to(device)
    cams = {
        "CAM\npredicted class": class_activation_maps(model, images, predicted),
        **{f"CAM\n{task.replace('_', ' ')}": class_activation_maps(model, images, n) for n, task in enumerate(TASKS)},
        **{
            f"Grad-CAM {layer.removeprefix('backbone.')}\npredicted class": grad_cam(model, images, layer, predicted)
            for layer in model.last_layers
        },
    }
    titles, photographs, masks = [], [], []
    for index in chosen:
        sample, p = cache.samples[index], probabilities[index]
        titles.append(f"{sample.id}\n{CLASSES[sample.label].replace('_', ' ')}, p = {p[sample.label]:.2f}")
        columns, rows = image_size(sample.image)
        shown = (SHOWN, max(1, round(SHOWN * rows / columns)))  # in its own proportions, which the network does not see
        photographs.append(read_image(sample.image, shown))
        masks.append(_mask_or_none(sample, shown))

    def figure(maps: Mapping[str, torch.Tensor], title: str) -> Figure:
        maps = {name: heats.cpu().numpy() for name, heats in maps.items()}
        rows = [
            HeatRow(titles[n], photographs[n], {name: heats[n] for name, heats in maps.items()}, masks[n])
            for n in range(len(chosen))
        ]
        return plot_heatmaps(rows, title)

    figures = {"cam": figure(cams, "What the classes are recognised by: best and worst recognised image of each")}
    if alphas(model) and (attention := attention_maps(model, images)):
        figures["attention"] = figure(attention, "Attention of every ARL block")
    return figures


def _mask_or_none(sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """Outlines are an extra here: nothing else in classification reads masks, and a bad one stops nothing."""
    try:
        return read_mask(sample.mask, size) if sample.mask else None
    except UserError as error:
        log.warning("%s; drawn without an outline", error)
        return None
