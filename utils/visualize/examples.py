"""Finished runs on the same photographs: which of them compare, what they get wrong, where their networks look."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from utils.data.cache import ImageCache
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import CLASSES, Sample, read_split
from utils.data.loader import to_input
from utils.data.transforms import FRAME, take
from utils.device import Precision, find_device
from utils.evaluation.rows import Row, row_names
from utils.evaluation.runs import RunResult, find_runs
from utils.evaluation.segmentation import Counts, per_image_table
from utils.inference.classification import examples, labels_of
from utils.inference.saliency import attention_maps, class_activation_maps, grad_cam
from utils.inference.segmentation import lesion_mask, predict_lesions
from utils.inference.trained import has_weights, load_network, read_frame
from utils.logger import log
from utils.model.fit import alphas
from utils.visualize.figures import Panel, best_median_worst, plot_contours, plot_heatmaps
from utils.visualize.overlay import outlined
from utils.visualize.style import NAMES

ARL_AND_PLAIN = ((r"arl\d+", r"resnet\d+"), ("arl_mobilenet", "mobilenet"))  # patterns for names of networks


def comparable_runs(folders: Sequence[str | Path], task: str, split: str, data: str | Path) -> list[RunResult]:
    """The finished runs of a task below `folders` that were scored on the same images of a split.

    They are those of the images in `data`; where no run was scored on them, those of the images that most runs were
    scored on. The log names the runs that are left out; those of other classes than ISIC 2017's always are.
    """
    groups: dict[frozenset[str], list[RunResult]] = {}
    for run in find_runs(*folders):
        if run.task == task and run.metrics[split] and run.classes != CLASSES:
            log.info("left out, of other classes: %s", run.folder)
        elif run.task == task and run.metrics[split]:
            groups.setdefault(run.image_ids(split), []).append(run)
    if not groups:
        log.info("no finished %s run with %s scores below %s", task, split, " or ".join(map(str, folders)))
        return []
    there = _ids(data, split)
    chosen = max(groups, key=lambda ids: (ids <= there, len(groups[ids])))
    for ids in groups.keys() - {chosen}:
        log.info("left out, scored on %d other images: %s", len(ids), ", ".join(str(run.folder) for run in groups[ids]))
    log.info("runs scored on the same %d %s images: %d", len(chosen), split, len(groups[chosen]))
    return groups[chosen]


def find_samples(runs: Sequence[RunResult], split: str, data: str | Path) -> tuple[Path, list[Sample]]:
    """Where the images lie that these runs were scored on, and those images, sorted by id.

    Looked for in `data`, then in the folder that a run names as its own; `data` and no images where they are in none,
    or where `data` is "".
    """
    if not runs:
        return Path(data), []
    wanted = runs[0].image_ids(split)
    for folder in dict.fromkeys([Path(data), *(run.data for run in runs if run.data)]) if str(data) else ():
        if wanted <= _ids(folder, split):
            return folder, [sample for sample in read_split(folder, split) if sample.id in wanted]
    where = f"{data} does not hold, in the challenge's layout," if str(data) else "no folder is given that holds"
    log.info("%s the %d %s images of these runs: no photographs are shown", where, len(wanted), split)
    return Path(data), []


def photograph(sample: Sample, title: str, width: int = 320, prediction: np.ndarray | None = None) -> Panel:
    """A panel of a photograph in its own proportions, `width` pixels wide, with the true outline where there is a mask.

    prediction: mask [h, w] of the whole frame, of any size.
    """
    columns, rows = image_size(sample.image)
    size = (width, max(1, round(width * rows / columns)))
    mask = read_mask(sample.mask, size) if sample.mask else None
    if prediction is not None:
        prediction = np.array(Image.fromarray(prediction.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    return Panel(title, read_image(sample.image, size), mask, prediction)


def segmentation_failures(rows: Sequence[Row], split: str, samples: Sequence[Sample], count: int = 6) -> list[Panel]:
    """The `count` images with the lowest mean Jaccard, each by every row: the mask and Jaccard of its first seed."""
    jaccards = np.stack([row.scores(split, "jaccard").mean(axis=0) for row in rows])  # [rows, N], sorted by id
    worst = np.argsort(jaccards.mean(axis=0), kind="stable")[:count]
    first = [row.per_image(split)[0]["jaccard"] for row in rows]
    panels = []
    for index in worst:
        for row, name, values in zip(rows, row_names(rows), first, strict=True):
            title = f"{samples[index].id}\n{name}\nJaccard {values[index]:.3f}"
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
            title = f"{samples[index].id}\n{NAMES[label]} {mean[index, label]:.2f}"
            panels.append(photograph(samples[index], f"{title}\nsaid {NAMES[said]} {mean[index, said]:.2f}"))
    return panels


def compare_maps(rows: Sequence[Row], split: str, samples: Sequence[Sample]) -> Figure | None:
    """Class activation maps of an ARL network and its plain counterpart on the same photographs, for the true class.

    Taken are an ARL-CNN and a ResNet, else the two MobileNets, with the highest mean AUC that keep their weights; of
    each the first seed. Shown are the best and the worst recognised image of each class (by the ARL network).
    None, with a line in the log, when a run, its weights or the photographs are not there.
    """
    pairs = [[_with_weights(rows, split, net) for net in nets] for nets in ARL_AND_PLAIN]
    pair = next((pair for pair in pairs if None not in pair), None)
    if pair is None or not samples:
        log.info("no maps to compare: they need photographs, and the weights of an ARL network's run and a plain one's")
        return None
    probabilities, labels = pair[0].probabilities(split)
    chosen = examples(probabilities[0], labels)
    shown = [samples[index] for index in chosen]
    panels = [photograph(one, f"{one.id}\n{NAMES[label]}") for one, label in zip(shown, labels[chosen], strict=True)]
    heats = {f"{row.name}\n{row.settings['net']}": _true_class_maps(row.runs[0], shown, labels[chosen]) for row in pair}
    return plot_heatmaps(panels, heats, "Class activation maps of the true class")


def plot_examples(
    model: nn.Module, cache: ImageCache, counts: Counts, precision: Precision, flips: bool = False
) -> Figure:
    """The best, median and worst scored images with the true and the predicted outline."""
    per_image = per_image_table(counts)
    position = {sample.id: index for index, sample in enumerate(cache.samples)}
    panels = []
    for group, rows in best_median_worst(per_image["jaccard"].to_numpy()).items():
        indices = [position[per_image["image_id"][row]] for row in rows]
        predicted = predict_lesions(model, cache, precision, 4, flips, indices)
        for row, (index, probability) in zip(rows, predicted, strict=True):
            sample = cache.samples[index]
            title = f"{group}: {sample.id}\nJaccard {per_image['jaccard'][row]:.3f}"
            panels.append(photograph(sample, title, 480, lesion_mask(probability, image_size(sample.image))))
    title = f"Best, median and worst of {len(counts)} images by Jaccard (mean {per_image['jaccard'].mean():.3f})"
    return plot_contours(panels, title, columns=len(panels) // 3 if len(panels) >= 3 else len(panels))


def outlined_examples(model: nn.Module, cache: ImageCache, precision: Precision, count: int = 4) -> np.ndarray:
    """Some images of a cache side by side, as the network gets them, with the true and the predicted outline.

    uint8 [H, W, 3].
    """
    indices = range(0, len(cache.samples), max(1, len(cache.samples) // count))[:count]
    tiles = []
    for index, probability in predict_lesions(model, cache, precision, count, indices=indices):
        frame = cache.frame(index)
        tiles.append(outlined(outlined(frame[..., :3], frame[..., 3], "truth"), probability > 0.5))
    return np.hstack(tiles)


def plot_saliency(
    model: nn.Module,
    cache: ImageCache,
    probabilities: np.ndarray,
    size: Sequence[int],
    device: torch.device,
    scale: int,
    classes: Sequence[str] = CLASSES,
) -> dict[str, Figure]:
    """Figures of where the network looks, on the best and worst recognised image of each class.

    "cam": class activation maps for the class that `probabilities` predict and for the first two classes,
    Grad-CAM at two layers; "attention": the map of every ARL block, where there are any. The network sees the whole
    frame at `scale` × its input `size` (`TrainTransforms.frame_scale`): things are as large then as it knows them.
    """
    labels, names = labels_of(cache.samples), [name.replace("_", " ") for name in classes]
    chosen = examples(probabilities, labels)
    enlarged = (scale * size[0], scale * size[1])
    frames = [take(cache.frame(index), FRAME, enlarged) for index in chosen]
    images = to_input(torch.from_numpy(np.stack(frames)), device)
    predicted = torch.from_numpy(probabilities[chosen].argmax(axis=1)).to(device)
    cams = {"CAM\npredicted class": class_activation_maps(model, images, predicted)}
    for number, name in enumerate(names[:2]):
        cams[f"CAM\n{name}"] = class_activation_maps(model, images, number)
    for layer in model.last_layers:
        title = f"Grad-CAM {layer.removeprefix('backbone.')}\npredicted class"
        cams[title] = grad_cam(model, images, layer, predicted)
    panels = []
    for index in chosen:
        sample, label = cache.samples[index], labels[index]
        panels.append(photograph(sample, f"{sample.id}\n{names[label]}, p = {probabilities[index, label]:.2f}"))

    def figure(maps: dict[str, torch.Tensor], title: str) -> Figure:
        return plot_heatmaps(panels, {name: heats.cpu().numpy() for name, heats in maps.items()}, title)

    figures = {"cam": figure(cams, "What the classes are recognised by: best and worst recognised image of each")}
    if alphas(model):
        figures["attention"] = figure(attention_maps(model, images), "Attention of every ARL block")
    return figures


def _ids(folder: str | Path, split: str) -> set[str]:
    there = str(folder) and Path(folder).is_dir()
    return {sample.id for sample in read_split(folder, split, with_labels=False)} if there else set()


def _with_weights(rows: Sequence[Row], split: str, net: str) -> Row | None:
    there = [row for row in rows if re.fullmatch(net, row.settings["net"]) and has_weights(row.runs[0].folder)]
    return max(there, key=lambda row: row.runs[0].metrics[split]["mean_auc"] or 0, default=None)


def _true_class_maps(run: RunResult, samples: Sequence[Sample], labels: np.ndarray) -> np.ndarray:
    """float32 [N, h, w]; the network sees the whole frame as in `plot_saliency`."""
    device = find_device(None)
    model = load_network(run, device)
    maps = []
    for sample, label in zip(samples, labels.tolist(), strict=True):
        image = to_input(torch.from_numpy(read_frame(run, sample.image)[None]), device)
        maps.append(class_activation_maps(model, image, label)[0].cpu().numpy())
    return np.stack(maps)
