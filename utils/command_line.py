"""The flags of seg_main.py and cls_main.py, and the config that they describe. Imports nothing that takes time."""

import argparse
import math
from collections.abc import Collection
from functools import partial
from pathlib import Path

import nets
from utils.config import CACHE, DEFAULT_NET, DEFAULTS, MODEL, Config, configure, experiments

NETS = {  # by what --net calls them
    "segmentation": {
        "dense": "dense_unet", "res": "res_unet", "unet": "unet", "arl": "arl_unet", "mobilenet": "mobilenet_unet",
        "mobile_sam": "mobile_sam_unet",
    },
    "classification": {net: net for net in nets.CLASSIFIERS},
}  # fmt: skip
TIMM = {"segmentation": "timm_unet/", "classification": "timm/"}  # what --net calls timm/, with a name of timm's
LOSSES = {"segmentation": ("dice_ce", "focal", "dice_focal", "ce"), "classification": ("focal", "ce")}
SCRIPTS = {"segmentation": "seg_main.py", "classification": "cls_main.py"}
SCORES = {"segmentation": "Jaccard", "classification": "AUC(melanoma) + AUC(seborrheic keratosis)"}
AMP = ("auto", "off", "bf16", "fp16")


def make_parser(task: str, doc: str) -> argparse.ArgumentParser:
    """The flags that both tasks have; None means: as the experiment's row has it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(task=task)
    default = next(flag for flag, net in NETS[task].items() if net == DEFAULT_NET[task])
    add = parser.add_argument
    add("-i", "--id", type=at_least(0), default=0, help="run number (0)")
    add("-n", "--net", type=partial(_network, task), help=f"network: {', '.join(NETS[task])}, or timm/NAME, any of "
        f"timm's that takes images of any size (the experiment's, else {default})")  # fmt: skip
    add("-c", "--checked", type=int, choices=(0, 1), default=1, help="1: resume this run where it stopped, or start "
        "where there is none; 0: start afresh, the old run is kept under another name (1)")  # fmt: skip
    add("-p", "--pretrained", type=int, choices=(0, 1), help="pretrained weights (the experiment's, else 1)")
    add("-m", "--message", default="", help="a note kept with the run")
    add("--experiment", type=partial(_meant, task, "--experiment", {each: experiments(each) for each in NETS}),
        choices=experiments(task), help="row of the results table; other flags change its settings")  # fmt: skip
    add("--data", type=Path, default=Config.data, metavar="DIR", help="data folder (Data/ISIC2017)")
    add("--output", type=Path, default=MODEL, metavar="DIR", help="where run folders go (model)")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="where prepared images go (Data/cache)")
    add("--weights", type=Path, metavar="FILE", help="file to start from in place of the pretrained weights")
    add("--extra", type=Path, nargs="+", default=(), metavar="DIR", help="train on these images too: HAM10000, ISIC "
        "2016 or 2018 in their layouts, or a folder of your own")  # fmt: skip
    add("--extra-share", type=_share, default=Config.extra_share, metavar="SHARE", help="of each batch, that --extra "
        "has (0.5)")  # fmt: skip
    add("--split", type=_share, nargs=3, metavar=("TRAIN", "VALIDATION", "TEST"), help="of a folder of your own: "
        "shares of its images, drawn by class and group (0.8 0.1 0.1)")  # fmt: skip
    add("--fold", type=_fold, metavar="K/N", help="of a folder of your own: test on the Kth of N parts, validate "
        "on the next; the run's number is K")  # fmt: skip
    add("--split-seed", type=at_least(0), default=0, help="draws another split or other folds (0)")
    add("--keep-copies", action="store_true", help="train on copies of validation and test images too")
    _add_settings(parser, task)
    _add_computation(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser, task: str) -> None:
    row, add = DEFAULTS[task], parser.add_argument
    add("--size", type=at_least(32), nargs=2, metavar=("WIDTH", "HEIGHT"),
        help="input of the network, pixels ({} {})".format(*row.size))  # fmt: skip
    add("--epochs", type=at_least(1), help=f"number of epochs ({row.epochs})")
    add("--batch-size", type=at_least(1), help=f"images a step ({row.batch_size})")
    add("--lr", type=positive, help=f"learning rate at the start ({row.lr:g})")
    add("--patience", type=at_least(1), help=f"epochs without a better validation {SCORES[task]} after which it stops "
        f"({row.patience})")  # fmt: skip
    add("--loss", choices=LOSSES[task], help=f"the experiment's, else {row.loss}")
    add("--attention", choices=nets.ATTENTION, help="of ARL networks: softmax over positions, over channels, or none")
    add("--alpha", choices=nets.ALPHA, help="of ARL networks, the weight of the attention: learn, fixed at 0.001, or 0")
    add("--flips", action=argparse.BooleanOptionalAction, help="scores average the four flips of each view (test-time "
        "augmentation)")  # fmt: skip
    add("--seed", type=at_least(0), default=0, help="random seed of weights, order and augmentation (0)")


def _add_computation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=at_least(0), help="DataLoader workers (none on a CPU, one per core up to 8 beside a GPU)")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    add("--accumulate", type=at_least(1), default=1, metavar="N", help="compute each batch in N micro-batches whose "
        "gradients add up: N times less memory (1)")  # fmt: skip
    add("--graphs", choices=("on", "off"), default="on", help="on a GPU: each step launched as one CUDA graph (on)")
    add("--sync-batchnorm", action="store_true", help="under torchrun on GPUs: batch norm over all processes' images")
    add("--deterministic", action="store_true", help="on GPUs: kernels that give the same bits each time; slower")
    add("--on-nan", choices=("stop", "skip"), default="stop", help="a gradient that is not finite stops the run, or "
        "its step is skipped and counted (stop)")  # fmt: skip


def to_config(args: argparse.Namespace) -> Config:
    """The config that parsed flags describe. UserError for flags that do not go together."""
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    pretrained, checked, graphs = (flags.pop(name) for name in ("pretrained", "checked", "graphs"))
    pretrained = None if pretrained is None else bool(pretrained)
    return configure(pretrained=pretrained, resume=bool(checked), graphs=graphs == "on", **flags)


def _meant(task: str, flag: str, names: dict[str, Collection[str]], text: str) -> str:
    """A name; the error of one that only the other script knows tells the right command."""
    (other,) = {*names} - {task}
    if text in names[other] and text not in names[task]:
        raise argparse.ArgumentTypeError(f"{text} is for {other}: python {SCRIPTS[other]} {flag} {text}")
    return text


def _network(task: str, text: str) -> str:
    if text.startswith("timm/"):
        return TIMM[task] + text.removeprefix("timm/")
    if _meant(task, "-n", NETS, text) not in NETS[task]:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(NETS[task])}, timm/NAME)")
    return NETS[task][text]


def at_least(minimum: int):
    """An argparse type: a whole number that is not below `minimum`, and that PyTorch can take."""

    def whole_number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        if int(text) >= 2**32:
            raise argparse.ArgumentTypeError(f"{text} is not below 2^32")
        return int(text)

    return whole_number


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return float(text)


def _fold(text: str) -> tuple[int, int]:
    fold, folds = map(int, text.split("/"))
    if not 1 <= fold <= folds or folds < 3:
        raise argparse.ArgumentTypeError(f"{text}: expected K/N with N of 3 or more, and K from 1 to N")
    return fold, folds


def positive(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return float(text)
