#!/usr/bin/env python
"""Train a lesion segmenter on ISIC 2017 and score it.

    python seg_main.py --experiment seg-2              a row of the results table
    python seg_main.py -n res -p 0 --size 128 128 --epochs 10 --lr 1e-3
    nohup python seg_main.py -i 1 -n unet -p 0 &       in the background; the same command continues it
    torchrun --nproc-per-node 2 seg_main.py            each batch shared by two GPUs

What a run keeps lies in model/<experiment>/run<id>/.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from utils import distributed
from utils.command_line import Task, build_model, build_training, choose_experiment, make_parser, start_run
from utils.config import Experiment
from utils.data.cache import ImageCache, prepare
from utils.data.copies import copies_between
from utils.data.splits import Data, refuse_copies, segmentation_data
from utils.data.transforms import SegmentationTransforms, cache_size
from utils.device import Precision, find_device, find_precision
from utils.inference.segmentation import TrueMasks, format_scores, score, summarize, write_masks
from utils.logger import log, run_script
from utils.loss import LOSSES, create_loss
from utils.model.fit import fit, load_best
from utils.model.run import Run
from utils.visualize.examples import plot_examples
from utils.visualize.figures import plot_history

NETS = {"dense": "dense_unet", "res": "res_unet", "unet": "unet", "arl": "arl_unet", "mobilenet": "mobilenet_unet"}
TASK = Task("segmentation", NETS, "dense", LOSSES, "Jaccard")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return make_parser(TASK, __doc__).parse_args(argv)


def choose(args: argparse.Namespace) -> Experiment:
    return choose_experiment(args, TASK)


def prepare_all(data: Data, size: tuple[int, int], cache: Path) -> dict[str, ImageCache]:
    """Every split decoded before training starts, so that an unreadable file shows now and not after it."""
    sizes = {"train": cache_size(size), "validation": size, "test": size}
    return {split: prepare(data[split], sizes[split], cache) for split in data if data[split]}


def evaluate(model: nn.Module, caches: dict[str, ImageCache], row: Experiment, precision: Precision, run: Run) -> None:
    """Score the best weights where there is truth, write the predicted masks, draw the figures."""
    best_epoch, history = load_best(model, run.folder), run.history()
    metrics = {"validation": None, "test": None, "best_epoch": best_epoch, "epochs": len(history), "flips": row.flips}
    tables, scored = [], {}
    for split in ("validation", "test"):
        if split not in caches:
            continue
        masks = run.path(f"{split}_masks.zip")
        counts = write_masks(model, caches[split], precision, row.batch_size, masks, row.flips)
        log.info("masks of the %d %s images: %s", len(caches[split].samples), split, masks)
        if not counts:
            continue
        metrics[split] = summarize(counts)
        log.info(format_scores(split, metrics[split]))
        tables.append(counts.per_image().assign(split=split))
        scored[split] = counts
    run.write_table("per_image.csv", pd.concat(tables))
    run.write_json("metrics.json", metrics)

    run.save_figure(plot_history(history, best_epoch), "history.png")
    for split, counts in scored.items():
        figure = plot_examples(model, caches[split], counts, precision, row.flips)
        log.info("figure: %s", run.save_figure(figure, f"{split}.png"))


def main(argv: list[str] | None = None) -> Run:
    args = parse(argv)
    row = choose(args)
    device = find_device(args.device)
    with distributed.joined(device):
        return _main(args, row, find_precision(device, args.amp))


def _main(args: argparse.Namespace, row: Experiment, precision: Precision) -> Run:
    with distributed.main_first():
        data = segmentation_data(args.data, keep_copies=args.keep_copies)
        torch.manual_seed(args.seed)
        model, weights = build_model(args, row)
        caches = prepare_all(data, row.size, args.cache)
        refuse_copies(copies_between(caches), data, keep_copies=args.keep_copies)

    masks = TrueMasks()

    def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
        scores = score(model, caches["validation"], precision, row.batch_size, masks=masks).official()
        first = {name: scores.pop(name) for name in ("jaccard", "threshold_jaccard", "dice")}
        return first["jaccard"], {f"val_{name}": value for name, value in (first | scores).items()}

    criterion, views = create_loss(row.loss), SegmentationTransforms(row.size)
    trainer, loader = build_training(args, row, model, criterion, caches["train"], views, precision)
    with start_run(args, row, data, weights, precision, caches) as run:
        fit(trainer, loader, validate, run)
        if distributed.is_main():
            with distributed.alone():
                evaluate(model, caches, row, precision, run)
        distributed.wait_for_all()
    log.info("run folder: %s", run.folder)
    return run


if __name__ == "__main__":
    run_script(main)
