#!/usr/bin/env python
"""Train a skin-lesion classifier on ISIC 2017 and score it.

    python cls_main.py --experiment cls-2-4             a row of the results table
    python cls_main.py -n arl18 -p 0 --size 128 128 --epochs 30 --lr 1e-3
    nohup python cls_main.py -i 1 -n resnet50 &         in the background; the same command continues it

What a run keeps lies in model/<experiment>/run<id>/. A run of ARL-18 leaves its weights beside it, in model/arl18.pth,
from where seg_main.py takes them for the ARL-UNet's encoder.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from utils import distributed
from utils.command_line import (
    Task,
    build_model,
    build_training,
    choose_experiment,
    make_parser,
    positive,
    start_run,
)
from utils.config import Experiment
from utils.data.cache import ImageCache, prepare
from utils.data.copies import copies_between
from utils.data.isic import CLASSES
from utils.data.splits import Data, classification_data, refuse_copies
from utils.data.transforms import TEST_PATCHES, TRAIN_TRANSFORMS
from utils.device import Precision, find_device, find_precision
from utils.evaluation.classification import (
    TASKS,
    classification_scores,
    official_predictions,
    official_truth,
    predictions_table,
)
from utils.inference.classification import (
    balanced_weights,
    cache_sizes,
    class_probabilities,
    format_scores,
    labels_of,
    summarize,
)
from utils.logger import log, run_script
from utils.loss import create_loss
from utils.model.fit import fit, load_best
from utils.model.run import Run
from utils.model.weights import export_arl18
from utils.visualize.examples import plot_saliency
from utils.visualize.figures import plot_classification, plot_history

NETS = {
    net: net for net in ["arl14", "arl18", "arl50", "resnet14", "resnet18", "resnet50", "mobilenet", "arl_mobilenet"]
}
SCORE = "AUC(melanoma) + AUC(seborrheic keratosis)"
TASK = Task("classification", NETS, "arl50", ("focal", "ce"), SCORE)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(TASK, __doc__)
    add = parser.add_argument
    add("--class-weights", nargs="+", metavar="W", help="three numbers (melanoma, seborrheic keratosis, nevus), or "
        "balanced: each class the same share of the loss")  # fmt: skip
    add("--recipe", choices=("repo", "paper"), default="repo", help="repo: AdamW, half cosine; paper: SGD, learning "
        "rate 0.01 (pretrained 1e-4), halved every 30 epochs")  # fmt: skip
    add("--train-views", choices=TRAIN_TRANSFORMS, help="what it is trained on: patches of four scales from the middle, or "
        "crops of half to all of the frame (the experiment's, else patches)")  # fmt: skip
    add("--views", choices=TEST_PATCHES, help="what the scores average: nine fixed patches, nine around the centre, or the "
        "whole frame (9; 1 with --train-views frame)")  # fmt: skip
    add("--require-all", action="store_true", help="stop when images are not there whose labels are")
    args = parser.parse_args(argv)
    if args.class_weights == ["balanced"]:
        args.class_weights = "balanced"  # a number for each class once the labels are read
    elif args.class_weights:
        try:
            args.class_weights = tuple(map(positive, args.class_weights))
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"argument --class-weights: {error}")
        if len(args.class_weights) != len(CLASSES):
            parser.error("argument --class-weights: expected three numbers, or balanced")
    return args


def choose(args: argparse.Namespace) -> Experiment:
    paper = args.recipe == "paper"
    row = choose_experiment(args, TASK, class_weights=args.class_weights, optimizer="sgd" if paper else None,
        train_views=args.train_views)  # fmt: skip
    if args.train_views and args.views is None:
        row = replace(row, views="1" if row.train_views == "frame" else "9")
    if paper:
        return replace(row, lr=args.lr or (1e-4 if row.pretrained else 1e-2), weight_decay=1e-4)
    return row


def prepare_all(
    data: Data, size: tuple[int, int], center: tuple[int, int] | None, cache: Path
) -> dict[str, ImageCache]:
    """Every split decoded before training starts, so that an unreadable file shows now and not after it."""
    return {split: prepare(data[split], size, cache, masks=False, center=center) for split in data if data[split]}


def evaluate(model: nn.Module, caches: dict[str, ImageCache], row: Experiment, precision: Precision, run: Run) -> None:
    """Score the best weights where there is truth, predict the test images, then draw the figures."""
    best_epoch, history = load_best(model, run.folder), run.history()
    metrics = {"validation": None, "test": None, "best_epoch": best_epoch, "epochs": len(history)}
    metrics |= {"views": row.views, "flips": row.flips}
    scored = {}
    for split in ("validation", "test"):
        if split not in caches:
            continue
        samples = caches[split].samples
        probabilities = class_probabilities(
            model, caches[split], precision, row.size, row.batch_size, TEST_PATCHES[row.views], row.flips
        )
        table = predictions_table([sample.id for sample in samples], probabilities)
        run.write_table(f"{split}_predictions.csv", table)
        run.write_table(f"{split}_predictions_official.csv", official_predictions(table))
        log.info("probabilities of the %d %s images: %s", len(table), split, run.path(f"{split}_predictions.csv"))
        if all(sample.label is not None for sample in samples):
            run.write_table(f"{split}_truth_official.csv", official_truth({s.id: s.label for s in samples}))
            metrics[split] = summarize(probabilities, labels_of(samples))
            log.info(format_scores(split, metrics[split]))
            scored[split] = probabilities
    run.write_json("metrics.json", metrics)

    run.save_figure(plot_history(history, best_epoch), "history.png")
    for split, probabilities in scored.items():
        labels = labels_of(caches[split].samples)
        figures = {"scores": plot_classification(probabilities, labels, f"{row.name}, {len(labels)} {split} images")}
        figures |= plot_saliency(
            model,
            caches[split],
            probabilities,
            row.size,
            precision.device,
            TRAIN_TRANSFORMS[row.train_views].frame_scale,
        )
        for name, figure in figures.items():
            log.info("figure: %s", run.save_figure(figure, f"{split}_{name}.png"))


def leave_arl18(model: nn.Module, args: argparse.Namespace, row: Experiment, run: Run) -> None:
    """The best weights of the paper's ARL-18 become the ARL-UNet's encoder, unless their origin is in doubt."""
    if (row.net, row.attention, row.alpha) != ("arl18", "spatial", "learn"):
        return
    if args.keep_copies or args.weights:
        log.info("arl18.pth is not made of weights that have seen copies of test images, or started from --weights")
        return
    best = run.read_json("metrics.json")["best_epoch"]
    source = {
        "run": f"{row.name}/{run.folder.name}",
        "val_mean_auc": round(run.history()[best - 1]["val_mean_auc"], 4),
        "data": str(args.data),
        "training": run.read_json("config.json")["settings"]["train_images"],
    }
    export_arl18(model, args.output, source)


def main(argv: list[str] | None = None) -> Run:
    args = parse(argv)
    row = choose(args)
    device = find_device(args.device)
    with distributed.joined(device):
        return _main(args, row, find_precision(device, args.amp))


def _main(args: argparse.Namespace, row: Experiment, precision: Precision) -> Run:
    kind = TRAIN_TRANSFORMS[row.train_views]
    with distributed.main_first():
        data, absent = classification_data(args.data, keep_copies=args.keep_copies, require_all=args.require_all)
        if row.class_weights == "balanced":
            row = replace(row, class_weights=balanced_weights(labels_of(data["train"])))
        torch.manual_seed(args.seed)
        model, weights = build_model(args, row)
        stored, center = cache_sizes(data["train"], row.size, kind)
        caches = prepare_all(data, stored, center, args.cache)
        refuse_copies(copies_between(caches), data, keep_copies=args.keep_copies)
    truth = labels_of(data["validation"])

    def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
        """By the same views of the same images every epoch, whatever `--views`."""
        probabilities = class_probabilities(
            model, caches["validation"], precision, row.size, row.batch_size, kind.selection, kind.selection_flips
        )
        scores = classification_scores(probabilities, truth)
        columns = {"val_mean_auc": scores["mean_auc"]} | {f"val_{task}_auc": scores[task]["auc"] for task in TASKS}
        more = {f"val_{name}": scores[name] for name in ("balanced_accuracy", "accuracy")}
        return sum(scores[task]["auc"] for task in TASKS), columns | more

    not_there = {split: len(ids) for split, ids in absent.items()}
    criterion, views = create_loss(row.loss, class_weights=row.class_weights), kind.build(row.size)
    trainer, loader = build_training(args, row, model, criterion, caches["train"], views, precision)
    with start_run(args, row, data, weights, precision, caches, {"images_not_there": not_there}) as run:
        fit(trainer, loader, validate, run)
        if distributed.is_main():
            with distributed.alone():
                evaluate(model, caches, row, precision, run)
                leave_arl18(model, args, row, run)
        distributed.wait_for_all()
    log.info("run folder: %s", run.folder)
    return run


if __name__ == "__main__":
    run_script(main)
