"""Photographs unlike the training images: told, and the others not; also by the file that is passed on."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

import nets
from tests.data.test_own import lesions, own_folder
from tests.small import FLOAT32
from utils import UserError
from utils.config import configure
from utils.data.dermoscopy import draw_lesion
from utils.data.isic import Sample, read_split
from utils.data.own import own_data
from utils.evaluation.runs import RunResult
from utils.inference import likeness
from utils.inference.findings import Finding, Reader, examine, load
from utils.inference.likeness import pixel_faults, read_likeness, write_likeness
from utils.inference.trained import RELEASED, chosen_runs, write_released

SHADES = np.linspace(20, 230, 64).astype(np.uint8)
COLOURS = np.stack(np.broadcast_arrays(SHADES[:, None], SHADES, np.uint8(90)), axis=-1)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (COLOURS, []),
        (np.repeat(COLOURS[..., :1], 3, axis=2), ["grey"]),
        (np.full((64, 64, 3), (200, 150, 120), np.uint8), ["nearly uniform"]),
        (np.zeros((64, 64, 3), np.uint8), ["grey", "nearly uniform"]),
    ],
)
def test_pixels(frame, told):
    assert [each.partition(":")[0] for each in pixel_faults(frame)] == told


@pytest.mark.parametrize(("net", "task"), [("mobilenet_unet", "segmentation"), ("resnet14", "classification")])
def test_other_pictures_are_unlike_and_others_of_the_same_kind_are_not(net, task, tmp_path, caplog):
    """With random weights: what tells them apart is in the layers, not in what they have learnt."""
    settings = {"net": net, "size": [64, 64], "batch_size": 4, "train_views": "frame"}
    run = RunResult(tmp_path, "row", task, settings, {"views": "1", "flips": False})
    samples = []
    for index in range(48):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), draw_lesion(0, index, (96, 72))[0][..., ::-1])
        samples.append(Sample(str(index), path, None, None))
    torch.manual_seed(0)
    model = nets.create_model(net).eval()
    assert read_likeness(tmp_path) is None
    with caplog.at_level("INFO"):
        write_likeness(run, model, samples[:40], samples[40:])
    known = read_likeness(tmp_path)
    assert known.unlike(model, NOISE) and known.unlike(model, np.zeros((64, 64, 3), np.uint8))
    drawn = [cv2.resize(draw_lesion(0, index, (96, 72))[0], (64, 64)) for index in range(40, 60)]
    assert sum(known.unlike(model, frame) for frame in drawn) <= 5
    assert "of 40 training images; unlike them are" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("task", "net", "split"),
    [
        ("segmentation", "mobilenet_unet", {"fold": (1, 3)}),
        ("classification", "resnet14", {"split": (0.5, 0.3, 0.2), "split_seed": 1}),
    ],
)
def test_the_command_takes_the_images_that_the_run_was_trained_on(task, net, split, tmp_path, caplog):
    data = own_folder(tmp_path / "mine", *lesions(24))
    settings = {"name": "mine", "task": task, "net": net, "pretrained": False, "seed": 0, "size": [32, 32]}
    settings |= {"batch_size": 4, "train_views": "frame", **split}
    config, trained = {"settings": settings, "data": str(data)}, tmp_path / "run"
    trained.mkdir()
    (trained / "config.json").write_text(json.dumps(config))
    _, samples = own_data(configure(task=task, data=data, **split), masks=task == "segmentation")
    scored = {"images": len(samples["validation"]), "official": {"jaccard": 0.5}, "mean_auc": 0.5}
    metrics = {"validation": scored, "test": None, "views": "1", "flips": False}
    (trained / "metrics.json").write_text(json.dumps(metrics))
    write_released(nets.create_model(net), trained / RELEASED)
    with caplog.at_level("INFO"):
        likeness.main([str(trained)])
    told = caplog.messages[-1]
    assert f"of {len(samples['train'])} training images; unlike them are" in told
    assert f"of {len(samples['validation'])} validation images" in told
    for name in split:
        del settings[name]
    (trained / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="run: no training image there"):
        likeness.main([str(trained), "--data", str(trained)])


def test_of_the_best_networks_the_classifier_tells_pictures_without_skin(isic2017, tmp_path):
    """The segmenter calls a lesion that fills the frame unlike too: beside a classifier it says nothing of it."""
    readers = [Reader(run, FLOAT32) for run in chosen_runs("best")]

    def told(path: Path, by: Sequence[Reader] = readers[1:]) -> bool:
        return "unlike the training images" in examine(by, load(by, path)).warnings

    for index, picture in enumerate(load_sample_images().images):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
        assert told(tmp_path / f"{index}.png")
    filled = isic2017 / "ISIC-2017_Validation_Data" / "ISIC_0014688.jpg"
    assert told(filled, readers[:1]) and not told(filled, readers)
    assert sum(told(sample.image) for sample in read_split(isic2017, "validation")[::25]) <= 1


@pytest.mark.parametrize(
    ("lesion", "row"),
    [
        ([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], ("0.1667", "no", "")),
        ([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], ("0.1667", "yes", "")),
        ([[0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]], ("0.0000", "no", "no lesion found")),
        ([[1, 1, 1, 1]] * 3, ("1.0000", "yes", "")),
    ],
)
def test_what_the_table_says_of_an_outline(lesion, row):
    finding = Finding((4, 3), np.array(lesion, np.float32), {"nevus": 0.75, "mole_rat": 0.25}, None, ("odd",))
    share, border, warning = row
    assert finding.row() == {
        "nevus": "0.7500", "mole_rat": "0.2500", "class": "nevus", "lesion_share": share, "touches_border": border,
        "warnings": "; ".join(filter(None, ["odd", warning])),
    }  # fmt: skip
