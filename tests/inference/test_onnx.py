"""Networks as ONNX files: what onnxruntime says of photographs is what the program says of the same pixels."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import nets
from tests.conftest import ROOT
from tests.small import CPU, FLOAT32, exit_code
from utils.data import images
from utils.data.images import read_image
from utils.data.loader import to_input
from utils.data.transforms import CENTER, Pixels, take
from utils.evaluation.runs import RunResult, read_run
from utils.inference.export import main, metadata, onnx_file, resized
from utils.inference.trained import load_network, predict_photographs, stored_sizes

pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-optional.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="not installed: pip install -r requirements-optional.txt")

RELEASED, SEGMENTER = ROOT / "results/cls-b1/seed5", ROOT / "results/seg-b1/seed0"
SMALL = (64, 48)  # width, height
FRAME = {"train_views": "frame", "views": "1", "flips": True}
NINE = {"train_views": "patches", "views": "9", "flips": False}


def run_of(net: str, size: tuple[int, int], scored: dict) -> RunResult:
    """A finished run, but with this network and size, scored so."""
    run = read_run(SEGMENTER if nets.is_segmenter(net) else RELEASED)
    settings = {**run.settings, "net": net, "size": size, "train_views": scored["train_views"]}
    return replace(run, settings=settings, metrics={**run.metrics, **scored})


def network(run: RunResult, attention: str | None, photographs: Sequence[np.ndarray]) -> nn.Module:
    """A random network with the statistics of these photographs; its attention counts as much as the rest (α = 1)."""
    torch.manual_seed(0)
    model = nets.create_model(run.settings["net"], attention=attention)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(1)
        frames = np.stack([images.resized(photograph, run.settings["size"]) for photograph in photographs])
        model.train()(to_input(torch.from_numpy(frames), CPU))
    return model.eval()


def expected(run: RunResult, model: nn.Module, photographs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the program says of photographs uint8 [H, W, 3]; a segmenter at their own size."""

    def kept(photograph: np.ndarray) -> Pixels:
        size, center = stored_sizes(run, photograph.shape[1::-1])
        frame = images.resized(photograph, size)
        return frame if center is None else (frame, take(photograph, CENTER, center))

    found = predict_photographs(run, model, map(kept, photographs), FLOAT32)
    sizes = [photograph.shape[1::-1] for photograph in photographs]
    return [each if each.ndim == 1 else cv2.resize(each, size) for each, size in zip(found, sizes, strict=True)]


def exported(content: bytes, photographs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the file says of them, each in a batch with its mirror image."""
    session = onnxruntime.InferenceSession(content)
    both = (np.stack([one, one[:, ::-1]]) for one in photographs)
    return [session.run(None, {"photographs": pair})[0][0] for pair in both]


def differ(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """By how much at most, of arrays of the same shapes, which differ among themselves."""
    assert [each.shape for each in one] == [each.shape for each in other]
    assert np.ptp([each.flat[0] for each in one]) > 1e-3, "an answer that does not depend on the photograph"
    return max(abs(a - b).max() for a, b in zip(one, other, strict=True))


@cache
def real(isic2017: Path, isic2017_fullsize: Path) -> list[np.ndarray]:
    """Two at 256×256, and an original."""
    small = sorted((isic2017 / "ISIC-2017_Validation_Data").glob("*.jpg"))[:2]
    return [read_image(path) for path in (*small, min(isic2017_fullsize.rglob("ISIC-2017_*_Data/*.jpg")))]


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ((256, 192), (64, 96)), ((100, 75), (33, 20)), ((61, 80), (61, 40)),  # shrunk: (width, height)
        ((120, 90), (60, 45)),  # to the half, where OpenCV rounds .5 up
        ((64, 48), (64, 48)),
        ((30, 20), (64, 48)), ((256, 40), (64, 48)), ((40, 256), (64, 48)), ((8, 8), (77, 160)),  # enlarged
    ],
)  # fmt: skip
def test_resizing_is_that_of_opencv(sides, size):
    """A box of a larger image, to the level on nearly all pixels; OpenCV's own sums depend on the processor."""
    image = np.random.default_rng(0).integers(0, 256, (2, sides[1] + 7, sides[0] + 5, 3), dtype=np.uint8)
    box = [(torch.tensor(start), torch.tensor(side)) for start, side in zip((3, 2), sides[::-1], strict=True)]
    room = (size[1] + 4, size[0] + 9)
    ours = resized(torch.from_numpy(image).float(), tuple(box), tuple(map(torch.tensor, size[::-1])), room)
    assert ours.shape == (2, *room, 3)
    for one, other in zip(ours.numpy(), image, strict=True):
        theirs = images.resized(other[3 : 3 + sides[1], 2 : 2 + sides[0]], size).astype(float)
        steps = abs(one[: size[1], : size[0]] - theirs)
        assert steps.max() <= 1
        if size[0] <= sides[0] and size[1] <= sides[1]:
            assert (steps > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "attention"),
    [("arl14", "channel"), ("dense_unet", None), ("mobile_sam_unet", None), ("timm/tf_efficientnet_lite0", None)],
)
def test_a_network_of_each_kind_says_the_same(name, attention, isic2017, isic2017_fullsize):
    """The MobileNet is below; all others: docs/onnx.md. Random networks answer a level more of one pixel with .01; from
    these sizes OpenCV's sums are exact.
    """
    photographs = [one[:384, :512] for one in real(isic2017, isic2017_fullsize)[1:]]
    run = run_of(name, SMALL, FRAME)
    model = network(run, attention, photographs)
    assert differ(expected(run, model, photographs), exported(onnx_file(run, model), photographs)) < 1e-4


def test_nine_patches_with_and_without_a_finer_center(isic2017, isic2017_fullsize):
    """Which photographs of 150 pixels do not have at this size."""
    large = real(isic2017, isic2017_fullsize)[0]
    photographs = [large, large[::-1, 20:220], large[:150, 100:250], large[:60, :90]]
    run = run_of("arl14", SMALL, NINE)
    assert [stored_sizes(run, one.shape[1::-1])[1] is None for one in photographs] == [False, False, True, True]
    model = network(run, None, [one[:60, :90] for one in photographs])
    assert differ(expected(run, model, photographs), exported(onnx_file(run, model), photographs)) < 1e-2


def test_the_command_writes_the_released_network(isic2017, isic2017_fullsize, tmp_path):
    """The file tells what it is. Of the original, OpenCV's sums are inexact: some pixels are a level more or less."""
    path = tmp_path / "model.onnx"
    assert exit_code(lambda: main([str(RELEASED), str(path)])) == 0
    photographs, run = real(isic2017, isic2017_fullsize), read_run(RELEASED)
    found, theirs = exported(path.read_bytes(), photographs), expected(run, load_network(run, CPU), photographs)
    assert differ(theirs[:2], found[:2]) < 1e-4 and differ(theirs, found) < 2e-3
    told = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["melanoma", "seborrheic_keratosis", "nevus"]
    assert json.loads(told["scores"])["validation"]["interval_95"] == run.metrics["validation"]["interval_95"]
    assert (told["run"], told["commit"][:7]) == ("cls-b1, seed 5", "4660998")
    assert "not a medical device" in told["notice"] and "CC-0" in told["licence_of_photographs"]


def test_extra_training_images_are_told_with_their_licence():
    told = metadata(read_run(ROOT / "results/cls-b3-ham10000/seed0"))
    assert told["trained_on"].startswith("Data/ISIC2017: 1969 images, ")
    assert "; ham10000: 5397 images, " in told["trained_on"]
    assert re.fullmatch(r"ISIC Archive, CC-0 .*; HAM10000, CC BY-NC 4\.0: .*", told["licence_of_photographs"])


def test_a_missing_package_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert exit_code(lambda: main([str(RELEASED), str(tmp_path / "model.onnx")])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith(": pip install -r requirements-optional.txt")
    assert not any(tmp_path.iterdir())
