"""The benchmark runs and counts right. How fast anything is, no test says."""

import json
import math
import re

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import run
from benchmarks.timing import Originals, Training, costs, figure, interleave, ratio
from tests.small import CPU, FLOAT32
from utils.config import configure
from utils.data.isic import read_split
from utils.data.loader import to_input
from utils.data.synthetic import make_synthetic

QUICK = ("--quick", "--device", "cpu")
NETWORKS = {"resnet50_over_matmul", "arl50_over_resnet50", "resnet50_over_torchvision"}


@pytest.fixture
def samples(tmp_path):
    return read_split(make_synthetic(tmp_path / "few", {"train": 2}, (96, 72)), "train", leave_out_copies=False)


def test_quick_benchmark_measures_every_part_and_ratio(tmp_path, capsys, monkeypatch):
    """Into a file that is named after the device, where no other is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "EPOCH_ROWS", ("seg-b1", "cls-b1"))  # in place of large networks
    report = run.main([*QUICK, "--folder", str(tmp_path), "--json"])
    (path,) = (tmp_path / "results" / "benchmarks").iterdir()
    assert path.stem == "-".join(re.findall(r"\w+", report["processor"].lower()))
    text, printed = path.read_text(), capsys.readouterr().out
    assert json.loads(text) == json.loads(json.dumps(report)) and not list(tmp_path.glob("caches-*"))
    assert report["ratios"].keys() == {"end_to_end_over_step", "epoch_over_plain", *NETWORKS}
    assert report["ratios"]["end_to_end_over_step"].keys() == {"seg-b1", "cls-b1"}
    assert report["ratios"]["epoch_over_plain"] == report["plain"]["cls-b1"]["ratio"]["median"]
    assert {"device", "processor", "cpu_threads", "versions", "git_commit", "precision", "scale"} <= report.keys()
    numbers, measured = [], {part: report[part] for part in ("ratios", "machine", "seconds", *run.PARTS)}
    json.loads(json.dumps(measured), parse_float=lambda number: numbers.append(float(number)))
    assert len(numbers) > 50 and all(math.isfinite(number) and number > 0 for number in numbers)
    assert report["seconds"].keys() == run.PARTS.keys() and all(f"\n{part} " in printed for part in run.PARTS)


def test_stopped_benchmark_keeps_what_it_has(tmp_path, monkeypatch):
    def stopped(_bench: run.Bench) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(run.PARTS, "networks", stopped)
    with pytest.raises(KeyboardInterrupt):
        flags = [*QUICK, "--rounds", "2", "--folder", str(tmp_path), "--json", str(tmp_path / "r.json")]
        run.main([*flags, "--only", "decode", "networks"])
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["decode"].keys() == {"seg-2", "cls-1-1"} and "networks" not in kept
    assert kept["decode"]["seg-2"]["rounds"] == 2
    assert not list(tmp_path.glob("caches-*"))


def test_operations_and_memory_of_a_training_step():
    """Forward, and backward to weights and inputs, but none to the images; with groups, a stride, and transposed."""
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
    )
    first, second, third = 2 * 4 * 8 * 16 * 20 * 3, 2 * 4 * 8 * 8 * 10 * 9, 2 * 4 * 8 * 8 * 10 * 3 * 4
    a, b, c, d = 4 * 3 * 16 * 20, 4 * 8 * 16 * 20, 4 * 8 * 8 * 10, 4 * 6 * 16 * 20
    moved = 2 * (a + b) + 3 * (b + c) + 3 * (c + d)
    assert costs(convolutions, (4, 3, 16, 20)) == (2 * first + 3 * (second + third), moved)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 7))
    assert costs(linear, (6, 3, 2, 2))[0] == 2 * (2 * 6 * 12 * 5) + 3 * (2 * 6 * 5 * 7)


def test_times_are_taken_in_turn_after_a_warm_up_and_become_rates_and_ratios():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, rounds=2)
    assert calls == list("ababab") and [len(values) for values in seconds.values()] == [2, 2]
    row = figure([2.0, 1.0, 4.0], 8, 24.0, 39.0, gflop_per_image=2.0, gb_per_image=3.0)
    assert figure([1.0], 1, 24.0, 5.0, gflop_per_image=2.0, gb_per_image=1.0)["bound_images_per_second"] == 5.0
    assert (row["seconds"], row["seconds_min"], row["images_per_second"]) == (2.0, 1.0, 4.0)
    assert (row["gflop_per_image"], row["bound_images_per_second"], row["share_of_bound"]) == (2.0, 12.0, 4 / 12)
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_bare_steps_train_on_what_the_loader_gives_of_repeated_originals(samples, tmp_path):
    config = configure("seg-b1", pretrained=False, resume=False, cache=tmp_path, batch_size=2, size=(32, 32))
    training = Training(config, samples, FLOAT32, steps=3)
    images, targets = next(iter(training.loader))
    assert torch.equal(images, training.batch[0]) and torch.equal(targets, training.batch[1])
    cache = training.loader.dataset.cache
    pixels = np.stack([cache.frame(index) for index in range(len(cache.samples))])
    assert training.images == len(pixels) == 6 and (pixels[4:] == pixels[:2]).all() and (pixels[0] != pixels[1]).any()
    before = [parameter.detach().clone() for parameter in training.trainer.model.parameters()]
    training.steps()
    assert any(not torch.equal(*pair) for pair in zip(before, training.trainer.model.parameters(), strict=True))


def test_plain_pipeline_gives_views_of_whole_originals_normalised_as_the_project_does(samples):
    originals = Originals(samples, lambda pixels, sample, seed: (pixels, (sample.label, seed)))
    (image, (label, seed)), (_, (_, other)) = originals[1], originals[1]
    pixels = torch.from_numpy(cv2.imread(str(samples[1].image))[..., ::-1].copy())
    torch.testing.assert_close(image[None], to_input(pixels[None], CPU).contiguous())
    assert label == samples[1].label and len(originals) == 2 and seed != other
