#!/usr/bin/env python
"""Train a lesion segmenter on ISIC 2017 and score it.

    python seg_main.py --experiment seg-2              a row of the results table
    python seg_main.py -n res -p 0 --size 128 128 --epochs 10 --lr 1e-3
    nohup python seg_main.py -i 1 -n unet -p 0 &       in the background; the same command continues it

What a run keeps lies in model/<experiment>/run<id>/.
"""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import nets
from utils import UserError
from utils.data import SPLITS, Sample, read_split
from utils.experiments import EXPERIMENTS, Experiment, find_experiment
from utils.loader import CACHE, TRAIN_SCALE, Store, prepare, train_loader
from utils.logger import log, run_script
from utils.loss import LOSSES, create_loss
from utils.model import AMP, Precision, Schedule, Trainer, find_device, find_precision, fit, load_best
from utils.run import Run, digest, environment
from utils.segmentation import format_scores, plot_examples, score, summarize, write_masks
from utils.visualize import plot_history
from utils.weights import MODEL, PRETRAINED, LoadReport, find_weights, load_encoder

NETS = {"dense": "dense_unet", "res": "res_unet", "unet": "unet", "arl": "arl_unet"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is None there is decided by the experiment's row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-i", "--id", type=at_least(0), default=0, help="run number (0)")
    add("-n", "--net", choices=NETS, help="network (the experiment's, else dense)")
    add("-c", "--checked", type=int, choices=(0, 1), default=1, help="1: continue this run where it stopped, or start "
        "where there is none; 0: start afresh, the old run is kept under another name (1)")  # fmt: skip
    add("-p", "--pretrained", type=int, choices=(0, 1), help="pretrained encoder (the experiment's, else 1)")
    add("-m", "--message", default="", help="a note kept with the run")
    add("--experiment", choices=list(EXPERIMENTS), help="row of the results table; other flags override its settings")
    add("--data", type=Path, default=Path("Data/ISIC2017"), help="data folder (Data/ISIC2017)")
    add("--output", type=Path, default=MODEL, help="where run folders go (model)")
    add("--cache", type=Path, default=CACHE, help="where prepared images go (Data/cache)")
    add("--weights", type=Path, help="file with a state dict for the encoder, in place of the pretrained one")
    add("--size", type=at_least(32), nargs=2, metavar=("WIDTH", "HEIGHT"), help="input of the network, pixels")
    add("--epochs", type=at_least(1), help="of the whole schedule")
    add("--batch-size", type=at_least(1))
    add("--lr", type=rate, help="learning rate at the start")
    add("--patience", type=at_least(1), help="epochs without a better validation Jaccard after which it stops")
    add("--loss", choices=LOSSES)
    add("--seed", type=at_least(0), default=0, help="of weights, order and augmentation (0)")
    add("--workers", type=at_least(0), help="loader processes (none on a CPU, one per core up to 8 beside a GPU)")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    add("--keep-copies", action="store_true", help="train on the known copies of validation and test images too")
    return parser.parse_args(argv)


def at_least(minimum: int):
    """An argparse type: a whole number that is not below `minimum`."""

    def whole_number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        return int(text)

    return whole_number


def rate(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return float(text)


def choose_experiment(args: argparse.Namespace) -> Experiment:
    """The row of the table that is meant, with what the command line says otherwise."""
    row = EXPERIMENTS[args.experiment] if args.experiment else None
    net = NETS[args.net] if args.net else row.net if row else NETS["dense"]
    pretrained = bool(args.pretrained) if args.pretrained is not None else row.pretrained if row else True
    if pretrained and net not in PRETRAINED:
        pretrained = False
        if not args.weights:
            log.info("%s has no pretrained encoder: it starts from random weights", net)
    row = row or find_experiment(net, pretrained)
    given = {name: getattr(args, name) for name in ("size", "epochs", "batch_size", "lr", "patience", "loss")}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(row, **given | {"net": net, "pretrained": pretrained})


def read_data(args: argparse.Namespace) -> dict[str, list[Sample]]:
    """The images of each split; training and validation keep those with a mask."""
    data = {}
    for split in SPLITS:
        samples = read_split(args.data, split, leave_out_copies=not args.keep_copies, with_labels=False)
        data[split] = [sample for sample in samples if sample.mask or split == "test"]
        if split != "test" and not data[split]:
            raise UserError(f"{args.data}: no {split} image with a mask; see python -m utils.inspect_data {args.data}")
        without = len(samples) - len(data[split])
        more = f", {without} more left out because they have no mask" if without else ""
        log.info("%s: %d images%s", split, len(data[split]), more)
    train = {sample.id for sample in data["train"]}
    twice = sorted(sample.id for split in ("validation", "test") for sample in data[split] if sample.id in train)
    if twice:
        names = f"{', '.join(twice[:3])}{' …' if len(twice) > 3 else ''}"
        raise UserError(f"{args.data}: {len(twice)} images are in training and in another split: {names}; remove one")
    return data


def create_model(row: Experiment, weights: Path | None) -> tuple[nn.Module, LoadReport | None]:
    """The network with its encoder pretrained as asked, and what was loaded."""
    model = nets.create_model(row.net)
    report = None
    if weights:
        log.info("%s: if these weights have seen ISIC 2018 or later, they have seen most of the test images", weights)
    if weights or row.pretrained:
        report = load_encoder(model, row.net, weights or find_weights(PRETRAINED[row.net]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s, %.1f M parameters, encoder from %s", row.net, parameters / 1e6, report or "random weights")
    return model, report


def prepare_all(data: dict[str, list[Sample]], size: tuple[int, int], cache: Path) -> dict[str, Store]:
    """Every split decoded before training starts, so that an unreadable file shows now and not after it."""
    large = (round(size[0] * TRAIN_SCALE), round(size[1] * TRAIN_SCALE))
    return {split: prepare(data[split], large if split == "train" else size, cache) for split in data if data[split]}


def evaluate(model: nn.Module, stores: dict[str, Store], precision: Precision, batch_size: int, run: Run) -> None:
    """Score the best weights where there is truth, predict the test images, draw the figures."""
    metrics = {"validation": None, "test": None, "best_epoch": load_best(model, run), "epochs": len(run.history())}
    tables = []
    for split in ("validation", "test"):
        counts = score(model, stores[split], precision, batch_size) if split in stores else ()
        if not counts:
            continue
        metrics[split] = summarize(counts)
        log.info(format_scores(split, metrics[split]))
        tables.append(counts.per_image().assign(split=split))
        figure = plot_examples(model, stores[split], counts, precision)
        log.info("figure: %s", run.save_figure(figure, f"{split}.png"))
    if "test" in stores:
        count = write_masks(model, stores["test"], precision, batch_size, run.path("test_masks.zip"))
        log.info("masks of the %d test images: %s", count, run.path("test_masks.zip"))
    run.save_figure(plot_history(run.history(), metrics["best_epoch"]), "history.png")
    run.write_table("per_image.csv", pd.concat(tables))
    run.write_json("metrics.json", metrics)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    row = choose_experiment(args)
    precision = find_precision(find_device(args.device), args.amp)
    data = read_data(args)
    torch.manual_seed(args.seed)
    model, weights = create_model(row, args.weights)
    stores = prepare_all(data, row.size, args.cache)

    settings = {**asdict(row), "seed": args.seed, "amp": args.amp, "weights": weights and asdict(weights)}
    del settings["published"]  # not ours, and nothing to hold a run to
    settings |= {f"{split}_images": digest(data[split]) for split in ("train", "validation")}
    facts = {"data": str(args.data), "test_images": digest(data["test"]), "message": args.message}
    facts |= {"precision": str(precision), **environment(precision.device)}
    run = Run(args.output / row.name / f"run{args.id}", settings, facts, resume=bool(args.checked))
    log.info("%s: %s, %d×%d pixels, %s", run.folder, row.loss, *row.size, precision)

    loader = train_loader(stores["train"], row.size, row.batch_size, args.seed, precision.device, args.workers)
    schedule = Schedule(row.epochs, row.lr, row.weight_decay, row.patience)
    trainer = Trainer(model, create_loss(row.loss), schedule, len(loader), precision)

    def validate(model: nn.Module) -> tuple[float, dict[str, float]]:
        scores = score(model, stores["validation"], precision, row.batch_size).official()
        return scores["jaccard"], {f"val_{name}": value for name, value in scores.items()}

    fit(trainer, loader, validate, run)
    evaluate(model, stores, precision, row.batch_size, run)
    log.info("run folder: %s", run.folder)


if __name__ == "__main__":
    run_script(main)
