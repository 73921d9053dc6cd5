#!/usr/bin/env python
"""Train a skin-lesion classifier on ISIC 2017 and score it.

    python cls_main.py --experiment cls-2-4             a row of the results table
    python cls_main.py -n arl18 -p 0 --size 128 128 --epochs 30 --lr 1e-3
    nohup python cls_main.py -i 1 -n resnet50 &         in the background; the same command continues it

What a run keeps lies in model/<experiment>/run<id>/. A run of ARL-18 leaves its weights beside it, in model/arl18.pth,
from where seg_main.py takes them for the ARL-UNet's encoder.
"""

import argparse

from utils.command_line import make_parser, positive, to_config
from utils.config import Config
from utils.logger import run_script


def parse(argv: list[str] | None = None) -> Config:
    parser = make_parser("classification", __doc__)
    add = parser.add_argument
    add("--class-weights", nargs="+", metavar="W", help="a number for each class (melanoma, seborrheic "
        "keratosis, nevus), or balanced: each class the same share of the loss")  # fmt: skip
    add("--recipe", choices=("repo", "paper"), default="repo", help="repo: AdamW, half cosine; paper: SGD, learning "
        "rate 0.01 (pretrained 1e-4), halved every 30 epochs")  # fmt: skip
    add("--train-views", choices=("patches", "frame"), help="training crops: patches of four scales from the "
        "middle, or crops of half to all of the frame (the experiment's, else patches)")  # fmt: skip
    add("--views", choices=("9", "1"), help="what scores average over: nine fixed patches, or the whole frame (9; "
        "1 with --train-views frame)")  # fmt: skip
    add("--others", metavar="CLASS", help="what other diagnoses of --extra count as (they are left out)")
    add("--require-all", action="store_true", help="stop when a labelled image is missing")
    args = parser.parse_args(argv)
    if args.class_weights == ["balanced"]:
        args.class_weights = "balanced"  # numbers once the labels are read
    elif args.class_weights:
        try:
            args.class_weights = tuple(map(positive, args.class_weights))
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"argument --class-weights: {error}")
    return to_config(args)


def main(argv: list[str] | None = None):
    """The run's folder, `utils.model.run.Run`."""
    config = parse(argv)
    from utils.tasks import train  # PyTorch takes seconds to import: after --help and mistyped flags

    return train(config)


if __name__ == "__main__":
    run_script(main)
