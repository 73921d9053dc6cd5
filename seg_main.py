#!/usr/bin/env python
"""Train a lesion segmenter on ISIC 2017 and score it.

    python seg_main.py --experiment seg-2              a row of the results table
    python seg_main.py -n res -p 0 --size 128 128 --epochs 10 --lr 1e-3
    nohup python seg_main.py -i 1 -n unet -p 0 &       in the background; the same command continues it
    torchrun --nproc-per-node 2 seg_main.py            each batch shared by two GPUs

What a run keeps lies in model/<experiment>/run<id>/.
"""

from utils.command_line import make_parser, to_config
from utils.config import Config
from utils.logger import run_script


def parse(argv: list[str] | None = None) -> Config:
    return to_config(make_parser("segmentation", __doc__).parse_args(argv))


def main(argv: list[str] | None = None):
    """The run's folder, `utils.model.run.Run`."""
    config = parse(argv)
    from utils.tasks import train  # PyTorch takes seconds to import: after --help and mistyped flags

    return train(config)


if __name__ == "__main__":
    run_script(main)
