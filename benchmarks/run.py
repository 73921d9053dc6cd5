#!/usr/bin/env python
"""Measure how fast training is on this machine, beside what the machine reaches at all and beside plain code.

    python benchmarks/run.py --json                    everything: three minutes on two cores, two on a GPU
    python benchmarks/run.py --only decode networks    some parts
    python benchmarks/run.py --quick                   all parts, too small to mean anything

The first run draws the originals (half a minute more) into Data/benchmark. The JSON file is written after each part:
results/benchmarks/<device>.json, or where --json FILE says; on a GPU always.
"""

import argparse
import gc
import json
import math
import platform
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a script's, Python puts only its own folder there

import torch

from benchmarks import timing
from benchmarks.timing import Training, figure, ratio
from utils.command_line import AMP, at_least
from utils.config import CACHE, Config, configure
from utils.data.images import image_size
from utils.data.isic import Sample, read_split
from utils.data.synthetic import make_synthetic
from utils.device import Precision, find_device, find_precision
from utils.files import written_whole
from utils.logger import run_script
from utils.model.run import environment
from utils.tasks import TASKS

SEED = 3  # of the originals: the first 32 have 7.7 MP on average, ISIC's 7.3
EPOCH_ROWS = ("seg-2", "cls-1-1")
NAMED = "results/benchmarks/{}.json"
PLAIN_ROWS = ("cls-2-4", "cls-b1")  # the last is the smallest network: beside it the pipeline counts most


@dataclass(frozen=True)
class Scale:
    """How much is measured; the defaults are for a few CPU cores."""

    originals: int = 16  # every epoch of the plain pipeline reads them all
    original_size: tuple[int, int] = (3008, 2000)  # (width, height), near the mean of the challenge's photographs
    changed: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 16})  # in place of the rows' settings
    steps: int = 1  # of an epoch
    rounds: int = 3
    products: tuple[int, int] = (2048, 6)  # rows of two square matrices; how often they are multiplied in a round
    copied: int = 2**28  # bytes, more than a processor's cache holds


CUDA = Scale(originals=32, changed={}, steps=20, rounds=3, products=(8192, 50), copied=2**30)
QUICK = Scale(2, (192, 144), {"batch_size": 2, "size": (32, 32)}, rounds=1, products=(64, 2), copied=2**20)


class Bench:
    """What all parts share: originals (`samples`), where caches go (`folder`), `ratios` that the parts fill, and

    products: a burst of matrix products and its operations, by number type;
    machine: what it reaches at all, a second: "gflops_" + number type, "gb_copied_" + kind of device.
    """

    def __init__(self, scale: Scale, samples: Sequence[Sample], precision: Precision, folder: Path) -> None:
        self.scale, self.samples, self.precision, self.folder = scale, samples, precision, folder
        self.device, self.float32 = precision.device, Precision(precision.device, None)
        self.time = partial(timing.interleave, device=self.device, rounds=scale.rounds)
        self.products, self.machine, self.ratios = {}, {}, {}
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, in which cuDNN computes float32 convolutions
        for dtype in dict.fromkeys((torch.float32, precision.dtype or torch.float32)):
            name = type_name(dtype)
            multiply, operations = self.products[name] = timing.matrix_products(*scale.products, dtype, self.device)
            self.machine[f"gflops_{name}"] = operations / median(self.time({name: multiply})[name]) / 1e9
        for device in {torch.device("cpu"), self.device}:
            self.machine[f"gb_copied_{device.type}"] = timing.copy_rate(scale.copied, device) / 1e9

    def config(self, name: str) -> Config:
        """The row at this scale, from random weights: they cost the same."""
        return configure(name, **{"pretrained": False, "resume": False, "cache": self.folder, **self.scale.changed})

    def training(self, name: str, precision: Precision | None = None) -> Training:
        return Training(self.config(name), self.samples, precision or self.precision, self.scale.steps)

    def trained(self, config: Config, precision: Precision, seconds: Sequence[float], images: int) -> dict[str, Any]:
        """The figure of training on so many images; bounds: matrix products in that number type, copies."""
        name, (operations, values) = type_name(precision.dtype), timing.training_costs(config.net, config.size)
        said = {"net": config.net, "size": config.size, "batch_size": config.batch_size, "computed_in": name}
        limits = self.machine[f"gflops_{name}"], self.machine[f"gb_copied_{self.device.type}"]
        size = (precision.dtype or torch.float32).itemsize * values
        return said | figure(seconds, images, *limits, gflop_per_image=operations / 1e9, gb_per_image=size / 1e9)


def type_name(dtype: torch.dtype | None) -> str:
    return str(dtype or torch.float32).removeprefix("torch.")


def decode(bench: Bench) -> dict[str, Any]:
    """Originals into a cache that is not there yet, as at the start of a first run; bound: copying their pixels."""

    def prepare(config: Config) -> None:
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            TASKS[config.task](replace(config, cache=Path(folder))).prepare({"train": bench.samples})

    seconds = bench.time({name: partial(prepare, bench.config(name)) for name in EPOCH_ROWS})
    count = len(bench.samples)
    size = 2 * 3 * sum(math.prod(image_size(sample.image)) for sample in bench.samples) / count  # read and written
    limit = bench.machine["gb_copied_cpu"]
    return {name: figure(values, count, limit, gb_per_image=size / 1e9) for name, values in seconds.items()}


def networks(bench: Bench) -> dict[str, Any]:
    """Steps of ResNet-50, ARL-50 (in float32 too) and torchvision's ResNet-50, in turn with matrix products."""
    rows = {"resnet50": "cls-1-2", "arl50": "cls-1-1"}
    ours = {name: bench.training(row) for name, row in rows.items()}
    if bench.precision != bench.float32:
        ours |= {f"{name}_float32": bench.training(row, bench.float32) for name, row in rows.items()}
    config, images = ours["resnet50"].config, ours["resnet50"].images
    multiply, operations = bench.products[type_name(bench.precision.dtype)]
    reference = timing.torchvision_epoch(config, bench.scale.steps, bench.device)
    steps = {name: training.steps for name, training in ours.items()}
    seconds = bench.time({"matmul": multiply, "torchvision": reference, **steps})
    result = {name: bench.trained(each.config, each.precision, seconds[name], images) for name, each in ours.items()}
    result["torchvision_resnet50"] = bench.trained(config, bench.float32, seconds["torchvision"], images)
    bursts = images * timing.training_costs(config.net, config.size)[0] / operations  # of the steps' operations
    ratios = {
        "resnet50_over_matmul": ratio([bursts * taken for taken in seconds["matmul"]], seconds["resnet50"]),
        "arl50_over_resnet50": ratio(seconds["arl50"], seconds["resnet50"]),
        "resnet50_over_torchvision": ratio(seconds["torchvision"], seconds["resnet50"]),
    }
    bench.ratios |= {name: each["median"] for name, each in ratios.items()}
    if bench.precision != bench.float32:
        result["arl50_over_resnet50_float32"] = ratio(seconds["arl50_float32"], seconds["resnet50_float32"])
    return result | ratios


def end_to_end(bench: Bench) -> dict[str, Any]:
    """Epochs over the real loader, in turn with it alone (bound: copying what it reads and gives) and as many steps."""
    result, bench.ratios["end_to_end_over_step"] = {}, {}
    for name in EPOCH_ROWS:
        training = bench.training(name)
        loader, images, config = training.loader, training.images, training.config
        load = partial(deque, loader, maxlen=0)
        seconds = bench.time({"loader": load, "end_to_end": training.epoch, "step": training.steps})
        size = loader.dataset.cache.path.stat().st_size / images + 3 * math.prod(config.size)
        loaded = figure(seconds.pop("loader"), images, bench.machine["gb_copied_cpu"], gb_per_image=size / 1e9)
        trained = {kind: bench.trained(config, bench.precision, taken, images) for kind, taken in seconds.items()}
        share = ratio(seconds["step"], seconds["end_to_end"])
        result[name] = {"loader": loaded, **trained, "ratio": share, "workers": loader.num_workers}
        bench.ratios["end_to_end_over_step"][name] = share["median"]
    return result


def plain(bench: Bench) -> dict[str, Any]:
    """Epochs of ours, its cache there, in turn with those of the earlier project's pipeline; images/s over images/s."""
    result, count = {}, len(bench.samples)
    for name in PLAIN_ROWS:
        ours, config = bench.training(name), bench.config(name)
        other = timing.earlier_epoch(config, bench.samples, bench.device)
        seconds = bench.time({"other": other, "ours": ours.epoch})
        each = [taken / count for taken in seconds["other"]], [taken / ours.images for taken in seconds["ours"]]
        result[name] = {
            "other": bench.trained(config, bench.float32, seconds["other"], count),
            "ours": bench.trained(config, bench.precision, seconds["ours"], ours.images),
            "ratio": ratio(*each),
        }
    bench.ratios["epoch_over_plain"] = result[PLAIN_ROWS[-1]]["ratio"]["median"]
    return result


PARTS = {part.__name__: part for part in (decode, networks, end_to_end, plain)}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--json", nargs="?", const=NAMED, metavar="FILE", help="for everything that was measured")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--rounds", type=at_least(1), help="how often all take turns (3): more for a ratio that scatters less")
    add("--quick", action="store_true", help="tiny networks' inputs and few images: whether it runs, not how fast")
    add("--folder", type=Path, default=CACHE.with_name("benchmark"), help="for the originals (Data/benchmark)")
    add("--device", help="cuda, cuda:1, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    precision = find_precision(find_device(args.device), args.amp)
    scale = QUICK if args.quick else CUDA if precision.device.type == "cuda" else Scale()
    scale = replace(scale, rounds=args.rounds or scale.rounds)
    originals = args.folder / f"originals_{'quick' if args.quick else 'isic'}_{scale.originals}"
    make_synthetic(originals, {"train": scale.originals}, scale.original_size, SEED)
    samples = read_split(originals, "train", leave_out_copies=False)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="caches-") as folder:
        bench = Bench(scale, samples, precision, Path(folder))
        report = {"ratios": bench.ratios, "machine": bench.machine, "seconds": {}, "scale": vars(scale)}
        report |= environment(precision.device) | {"processor": processor(), "precision": str(precision)}
        print(*(f"{name}: {report[name]}" for name in ("device", "processor", "precision", "machine")), sep="\n")
        cuda = precision.device.type == "cuda"
        path = args.json or (NAMED if cuda and not args.quick else "")
        path = Path(path.format(re.sub(r"\W+", "-", report["device" if cuda else "processor"].strip()).lower()))
        for name in args.only:
            start = perf_counter()
            report[name] = PARTS[name](bench)
            report["seconds"][name] = perf_counter() - start
            print(*lines(report[name], name), sep="\n", flush=True)
            if path.name:
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as file:
                    file.write((json.dumps(report, indent=2) + "\n").encode())
            gc.collect()  # a loader's processes end with it
    return report


def lines(measured: Mapping[str, Any], name: str) -> Iterator[str]:
    """One for every figure and every ratio in a part's result."""
    if "images_per_second" in measured:
        yield f"{name:<34} {measured['images_per_second']:9.2f} images/s, {measured['share_of_bound']:.3f} of the bound"
    elif "median" in measured:
        yield f"{name:<34} {measured['median']:9.3f} ({measured['least']:.3f} to {measured['most']:.3f})"
    else:
        for key, value in measured.items():
            if isinstance(value, Mapping):
                yield from lines(value, f"{name} {key}")


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    run_script(main)
