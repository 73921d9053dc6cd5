"""What the command lines of seg_main.py and cls_main.py share: flags, the row that is meant, the run they describe."""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import nets
from nets.arl import ALPHA, ATTENTION
from nets.fast import kernel
from utils import UserError, distributed
from utils.config import DEFAULTS, EXPERIMENTS, Experiment, experiments, find_experiment
from utils.data.cache import CACHE, ImageCache
from utils.data.isic import SPLITS
from utils.data.loader import to_input, train_loader
from utils.data.splits import Data
from utils.data.transforms import Transforms
from utils.device import AMP, Precision, compile_network, recompute_activations, use_deterministic_kernels
from utils.logger import log
from utils.model.run import Run, digest, environment, read_config
from utils.model.trainer import ON_NAN, Schedule, Trainer
from utils.model.weights import MODEL, PRETRAINED, find_weights, load_pretrained

SCALE = ("size", "epochs", "batch_size", "lr", "patience", "views", "flips")  # flags that leave a row what it is


@dataclass(frozen=True)
class Task:
    """What sets the two command lines apart.

    Attributes:
        name: "segmentation" or "classification".
        nets: networks by the name that `--net` takes.
        default: the one of them without `--net` and `--experiment`.
        losses: names for `utils.loss.create_loss`.
        score: what the best epoch is chosen by.
    """

    name: str
    nets: Mapping[str, str]
    default: str
    losses: Sequence[str]
    score: str


def make_parser(task: Task, doc: str) -> argparse.ArgumentParser:
    """The flags that mean the same for both tasks; what is None there is decided by the experiment's row."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-i", "--id", type=at_least(0), default=0, help="run number (0)")
    add("-n", "--net", choices=task.nets, help=f"network (the experiment's, else {task.default})")
    add("-c", "--checked", type=int, choices=(0, 1), default=1, help="1: continue this run where it stopped, or start "
        "where there is none; 0: start afresh, the old run is kept under another name (1)")  # fmt: skip
    add("-p", "--pretrained", type=int, choices=(0, 1), help="pretrained weights (the experiment's, else 1)")
    add("-m", "--message", default="", help="a note kept with the run")
    add(
        "--experiment",
        choices=experiments(task.name),
        help="row of the results table; other flags override its settings",
    )
    add("--data", type=Path, default=Path("Data/ISIC2017"), metavar="DIR", help="data folder (Data/ISIC2017)")
    add("--output", type=Path, default=MODEL, metavar="DIR", help="where run folders go (model)")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="where prepared images go (Data/cache)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="file with a state dict to start from, in place of the pretrained one",
    )
    row = DEFAULTS[task.name]
    add("--size", type=at_least(32), nargs=2, metavar=("WIDTH", "HEIGHT"),
        help="input of the network, pixels ({} {})".format(*row.size))  # fmt: skip
    add("--epochs", type=at_least(1), help=f"of the whole schedule ({row.epochs})")
    add("--batch-size", type=at_least(1), help=f"images a step ({row.batch_size})")
    add("--lr", type=positive, help=f"learning rate at the start ({row.lr:g})")
    add("--patience", type=at_least(1), help=f"epochs without a better validation {task.score} after which it stops "
        f"({row.patience})")  # fmt: skip
    add("--loss", choices=task.losses, help=f"the experiment's, else {row.loss}")
    add("--attention", choices=ATTENTION, help="of ARL networks: softmax over positions, over channels, or none")
    add("--alpha", choices=ALPHA, help="of ARL networks: learn, fixed at 0.001, or 0")
    add(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="test-time augmentation: average scores over the four flips of each view",
    )
    add("--seed", type=at_least(0), default=0, help="of weights, order and augmentation (0)")
    add("--workers", type=at_least(0), help="loader processes (none on a CPU, one per core up to 8 beside a GPU)")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    add("--accumulate", type=at_least(1), default=1, metavar="N", help="compute each batch in N pieces whose gradients "
        "add up: N times less memory (1)")  # fmt: skip
    add("--recompute", action="store_true", help="keep few activations for the backward pass and compute the others "
        "again: less memory, a third more time")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile: minutes at the start; gains on some GPUs")
    add("--sync-batchnorm", action="store_true", help="under torchrun on GPUs: batch norm over all processes' images")
    add("--deterministic", action="store_true", help="on GPUs: kernels that give the same bits each time; slower")
    add("--on-nan", choices=ON_NAN, default="stop", help="a gradient that is not finite stops the run, or its step is "
        "skipped and counted (stop)")  # fmt: skip
    add("--keep-copies", action="store_true", help="train on copies of validation and test images too, the known "
        "and the found")  # fmt: skip
    return parser


def at_least(minimum: int):
    """An argparse type: a whole number that is not below `minimum`, and that PyTorch can take."""

    def whole_number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        if int(text) >= 2**32:
            raise argparse.ArgumentTypeError(f"{text} is not below 2^32")
        return int(text)

    return whole_number


def positive(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return float(text)


def choose_experiment(args: argparse.Namespace, task: Task, **settings: Any) -> Experiment:
    """The row of the table that is meant, with what the command line (and `settings`, unless None) says otherwise.

    Without `--experiment` it is the row with the network, start, loss and attention that the flags name, or one of
    their own; so is that of `--experiment` with another network.
    """
    row = EXPERIMENTS[args.experiment] if args.experiment else None
    net = task.nets[args.net] if args.net else row.net if row else task.nets[task.default]
    pretrained = bool(args.pretrained) if args.pretrained is not None else row.pretrained if row else True
    if args.weights and args.pretrained == 0:
        raise UserError("--weights FILE starts from weights, -p 0 does not: leave one of them away")
    if args.weights:
        pretrained = True
    elif pretrained and net not in PRETRAINED:
        pretrained = False
        log.info("%s has no pretrained weights: it starts from random ones", net)
    kind = {"loss": args.loss, "attention": args.attention, "alpha": args.alpha, **settings}
    kind = {name: value for name, value in kind.items() if value is not None}
    if net not in nets.ATTENTIVE and ({"attention", "alpha"} & kind.keys()):
        raise UserError(f"--attention and --alpha are for ARL networks, {net} has no ARL block")
    if kind.get("attention") == "none":
        if "alpha" in kind:
            raise UserError("--attention none leaves no α: leave --alpha away")
        kind["alpha"] = None
    if row is None or net != row.net:
        row = find_experiment(task.name, net, pretrained, base=row, **kind)
    scale = {name: getattr(args, name, None) for name in SCALE}
    scale = {name: value for name, value in scale.items() if value is not None}
    return replace(row, **kind, **scale, pretrained=pretrained)


def build_model(args: argparse.Namespace, row: Experiment) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network with its weights pretrained as asked, and what was loaded (`LoadReport`).

    Pretrained weights are looked for among the runs (`--output`, where `cls_main.py` leaves arl18.pth) and in model/.
    A run that will be continued needs them no more: its checkpoint replaces them.
    """
    model = nets.create_model(row.net, attention=row.attention, alpha=row.alpha)
    folder = run_folder(args, row)
    weights, origin = None, "random weights"
    if args.weights:
        log.info("%s: if these weights have seen ISIC 2018 or later, they have seen most test images", args.weights)
    if args.checked and not args.weights and (folder / "last.pth").is_file():
        weights, origin = read_config(folder)["settings"].get("weights"), str(folder)
    elif args.weights or row.pretrained:
        path = args.weights or find_weights(PRETRAINED[row.net], args.output, MODEL)
        origin = load_pretrained(model, row.net, path)
        weights = asdict(origin)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s, %.1f M parameters, from %s", row.net, parameters / 1e6, origin)
    return model, weights


def build_training(
    args: argparse.Namespace,
    row: Experiment,
    model: nn.Module,
    criterion: nn.Module,
    cache: ImageCache,
    views: Transforms,
    precision: Precision,
) -> tuple[Trainer, DataLoader]:
    """What `fit` takes: the model's trainer as the flags want it, and the loader of the training images.

    UserError when the batch cannot be shared out, or a flag needs another device.
    """
    device = precision.device
    if args.deterministic:
        use_deterministic_kernels()
    if args.sync_batchnorm:
        if device.type != "cuda":
            raise UserError(f"--sync-batchnorm needs CUDA devices, not {device.type}: leave it away")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.recompute:
        log.info("recomputing the activations of %d blocks", recompute_activations(model))
    loader = train_loader(cache, views, row.batch_size, args.seed, device, args.workers, args.accumulate)
    model.to(device, memory_format=torch.channels_last)
    if args.compile:
        images = row.batch_size // (args.accumulate * distributed.processes())
        start = time.perf_counter()
        example = torch.zeros((images, row.size[1], row.size[0], 3), dtype=torch.uint8)
        if compile_network(model, to_input(example, device), precision):
            log.info("compiled in %.0f s", time.perf_counter() - start)
    schedule = Schedule(row.epochs, row.lr, row.weight_decay, row.patience, row.optimizer)
    return Trainer(model, criterion, schedule, loader.batch_sampler.steps, precision, args.on_nan), loader


def run_folder(args: argparse.Namespace, row: Experiment) -> Path:
    return args.output / row.name / f"run{args.id}"


def start_run(
    args: argparse.Namespace,
    row: Experiment,
    data: Data,
    weights: Mapping[str, Any] | None,
    precision: Precision,
    caches: Mapping[str, ImageCache],
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """The run's folder, with its settings and what it is made with written to config.json."""
    stored = caches["train"]
    settings = {**asdict(row), "seed": args.seed, "amp": args.amp, "weights": weights, "stored_size": stored.size}
    settings |= {"stored_center": stored.center} if stored.center else {}
    for name in ("published", "views", "flips"):  # not ours; and how it is scored, which metrics.json tells
        del settings[name]
    settings |= {f"{split}_images": digest(data[split]) for split in SPLITS if split != "test"}
    facts = {"data": str(args.data), "test_images": digest(data["test"]), "message": args.message, **(facts or {})}
    facts |= {"prepared": {split: caches[split].path.stem for split in SPLITS if split in caches}}
    if row.net in nets.ATTENTIVE and precision == Precision(torch.device("cpu"), torch.bfloat16):
        facts |= {"arl_kernel": kernel.load() is not None}
    facts |= {"precision": str(precision), "processes": distributed.processes(), "accumulate": args.accumulate}
    facts |= environment(precision.device)
    run = Run(run_folder(args, row), settings, facts, resume=bool(args.checked))
    together = f", {distributed.processes()} processes" if distributed.processes() > 1 else ""
    log.info("%s: %s, %d×%d pixels, %s%s", run.folder, row.loss, *row.size, precision, together)
    return run
