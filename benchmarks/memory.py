"""Private memory of one epoch of the training loader, in a process that does nothing else.

    python -m benchmarks.memory STORE COUNT

Prints JSON: start and peak of the private (anonymous) memory in MB, from before the samples are made to the end of the
epoch, so without the cache's pages, which the system takes back when it likes; the peak of everything; images a second.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.timing import memory_mb, peak_private
from utils.data.cache import ImageCache
from utils.data.isic import Sample
from utils.data.loader import train_loader
from utils.data.transforms import PatchTransforms

BATCH_SIZE = 32


def make_samples(count: int) -> Sequence[Sample]:
    """`count` samples, each with an id and a path, as a split of that size has."""
    names = (f"ISIC_{index:07}" for index in range(count))
    return tuple(Sample(name, Path("images") / f"{name}.jpg", None, 0) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="file of a prepared cache of images without masks")
    parser.add_argument("count", type=int, help="images in it")
    args = parser.parse_args()
    before, grown = memory_mb("RssAnon"), {}
    with peak_private(grown):
        cache = ImageCache(make_samples(args.count), args.cache)
        _, height, width, _ = cache.pixels().shape
        loader = train_loader(cache, PatchTransforms((width, height)), BATCH_SIZE, 0, torch.device("cpu"), workers=0)
        start = time.perf_counter()
        for _ in loader:
            pass
        seconds = time.perf_counter() - start
    peak = before + grown["private_mb"]
    report = {"images": args.count, "private_mb": peak, "private_mb_before": before, "all_mb": memory_mb("VmHWM")}
    print(json.dumps(report | {"images_per_second": len(loader) * BATCH_SIZE / seconds}))


if __name__ == "__main__":
    main()
