"""From a network's output to a mask at the photograph's own size: interpolation, threshold, flips, what is written."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import utils.tasks
from tests.small import FLOAT32
from utils.config import configure
from utils.data.cache import prepare
from utils.data.images import read_mask
from utils.data.loader import to_input
from utils.data.synthetic import make_synthetic
from utils.data.transforms import FLIPS
from utils.evaluation.segmentation import confusion_counts, official_scores
from utils.inference.segmentation import TrueMasks, lesion_mask, predict_lesions, score, write_masks
from utils.tasks.segmentation import Segmentation

SIZE = (48, 32)


def uneven() -> nn.Module:
    """A network that tells left from right and up from down: its answer changes with a flip."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 2, 5, padding=2)).eval()


@pytest.mark.parametrize("size", [(48, 32), (96, 64), (151, 87), (31, 17)])
def test_a_probability_is_enlarged_bilinearly_over_the_whole_frame(size):
    """And lesion is what is above one half; torch's interpolation is the reference (shrinking: without smoothing)."""
    probability = torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    probability = F.interpolate(probability, (32, 48), mode="bicubic").clamp(0, 1)
    expected = F.interpolate(probability, size[::-1], mode="bilinear", align_corners=False)[0, 0].numpy()
    mask, clear = lesion_mask(probability[0, 0].numpy(), size), np.abs(expected - 0.5) > 1e-4
    assert mask.shape == size[::-1] and clear.mean() > 0.99
    assert np.array_equal(mask[clear], expected[clear] > 0.5)


def test_flips_are_undone_before_they_are_averaged(samples, tmp_path):
    model, cache = uneven(), prepare(samples, SIZE, tmp_path / "cache")
    found = dict(predict_lesions(model, cache, FLOAT32, 3, flips=True))
    once = dict(predict_lesions(model, cache, FLOAT32, 3))
    for index in range(len(samples)):
        x = to_input(torch.from_numpy(cache.frame(index)[None, ..., :3].copy()), FLOAT32.device)
        each = []
        for rows, columns in FLIPS:
            axes = [axis for axis, step in ((2, rows), (3, columns)) if step < 0]
            with torch.no_grad():
                each.append(model(x.flip(axes)).softmax(1).flip(axes)[0, 1])
        assert np.allclose(found[index], torch.stack(each).mean(0), atol=1e-6)
        assert np.allclose(once[index], each[0], atol=1e-6)
        assert np.abs(found[index] - once[index]).max() > 0.01


@pytest.mark.parametrize("flips", [False, True])
def test_what_is_written_is_what_is_scored(samples, tmp_path, flips):
    """Each mask at its image's own size, each probability at the network's; images without a true mask are written and
    not counted.
    """
    cache = prepare([*samples[:3], replace(samples[3], mask=None)], SIZE, tmp_path / "cache")
    model, expected = uneven(), {}
    counts = write_masks(model, cache, FLOAT32, 3, tmp_path / "test", flips)
    probabilities = dict(predict_lesions(model, cache, FLOAT32, 3, flips))
    with zipfile.ZipFile(tmp_path / "test_probabilities.zip") as archive:
        for index, sample in enumerate(cache.samples):
            grey = np.array(Image.open(archive.open(f"{sample.id}.png")))
            assert np.abs(grey / 255 - probabilities[index]).max() < 0.51 / 255
    with zipfile.ZipFile(tmp_path / "test_masks.zip") as archive:
        assert len(archive.namelist()) == 4
        for sample in cache.samples:
            mask = np.array(Image.open(archive.open(f"{sample.id}_segmentation.png")))
            assert mask.shape == (64, 96) and set(np.unique(mask)) <= {0, 255}
            if sample.mask:
                expected[sample.id] = confusion_counts(mask > 128, read_mask(sample.mask).astype(bool))
    assert len(counts) == 3 and [*counts.items()] == [*expected.items()]
    masks = TrueMasks()
    for _ in range(2):
        assert score(model, cache, FLOAT32, 3, flips, masks) == counts


@pytest.mark.parametrize(
    ("shape", "share"), [((7, 5), 0.5), ((1, 9), 0.5), ((64, 96), 0.5), ((13, 11), 0), ((13, 11), 1)]
)
def test_true_masks_are_kept_to_the_pixel_and_decoded_once(tmp_path, shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    path = tmp_path / "mask.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    masks = TrueMasks()
    assert np.array_equal(masks.read(path), mask)
    path.unlink()  # is not decoded again
    assert np.array_equal(masks.read(path), mask) and masks.read(path).dtype == bool


def test_the_loss_and_the_seed_that_are_asked_for_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(utils.tasks, "evaluate", lambda *_: None)
    make_synthetic(tmp_path / "data", {"train": 8, "validation": 3}, (80, 64))
    folders = {name: tmp_path / name for name in ("data", "output", "cache")}
    losses = []
    for number, changes in enumerate(({"seed": 1}, {"seed": 2}, {"seed": 1, "loss": "focal"})):
        config = configure(
            task="segmentation", net="mobilenet_unet", pretrained=False, size=(32, 32), epochs=1, batch_size=4,
            device="cpu", id=number, **folders, **changes,
        )  # fmt: skip
        losses.append(utils.tasks.train(config).history()[0]["train_loss"])
    assert losses[0] != losses[1] and losses[2] < 0.5 * losses[0]  # without Dice, which starts near 1


def test_validation(samples, tmp_path):
    """The score, by which epochs are chosen, at mask size; the loss of all images together at the network's size, as in
    training. Images without a true mask do not count.
    """
    cache = prepare([*samples[:3], replace(samples[3], mask=None)], SIZE, tmp_path / "cache")
    model, frames = uneven().eval(), np.stack([cache.frame(index) for index in range(3)])
    with torch.inference_mode():
        logits = model(to_input(torch.from_numpy(frames[..., :3].copy()), FLOAT32.device))
    task = Segmentation(configure("seg-1", loss="dice_focal"))
    value, columns = task.validation(cache, FLOAT32)(model)
    assert columns["val_loss"] == pytest.approx(float(task.loss()(logits, torch.from_numpy(frames[..., 3]))), rel=1e-4)
    assert list(columns)[:2] == ["val_loss", "val_jaccard"]
    expected = official_scores([*score(model, cache, FLOAT32, 16).values()])
    assert value == columns["val_jaccard"] == expected["jaccard"] > 0 and columns["val_dice"] == expected["dice"]
