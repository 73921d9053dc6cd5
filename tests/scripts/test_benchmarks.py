"""The benchmark runs and counts right. How fast anything is, no test says."""

import copy
import json
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import nets
from benchmarks import run
from benchmarks.memory import make_samples
from benchmarks.parts import PARTS
from benchmarks.plain import PlainAttention, PlainSet, plain_image, plain_mask, with_plain_attention
from benchmarks.timing import Matmul, compare, interleave, memory_mb, rate, training_flops
from benchmarks.workload import QUICK, Training, draw_originals, prepare, repeat_rows, row_views, training_store
from nets.arl import ARLAttention
from utils import UserError
from utils.config import EXPERIMENTS
from utils.data.images import read_image, read_mask
from utils.data.isic import Sample
from utils.data.loader import to_input
from utils.device import Precision

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def samples(folder) -> list[Sample]:
    return draw_originals(folder, QUICK)


@pytest.fixture(scope="module")
def report(folder) -> dict:
    """What the script writes with `--quick`, all parts of it."""
    path = folder / "report.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--device", "cpu", "--folder", folder, "--json", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*run.BARS, *PARTS))
    return json.loads(path.read_text())


def numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from numbers(inner, f"{name}/{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def test_report_has_every_ratio_positive_and_finite(report):
    assert report["ratios"].keys() == run.BARS.keys()
    assert report["ratios"]["end_to_end_over_step"].keys() >= {"seg-2", "cls-1-1"}
    found = dict(numbers(report["ratios"]))
    assert len(found) == len(run.BARS) + 1
    assert all(math.isfinite(value) and value > 0 for value in found.values()), found


def test_report_has_every_part_with_positive_numbers(report):
    for name in PARTS:
        measured = dict(numbers(report[name]))
        measured = {key: value for key, value in measured.items() if not key.endswith("/workers")}
        grown = {key: measured.pop(key) for key in list(measured) if key.endswith("/private_mb")}
        assert measured, name
        assert all(math.isfinite(value) and value > 0 for value in measured.values()), (name, measured)
        assert all(math.isfinite(value) and value >= 0 for value in grown.values()), (name, grown)  # may reuse memory
    assert report["seconds"].keys() == PARTS.keys()


def test_report_says_what_it_was_measured_with(report):
    assert report["command"].startswith("python benchmarks/run.py --quick")
    assert {"device", "processor", "cpu_threads", "versions", "git_commit", "precision", "scale"} <= report.keys()
    assert report["originals"]["images"] == QUICK.originals
    assert report["originals"]["megapixels_mean"] == pytest.approx(192 * 144 / 1e6)


def test_ratio_of_the_plain_pipeline_is_that_of_the_smallest_network(report):
    assert report["ratios"]["epoch_over_plain"] == report["plain"]["cls-b1"]["ratio"]["median"]
    assert report["plain"].keys() == {"seg-2", "cls-2-4", "cls-b1"}


def test_plain_pipeline_draws_the_views_that_the_project_draws(samples):
    """Of the whole originals: image and mask together, in the network's size, another view each time."""
    for row in (EXPERIMENTS["seg-2"], EXPERIMENTS["cls-2-4"]):
        data = PlainSet(samples, row.task == "segmentation", row_views(row))
        (image, target), (again, _) = data[0], data[0]
        assert image.shape == (3, row.size[1], row.size[0]) and not torch.equal(image, again)
        if row.task == "segmentation":
            assert target.shape == image.shape[1:] and set(target.unique().tolist()) <= {0, 1}


def test_parts_that_are_left_out_leave_their_ratios_empty(folder):
    report = run.main(["--quick", "--device", "cpu", "--folder", str(folder), "--only", "decode"])
    assert set(report["ratios"].values()) == {None}
    assert "decode" in report and "loader" not in report


def test_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--only", "decode,lunch"])
    assert "no part lunch" in capsys.readouterr().err


def test_originals_of_other_data(samples, tmp_path):
    root = samples[0].image.parents[1]
    assert [sample.id for sample in run.find_originals(root, 6)] == [samples[index % 4].id for index in range(6)]
    with pytest.raises(UserError, match="no training image with mask and label"):
        run.find_originals(tmp_path, 6)


@pytest.mark.parametrize(
    ("layers", "shape", "flops"),
    [
        # Forward, and backward to the weights; the images need no gradient. 2 operations a multiplication.
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), (4, 3, 16, 20), 2 * (2 * 4 * 8 * 16 * 20 * 3 * 9)),
        # Groups, a stride, and a transposed convolution, whose backward passes go to their input as well.
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 1, bias=False),
                nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
                nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2, bias=False),
            ),
            (4, 3, 16, 20),
            2 * (2 * 4 * 8 * 16 * 20 * 3) + 3 * (2 * 4 * 8 * 8 * 10 * 9) + 3 * (2 * 4 * 8 * 8 * 10 * 3 * 4),
        ),
        # As does the second layer's here.
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Linear(5, 7, bias=False)),
            (6, 3, 2, 2),
            2 * (2 * 6 * 12 * 5) + 3 * (2 * 6 * 5 * 7),
        ),
    ],
)
def test_operations_of_a_training_step(layers, shape, flops):
    assert training_flops(layers, shape) == flops


def test_matmul_takes_the_best_size_and_counts_its_operations():
    matmul = Matmul((16, 32), torch.float32, CPU, seconds=0.001)
    assert matmul.size == max(matmul.tried, key=matmul.tried.get)
    assert matmul.rate(2.0) == matmul.count * 2 * matmul.size**3 / 2e9


def test_actions_are_timed_in_turn():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, rounds=3)
    assert calls == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_rates_and_ratios():
    row = rate([2.0, 1.0, 4.0], images=8, flops=16e9)
    assert (row["seconds"], row["seconds_min"], row["rounds"]) == (2.0, 1.0, 3)
    assert (row["images_per_second"], row["flops_per_image"], row["gflops"]) == (4.0, 2e9, 8.0)
    assert compare([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "min_over_min": 2.0, "pairs": [2.0, 3.0, 1.0]}


def test_private_memory_leaves_out_the_pages_of_a_file(tmp_path):
    if not memory_mb("RssAnon"):
        pytest.skip("no /proc/self/status")
    np.save(tmp_path / "file.npy", np.ones(64_000_000, np.uint8))
    before = memory_mb("RssAnon")
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    assert mapped.sum() == mapped.size
    assert memory_mb("RssAnon") - before < 16
    with mmap.mmap(-1, 64_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(bytes(1_000_000) * 64)
        assert memory_mb("RssAnon") - before > 48


def test_samples_of_a_large_split():
    made = make_samples(5)
    assert len(made) == 5 and len({sample.id for sample in made}) == 5


def test_repeated_store_holds_all_its_rows(samples, tmp_path):
    cache = prepare(samples, (24, 16), tmp_path)
    repeated = repeat_rows(cache, 10, tmp_path)
    assert [sample.id for sample in repeated.samples] == [samples[index % 4].id for index in range(10)]
    assert repeated.path.stat().st_size > 10 * 24 * 16 * 4
    assert np.array_equal(repeated.pixels(), np.tile(cache.pixels(), (3, 1, 1, 1))[:10])
    assert np.array_equal(repeat_rows(cache, 3, tmp_path).pixels(), cache.pixels()[:3])


@pytest.mark.parametrize("name", ["seg-2", "cls-1-1"])
def test_bare_steps_train_on_what_the_loader_gives(name, samples, tmp_path):
    row = QUICK.row(name)
    cache = training_store(row, samples, tmp_path, 2 * row.batch_size)
    training = Training.build(row, cache, Precision(CPU, None), workers=0)
    images, targets = next(iter(training.loader))
    assert torch.equal(images, training.batch[0]) and torch.equal(targets, training.batch[1])
    assert training.images == 2 * row.batch_size
    before = [parameter.detach().clone() for parameter in training.trainer.model.parameters()]
    training.step()
    after = training.trainer.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_plain_attention_is_that_of_the_project():
    """In float64: the outputs, and the gradients of weights and α."""
    torch.manual_seed(0)
    ours = nets.create_model("arl14").double().train()
    plain = with_plain_attention(copy.deepcopy(ours))
    assert sum(isinstance(module, PlainAttention) for module in plain.modules()) == 4
    assert not any(isinstance(module, ARLAttention) for module in plain.modules())
    images, outputs = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for model in (ours, plain):
        outputs.append(model(images))
        outputs[-1].square().sum().backward()
    assert torch.allclose(*outputs, rtol=1e-9)
    other = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, other[name].grad, rtol=1e-6, atol=1e-9), name


def test_plain_pipeline_reads_the_images_that_the_project_reads(samples):
    size = (96, 72)
    for sample in samples:
        ours, theirs = read_image(sample.image, size), cv2.resize(plain_image(sample), size)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        # Two decoders and two ways of resizing; a mixed-up channel or a shifted frame makes tens of levels.
        assert np.abs(ours.astype(int) - theirs).mean() < 4
        assert np.array_equal(read_mask(sample.mask), plain_mask(sample))
        assert np.array_equal(plain_image(sample), cv2.imread(str(sample.image))[..., ::-1])


def test_plain_pipeline_normalises_as_the_project_does(samples):
    image, label = PlainSet(samples, masks=False, size=(64, 64))[0]
    pixels = torch.from_numpy(cv2.resize(plain_image(samples[0]), (64, 64)))[None]
    torch.testing.assert_close(image[None], to_input(pixels, CPU).contiguous())
    assert image.is_contiguous() and image.dtype == torch.float32
    assert int(label) == samples[0].label
