"""How cost grows: with the size of the images, with how many there are or are scored, and with loader processes."""

import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import peak_private, rate, timed
from benchmarks.workload import Bench, ImageCache, described, load_all, prepare, repeat_rows, row_flops, row_model, tidy
from utils.inference.segmentation import predict_lesions, score

ROW = "cls-2-4"  # whose image size is varied
SCORED_ROW = "seg-4"


def image_size(bench: Bench) -> dict[str, Any]:
    """The loader and the step at several sizes of the network's input."""
    result = {}
    for side in bench.scale.sizes:
        row = bench.scale.row(ROW, size=(side, side))
        batches, training = bench.loader(row), bench.training(row)
        actions = {"loader": partial(load_all, batches), "step": training.steps}
        seconds = bench.time(actions, [actions["loader"], training.step], 3)
        result[str(side)] = {
            "loader": rate(seconds["loader"], len(batches) * row.batch_size),
            "step": rate(seconds["step"], training.images, row_flops(row) * bench.scale.steps),
        }
        del training, batches
        tidy()
    return result


def image_count(bench: Bench) -> dict[str, Any]:
    """Memory and speed of one epoch of the loader over few and many small images, each in a process of its own."""
    side, result = bench.scale.count_size, {}
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        few = prepare(bench.samples, (side, side), Path(folder), masks=False)
        for count in bench.scale.counts:
            result[str(count)] = _memory_of_epoch(repeat_rows(few, count, Path(folder)))
    first = next(iter(result.values()))
    for measured in result.values():
        measured["memory_over_first"] = measured["private_mb"] / first["private_mb"]
    bench.ratios["memory_100k_over_1k"] = result[str(bench.scale.counts[-1])]["memory_over_first"]
    return {"side": side, **result}


def _memory_of_epoch(cache: ImageCache) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", cache.path, str(len(cache.samples))]
    root = Path(__file__).parents[1]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root).stdout)


def evaluation(bench: Bench) -> dict[str, Any]:
    """Whole images through a network and scored against full-size masks, few and many; of few the network alone too.

    The memory is what comes on top of the network and the first batch.
    """
    row, result = bench.scale.row(SCORED_ROW), {}
    model = row_model(row).to(bench.device, memory_format=torch.channels_last)
    few = prepare(bench.samples, row.size, bench.folder, masks=False)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        for count in bench.scale.scored:
            many = repeat_rows(few, count, Path(folder))
            # Counts are kept by id.
            samples = tuple(replace(sample, id=f"ISIC_{index:07}") for index, sample in enumerate(many.samples))
            cache, measured = ImageCache(samples, many.path), {}
            if count == bench.scale.scored[0]:
                network = partial(_pass_over, predict_lesions(model, cache, bench.precision, row.batch_size))
                measured["network"] = rate([timed(network, bench.device)], count)
            scoring = partial(score, model, cache, bench.precision, row.batch_size)
            measured["scored"] = {}
            with peak_private(measured["scored"]):
                seconds = timed(scoring, bench.device)
            measured["scored"] |= rate([seconds], count)
            result[str(count)] = measured
    return described(row) | result


def _pass_over(items: Iterable) -> None:
    deque(items, maxlen=0)


def workers(bench: Bench) -> dict[str, Any]:
    """The loader alone and whole epochs with 0, 1, 2 … loader processes."""
    result = {}
    for name in bench.scale.worker_rows:
        row, result[name] = bench.scale.row(name), {}
        for count in bench.scale.workers:
            batches, training = bench.loader(row, count), bench.training(row, workers=count)
            actions = {"loader": partial(load_all, batches), "end_to_end": training.epoch}
            seconds = bench.time(actions, [actions["loader"], training.warm_up], 2)
            images = {"loader": len(batches) * row.batch_size, "end_to_end": training.images}
            result[name][str(count)] = {key: rate(values, images[key]) for key, values in seconds.items()}
            del training, batches
            tidy()
    return result
