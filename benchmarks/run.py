#!/usr/bin/env python
"""Measure how fast training is on this machine, and beside what.

    python benchmarks/run.py --json results.json       everything; eight minutes on two cores
    python benchmarks/run.py --only step,networks      some parts
    python benchmarks/run.py --quick                   all parts, too small to mean anything

The first run draws the originals (a minute) into Data/benchmark, where the prepared caches are kept too.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a script's, Python puts only its own folder there

import cv2
import torch

from benchmarks.parts import PARTS
from benchmarks.timing import memory_mb, processor
from benchmarks.workload import CUDA, FOLDER, QUICK, Bench, Scale, draw_originals
from utils import UserError
from utils.data.images import image_size
from utils.data.isic import Sample, read_split
from utils.device import AMP, find_device, find_precision
from utils.files import written_whole
from utils.logger import run_script
from utils.model.run import environment

# ratio: (bar on a CPU, bar on a GPU, whether it is a least value); None: no bar there
BARS = {
    "end_to_end_over_step": (0.95, 0.95, True),
    "epoch_over_plain": (4, 20, True),
    "resnet50_over_matmul": (0.50, None, True),
    "arl50_over_resnet50": (1.10, 1.10, False),
    "memory_100k_over_1k": (1.05, 1.05, False),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--json", type=Path, help="file for everything that was measured")
    add("--only", default=",".join(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)}")
    add("--quick", action="store_true", help="tiny networks' inputs and few images: whether it runs, not how fast")
    add("--data", type=Path, help="challenge data to take the originals from (an embedded sample of its sizes)")
    add("--folder", type=Path, default=FOLDER, help="for originals and caches (Data/benchmark)")
    add("--device", help="cuda, cuda:1, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in PARTS]:
        parser.error(f"argument --only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return args


def choose_scale(args: argparse.Namespace, device: torch.device) -> Scale:
    return QUICK if args.quick else CUDA if device.type == "cuda" else Scale()


def find_originals(data: Path, count: int) -> list[Sample]:
    """`count` training images that have a mask and a label, some of them twice where there are fewer.

    UserError when there are none.
    """
    samples = [sample for sample in read_split(data, "train") if sample.mask and sample.label is not None]
    if not samples:
        raise UserError(f"{data}: no training image with mask and label; see python -m utils.data.check {data}")
    return list(islice(cycle(samples), count))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    precision = find_precision(find_device(args.device), args.amp)
    scale = choose_scale(args, precision.device)
    args.folder.mkdir(parents=True, exist_ok=True)
    samples = find_originals(args.data, scale.originals) if args.data else draw_originals(args.folder, scale)
    caches = args.folder / "caches"
    caches.mkdir(exist_ok=True)
    bench = Bench(scale, samples, precision, caches)
    facts = environment(precision.device) | {
        "command": " ".join(["python benchmarks/run.py", *(sys.argv[1:] if argv is None else argv)]),
        "processor": processor(),
        "precision": str(precision),
        "opencv_threads": cv2.getNumThreads(),
        "scale": vars(scale),
        "originals": {
            "source": str(args.data or "embedded sample"),
            "images": len(samples),
            "megapixels_mean": sum(math.prod(image_size(sample.image)) for sample in samples) / len(samples) / 1e6,
        },
    }
    print(f"{facts['device']} {facts['processor']}, {facts['cpu_threads']} threads, {precision}", flush=True)
    measured, seconds = {}, {}
    for name in args.only:
        torch.manual_seed(0)
        start = time.perf_counter()
        measured[name] = PARTS[name](bench)
        seconds[name] = time.perf_counter() - start
        print(f"\n{name}: {seconds[name]:.0f} s", flush=True)
        print_rates(measured[name])
    shares_of_matmul(measured)
    ratios = {name: bench.ratios.get(name) for name in BARS}
    print_ratios(ratios, precision.device)
    bars = {name: bar[precision.device.type == "cuda"] for name, bar in BARS.items()}
    report = {"ratios": ratios, "bars": bars, **measured, "seconds": seconds, "peak_mb": memory_mb("VmHWM"), **facts}
    if args.json:
        with written_whole(args.json) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    return report


def shares_of_matmul(measured: Mapping[str, Any]) -> None:
    """Adds to every rate of operations its share of that of matrix products, where that was measured as well."""
    if matmul := measured.get("networks", {}).get("matmul"):
        print(f"\nof the rate of matrix products, {matmul['gflops']:.0f} GFLOP/s {matmul['dtype']}:", flush=True)
        for name, row in rates(measured):
            if "gflops" in row:
                row["gflops_over_matmul"] = row["gflops"] / matmul["gflops"]
                print(f"  {name:<36} {row['gflops_over_matmul']:6.2f}", flush=True)


def rates(measured: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every measurement in a part's result, under the names that lead to it."""
    if "images_per_second" in measured:
        yield name, measured
    for key, value in measured.items():
        if isinstance(value, Mapping):
            yield from rates(value, f"{name} {key}".strip())


def print_rates(measured: Mapping[str, Any]) -> None:
    for name, row in rates(measured):
        columns = [f"{row['images_per_second']:10.2f} images/s"]
        for key, unit in (("gflops", "GFLOP/s"), ("peak_gpu_mb", "MB on the GPU"), ("private_mb", "MB private")):
            if key in row:
                columns.append(f"{row[key]:8.0f} {unit}")
        print(f"  {name:<26}", *columns, flush=True)
    for name, row in measured.items():
        if isinstance(row, Mapping) and "ratio" in row:
            print(f"  {name:<26} {row['ratio']['median']:10.3f} (median of rounds)")
        elif isinstance(row, Mapping) and "min_over_min" in row:
            print(
                f"  {name:<26} {row['median']:10.3f} (median of rounds), {row['min_over_min']:.3f} (least over least)"
            )
    if matmul := measured.get("matmul"):
        print(f"  {'matmul ' + matmul['dtype']:<26} {matmul['gflops']:10.0f} GFLOP/s at {matmul['size']} rows")


def print_ratios(ratios: Mapping[str, Any], device: torch.device) -> None:
    print("\nratio                            value   bar")
    for name, ratio in ratios.items():
        cpu, gpu, least = BARS[name]
        bar = gpu if device.type == "cuda" else cpu
        limit = "none" if bar is None else f"{'≥' if least else '≤'} {bar:.2f}"
        for row, value in ratio.items() if isinstance(ratio, Mapping) else [("", ratio)]:
            kept = ""
            if bar is not None and value is not None:
                kept = "kept" if (value >= bar if least else value <= bar) else "missed"
            shown = "–" if value is None else f"{value:.3f}"
            print(f"{name + ' ' + row:<30} {shown:>7}   {limit:<6} {kept}".rstrip())


if __name__ == "__main__":
    run_script(main)
