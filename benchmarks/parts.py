"""The parts of the benchmark: each adds the ratios it is good for and returns plain values for the JSON."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.growth import evaluation, image_count, image_size, workers
from benchmarks.plain import Plain, TorchvisionResNet50, plain_training, smp_training, smp_unet
from benchmarks.timing import Matmul, compare, rate, training_flops
from benchmarks.workload import (
    Bench,
    Training,
    described,
    load_all,
    prepare,
    row_flops,
    row_model,
    row_shape,
    row_views,
    store_sizes,
    tidy,
)

EPOCH_ROWS = ("seg-2", "cls-1-1")  # whose epoch is held beside its bare steps
PLAIN_ROWS = ("seg-2", "cls-2-4", "cls-b1")
PIPELINE_ROW = "cls-b1"  # the smallest network: beside it the pipeline counts most. With the others the steps decide
SMP_ENCODERS = {"seg-4": "resnet18", "seg-2": "densenet121"}


def decode(bench: Bench) -> dict[str, Any]:
    """Originals into a cache that is not there yet, all at once as at the start of a first run."""
    result = {}
    for name in EPOCH_ROWS:
        row = bench.scale.row(name)
        (size, center), masks = store_sizes(row, bench.samples), row.task == "segmentation"

        def once(size: tuple[int, int] = size, masks: bool = masks, center: tuple[int, int] | None = center) -> None:
            with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
                prepare(bench.samples, size, Path(folder), masks=masks, center=center)

        seconds = bench.time({"prepare": once}, [once])["prepare"]
        result[name] = {"stored_size": size, "center": center, "masks": masks, **rate(seconds, len(bench.samples))}
    return result


def loader(bench: Bench) -> dict[str, Any]:
    """Training batches that nobody trains on, with as many workers as training has."""
    result = {}
    for name in (*EPOCH_ROWS, *bench.scale.step_rows):
        row = bench.scale.row(name)
        batches = bench.loader(row)
        load = partial(load_all, batches)
        seconds = bench.time({"loader": load}, [load])["loader"]
        result[name] = {"workers": batches.num_workers, **rate(seconds, len(batches) * row.batch_size)}
    return result


def step(bench: Bench) -> dict[str, Any]:
    """Training steps on a batch that is already there: what an epoch cannot exceed."""
    result = {}
    for name in bench.scale.step_rows:
        row, result[name] = bench.scale.row(name), {}
        training = bench.training(row)
        with bench.peak_memory(result[name]):
            seconds = bench.time({"steps": training.steps}, [training.step])["steps"]
        result[name] |= described(row) | rate(seconds, training.images, row_flops(row) * bench.scale.steps)
        del training
        tidy()
    return result


def end_to_end(bench: Bench) -> dict[str, Any]:
    """Epochs over the real loader, in turn with as many bare steps."""
    result, bench.ratios["end_to_end_over_step"], steps = {}, {}, bench.scale.epoch_steps
    for name in EPOCH_ROWS:
        row, result[name] = bench.scale.row(name), {}
        training = bench.training(row, steps)
        with bench.peak_memory(result[name]):
            seconds = bench.time({"end_to_end": training.epoch, "step": training.steps}, [training.warm_up], 3)
        flops = row_flops(row) * steps
        result[name] |= described(row) | {"workers": training.loader.num_workers, "steps": steps}
        result[name] |= {key: rate(values, training.images, flops) for key, values in seconds.items()}
        result[name]["ratio"] = compare(seconds["step"], seconds["end_to_end"])
        bench.ratios["end_to_end_over_step"][name] = result[name]["ratio"]["median"]
        del training
        tidy()
    return result


def networks(bench: Bench) -> dict[str, Any]:
    """ResNet-50 beside the machine's matrix products, ARL-50 and torchvision's ResNet-50, step by step in turn."""
    rows = {"resnet50": bench.scale.row("cls-1-2"), "arl50": bench.scale.row("cls-1-1")}
    dtype = bench.precision.dtype or torch.float32
    matmul = Matmul(bench.scale.matmul, dtype, bench.device, bench.scale.burst)
    trainings, count = {name: bench.training(row) for name, row in rows.items()}, bench.scale.steps
    batch_size, size = rows["resnet50"].batch_size, rows["resnet50"].size
    reference = TorchvisionResNet50(batch_size, size, bench.device)
    warm_up = [training.step for training in trainings.values()]
    steps = {name: training.steps for name, training in trainings.items()}
    seconds = bench.time({"matmul": matmul.burst, **steps}, warm_up)
    torchvision = partial(_repeat, reference.step, count)
    seconds |= bench.time({"torchvision": torchvision, "ours": steps["resnet50"]}, [reference.step], at_most=3)
    flops = {name: row_flops(row) * count for name, row in rows.items()}
    achieved = [flops["resnet50"] / taken / 1e9 for taken in seconds["resnet50"]]
    shares = compare(achieved, [matmul.rate(taken) for taken in seconds["matmul"]])
    arl, faster = compare(seconds["arl50"], seconds["resnet50"]), compare(seconds["torchvision"], seconds["ours"])
    bench.ratios |= {"resnet50_over_matmul": shares["median"], "arl50_over_resnet50": arl["median"]}
    del trainings, reference
    tidy()
    return {
        "matmul": {
            "dtype": str(dtype).removeprefix("torch."),
            "size": matmul.size,
            "gflops": float(np.median([matmul.rate(taken) for taken in seconds["matmul"]])),
            "tried": {str(rows): value for rows, value in matmul.tried.items()},
        },
        **{name: described(row) | rate(seconds[name], batch_size * count, flops[name]) for name, row in rows.items()},
        "torchvision_resnet50": rate(seconds["torchvision"], batch_size * count, flops["resnet50"]),
        "resnet50_over_matmul": {key: shares[key] for key in ("median", "pairs")},
        "arl50_over_resnet50": arl,
        "resnet50_over_torchvision": faster,
    }


def _repeat(action: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        action()


def plain(bench: Bench) -> dict[str, Any]:
    """An epoch of ours, its cache already there, in turn with one of the plain pipeline; images/s over images/s."""
    result = {}
    for name in PLAIN_ROWS:
        row = bench.scale.row(name)
        slow = plain_training(row, row_model(row), bench.samples, row_views(row), bench.device)
        flops = row_flops(row)
        rounds = 3 if name == PIPELINE_ROW else 2
        result[name] = described(row) | _beside(bench, bench.training(row), slow, flops, flops, rounds)
        tidy()
    bench.ratios["epoch_over_plain"] = result[PIPELINE_ROW]["ratio"]["median"]
    return result


def libraries(bench: Bench) -> dict[str, Any]:
    """Epochs of ours in turn with those of segmentation_models.pytorch, trained as its documentation shows."""
    result = {}
    for name in bench.scale.smp_rows:
        row, encoder = bench.scale.row(name), SMP_ENCODERS[name]
        row = bench.scale.row(name, size=(row.size[0] // 32 * 32, row.size[1] // 32 * 32))  # all that its U-Net takes
        slow = smp_training(row, encoder, bench.samples, bench.device)
        flops = training_flops(smp_unet(encoder), row_shape(row))
        result[encoder] = described(row) | _beside(bench, bench.training(row), slow, row_flops(row), flops, 2)
        tidy()
    return result


def _beside(bench: Bench, ours: Training, slow: Plain, flops: int, slow_flops: int, at_most: int) -> dict[str, Any]:
    seconds = bench.time({"other": slow.epoch, "ours": ours.epoch}, [slow.warm_up, ours.warm_up], at_most)
    ratio = compare([taken / slow.images for taken in seconds["other"]], [t / ours.images for t in seconds["ours"]])
    return {
        "other": rate(seconds["other"], slow.images, slow_flops * len(slow.loader)),
        "ours": rate(seconds["ours"], ours.images, flops * len(ours.loader)),
        "ratio": ratio,
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part
    for part in (
        decode,
        loader,
        step,
        end_to_end,
        networks,
        plain,
        libraries,
        image_size,
        image_count,
        evaluation,
        workers,
    )
}
