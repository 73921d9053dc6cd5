"""What the command lines of seg_main.py and cls_main.py share: flags, the row that is meant, the run they describe."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

import nets
from nets.arl import ALPHA, ATTENTION
from utils import UserError
from utils.data import SPLITS
from utils.experiments import EXPERIMENTS, Experiment, experiments, find_experiment
from utils.loader import CACHE
from utils.logger import log
from utils.model import AMP, Precision
from utils.run import Run, digest, environment
from utils.splits import Data
from utils.weights import MODEL, PRETRAINED, LoadReport, find_weights, load_pretrained


def make_parser(
    task: str, doc: str, names: Mapping[str, str], default: str, losses: Sequence[str]
) -> argparse.ArgumentParser:
    """The flags that mean the same for both tasks; what is None there is decided by the experiment's row.

    names: networks by the name that `--net` takes; default: the one without `--net` and `--experiment`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(task=task, nets=names, default_net=default)
    add = parser.add_argument
    score = {"segmentation": "Jaccard", "classification": "AUC(melanoma) + AUC(seborrheic keratosis)"}[task]
    add("-i", "--id", type=at_least(0), default=0, help="run number (0)")
    add("-n", "--net", choices=names, help=f"network (the experiment's, else {default})")
    add("-c", "--checked", type=int, choices=(0, 1), default=1, help="1: continue this run where it stopped, or start "
        "where there is none; 0: start afresh, the old run is kept under another name (1)")  # fmt: skip
    add("-p", "--pretrained", type=int, choices=(0, 1), help="pretrained weights (the experiment's, else 1)")
    add("-m", "--message", default="", help="a note kept with the run")
    add("--experiment", choices=experiments(task), help="row of the results table; other flags override its settings")
    add("--data", type=Path, default=Path("Data/ISIC2017"), help="data folder (Data/ISIC2017)")
    add("--output", type=Path, default=MODEL, help="where run folders go (model)")
    add("--cache", type=Path, default=CACHE, help="where prepared images go (Data/cache)")
    add("--weights", type=Path, help="file with a state dict to start from, in place of the pretrained one")
    add("--size", type=at_least(32), nargs=2, metavar=("WIDTH", "HEIGHT"), help="input of the network, pixels")
    add("--epochs", type=at_least(1), help="of the whole schedule")
    add("--batch-size", type=at_least(1))
    add("--lr", type=positive, help="learning rate at the start")
    add("--patience", type=at_least(1), help=f"epochs without a better validation {score} after which it stops")
    add("--loss", choices=losses)
    add("--attention", choices=ATTENTION, help="of ARL networks: softmax over positions, over channels, or none")
    add("--alpha", choices=ALPHA, help="of ARL networks: learn, fixed at 0.001, or 0")
    add("--seed", type=at_least(0), default=0, help="of weights, order and augmentation (0)")
    add("--workers", type=at_least(0), help="loader processes (none on a CPU, one per core up to 8 beside a GPU)")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    add("--keep-copies", action="store_true", help="train on the known copies of validation and test images too")
    return parser


def at_least(minimum: int):
    """An argparse type: a whole number that is not below `minimum`."""

    def whole_number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        return int(text)

    return whole_number


def positive(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return float(text)


def choose_experiment(args: argparse.Namespace, **settings: Any) -> Experiment:
    """The row of the table that is meant, with what the command line (and `settings`, unless None) says otherwise.

    Without `--experiment` it is the row with the network, start, loss and attention that the flags name.
    """
    row = EXPERIMENTS[args.experiment] if args.experiment else None
    net = args.nets[args.net] if args.net else row.net if row else args.nets[args.default_net]
    pretrained = bool(args.pretrained) if args.pretrained is not None else row.pretrained if row else True
    if pretrained and net not in PRETRAINED:
        pretrained = False
        if not args.weights:
            log.info("%s has no pretrained weights: it starts from random ones", net)
    kind = {"loss": args.loss, "attention": args.attention, "alpha": args.alpha, **settings}
    kind = {name: value for name, value in kind.items() if value is not None}
    if not net.startswith("arl") and ({"attention", "alpha"} & kind.keys()):
        raise UserError(f"--attention and --alpha are for ARL networks, {net} has no ARL block")
    row = row or find_experiment(args.task, net, pretrained, **kind)
    scale = {name: getattr(args, name) for name in ("size", "epochs", "batch_size", "lr", "patience")}
    scale = {name: value for name, value in scale.items() if value is not None}
    return replace(row, **kind, **scale, net=net, pretrained=pretrained)


def create_model(args: argparse.Namespace, row: Experiment) -> tuple[nn.Module, LoadReport | None]:
    """The network with its weights pretrained as asked, and what was loaded.

    Pretrained weights are looked for among the runs (`--output`, where `cls_main.py` leaves arl18.pth) and in model/.
    """
    options = {"attention": row.attention, "alpha": row.alpha} if row.attention else {}
    model = nets.create_model(row.net, **options)
    report = None
    if args.weights:
        log.info("%s: if these weights have seen ISIC 2018 or later, they have seen most test images", args.weights)
    if args.weights or row.pretrained:
        path = args.weights or find_weights(PRETRAINED[row.net], args.output, MODEL)
        report = load_pretrained(model, row.net, path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s, %.1f M parameters, from %s", row.net, parameters / 1e6, report or "random weights")
    return model, report


def start_run(
    args: argparse.Namespace,
    row: Experiment,
    data: Data,
    weights: LoadReport | None,
    precision: Precision,
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """The run's folder, with its settings and what it is made with written to config.json."""
    settings = {**asdict(row), "seed": args.seed, "amp": args.amp, "weights": weights and asdict(weights)}
    del settings["published"]  # not ours, and nothing to hold a run to
    settings |= {f"{split}_images": digest(data[split]) for split in SPLITS if split != "test"}
    facts = {"data": str(args.data), "test_images": digest(data["test"]), "message": args.message, **(facts or {})}
    facts |= {"precision": str(precision), **environment(precision.device)}
    run = Run(args.output / row.name / f"run{args.id}", settings, facts, resume=bool(args.checked))
    log.info("%s: %s, %d×%d pixels, %s", run.folder, row.loss, *row.size, precision)
    return run
