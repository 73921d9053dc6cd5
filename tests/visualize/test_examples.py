"""Finished runs on the same photographs: which compare, what they get wrong, where their networks look."""

import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

import nets
from tests.evaluation.test_runs import IDS, classification_run, labels_of, own_row, segmentation_run
from tests.small import FLOAT32, Segmenter
from utils import UserError
from utils.config import EXPERIMENTS
from utils.data.cache import prepare
from utils.data.images import read_image, read_mask
from utils.data.isic import CLASSES, Sample, read_split
from utils.data.loader import to_input
from utils.data.synthetic import make_synthetic
from utils.evaluation.rows import Row, result_rows
from utils.evaluation.runs import find_runs
from utils.inference.saliency import class_activation_maps
from utils.visualize import examples, style


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    counts = {"train": 2, "validation": len(IDS["validation"]), "test": 2}
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic", counts, (96, 72))


@pytest.fixture(scope="module")
def samples(place) -> list[Sample]:
    """The drawn images under the ids and with the labels of the runs that are written here."""
    named = zip(read_split(place, "validation"), IDS["validation"], labels_of("validation").tolist(), strict=True)
    return [replace(sample, id=id_, label=label) for sample, id_, label in named]


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO)
    return lambda: " | ".join(caplog.messages)


def rows_of(folder: Path, task: str) -> list[Row]:
    return result_rows(find_runs(folder), task, "validation")


def run_of_the_images_in(place: Path, folder: Path, **changed) -> Path:
    table = pd.read_csv(segmentation_run(folder, splits=("validation",), **changed) / "per_image.csv")
    table.assign(image_id=[s.id for s in read_split(place, "validation")]).to_csv(folder / "per_image.csv", index=False)
    return folder


def test_the_runs_of_most_images_or_of_those_at_hand(tmp_path, place, messages):
    here = run_of_the_images_in(place, tmp_path / "model/here")
    classification_run(tmp_path / "model/another-task")
    for seed in (1, 2):
        segmentation_run(tmp_path / f"results/seg-4/seed{seed}", seed=seed, splits=("validation",))
    folders = [tmp_path / "results", tmp_path / "model"]
    found = examples.comparable_runs(folders, "segmentation", "validation", tmp_path / "nowhere")
    assert [run.seed for run in found] == [1, 2]
    assert f"left out, scored on 25 other images: {here}" in messages()
    assert "runs scored on the same 25 validation images: 2" in messages()
    assert [run.folder for run in examples.comparable_runs(folders, "segmentation", "validation", place)] == [here]
    assert examples.comparable_runs(folders, "segmentation", "test", place) == []
    assert f"no finished segmentation run with test scores below {folders[0]} or {folders[1]}" in messages()


def test_images_are_found_where_asked_or_where_the_run_had_them(tmp_path, place, messages):
    (run,) = find_runs(run_of_the_images_in(place, tmp_path / "run0"))
    there = (place, read_split(place, "validation"))
    assert examples.find_samples([run], "validation", place) == there
    assert examples.find_samples([run], "validation", tmp_path) == (tmp_path, [])
    assert f"{tmp_path} does not hold, in the challenge's layout, the 25 validation images of these runs" in messages()
    assert examples.find_samples([], "validation", place) == (place, [])
    run = replace(run, config={"data": str(place)})
    assert examples.find_samples([run], "validation", tmp_path / "nowhere") == there
    assert examples.find_samples([run], "validation", "") == (Path(), [])  # asked for none


def test_outlines_during_training(place):
    """Of four images side by side, as the network gets them; cyan of the truth, yellow of the prediction."""
    cache = prepare(read_split(place, "validation"), (48, 32), place.parent / "cache")
    drawn = examples.outlined_examples(Segmenter().eval(), cache, FLOAT32)
    assert drawn.shape == (32, 4 * 48, 3) and drawn.dtype == np.uint8
    cyan, yellow = ([round(255 * part) for part in to_rgb(colour)] for colour in style.OUTLINES.values())
    assert (drawn == cyan).all(-1).any() and (drawn == yellow).all(-1).any()


def test_the_worst_segmentations_by_every_row(tmp_path, samples):
    segmentation_run(tmp_path / "seg-4", seed=3)
    segmentation_run(tmp_path / "seg-2", EXPERIMENTS["seg-2"], seed=4)
    drawn = np.random.default_rng(0).integers(0, 2, (144, 192), np.uint8)
    Image.fromarray(drawn * 255).save(tmp_path / "mask.png")
    with zipfile.ZipFile(tmp_path / "seg-2/validation_masks.zip", "w") as archive:
        for id_ in IDS["validation"]:
            archive.write(tmp_path / "mask.png", f"{id_}_segmentation.png")
    rows = rows_of(tmp_path, "segmentation")
    panels = examples.segmentation_failures(rows, "validation", samples, count=3)
    tables = [row.per_image("validation")[0].set_index("image_id")["jaccard"] for row in rows]
    worst = ((tables[0] + tables[1]) / 2).nsmallest(3).index
    named = [(id_, name, table[id_]) for id_ in worst for name, table in zip(("seg-2", "seg-4"), tables, strict=True)]
    assert [panel.title for panel in panels] == [f"{id_}\n{name}\nJaccard {value:.3f}" for id_, name, value in named]
    assert panels[1].prediction is None  # a run without masks
    assert panels[0].prediction.shape == panels[0].truth.shape == panels[0].image.shape[:2] == (240, 320)
    assert panels[0].prediction.mean() == pytest.approx(drawn.mean(), abs=0.02)
    np.testing.assert_array_equal(
        panels[0].truth, read_mask(samples[IDS["validation"].index(worst[0])].mask, (320, 240))
    )
    (tmp_path / "seg-2/validation_masks.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"validation_masks.zip: damaged"):
        examples.segmentation_failures(rows, "validation", samples)


def test_the_worst_of_each_class(tmp_path, samples):
    for seed in (0, 1):
        classification_run(tmp_path / f"cls-2-4/{seed}", seed=seed)
    classification_run(tmp_path / "cls-2-3", EXPERIMENTS["cls-2-3"], seed=2)
    rows = rows_of(tmp_path, "classification")
    tables = [[run.predictions("validation").set_index("image_id") for run in row.runs] for row in rows]
    mean = sum(sum(row) / len(row) for row in tables) / 2
    expected = []
    for label, name in enumerate(CLASSES):
        ids = [sample.id for sample in samples if sample.label == label]
        for id_ in mean.loc[ids, name].nsmallest(2).index:
            said = mean.loc[id_, list(CLASSES)].astype(float).idxmax()
            title = f"{id_}\n{name} {mean.loc[id_, name]:.2f}\nsaid {said} {mean.loc[id_, said]:.2f}"
            expected.append(title.replace("_keratosis", " keratosis"))
    panels = examples.classification_failures(rows, "validation", samples, count=2)
    assert [panel.title for panel in panels] == expected and len(expected) == 6


def test_photograph(samples):
    half = np.zeros((30, 20), np.uint8)
    half[:, 10:] = 1
    panel = examples.photograph(samples[0], "title", width=80, prediction=half)
    assert panel.image.shape == (60, 80, 3) and panel.truth.any()
    np.testing.assert_array_equal(panel.prediction, np.repeat([[0] * 40 + [1] * 40], 60, axis=0))


def test_maps_of_an_arl_network_and_a_resnet(tmp_path, samples, messages, monkeypatch):
    models = []
    for row in (EXPERIMENTS["cls-2-4"], own_row("classification", "resnet14-scratch", "resnet14", False)):
        folder = classification_run(tmp_path / row.name, row, size=(48, 32))
        assert examples.compare_maps(rows_of(tmp_path, "classification"), "validation", samples) is None
        torch.manual_seed(len(models))
        models.append(nets.create_model(row.net).eval())
        checkpoint = {"model": models[-1].state_dict(), "progress": {"epoch": 1, "best_epoch": 1}}
        torch.save(checkpoint, folder / "best.pth")
    rows = rows_of(tmp_path, "classification")
    assert examples.compare_maps(rows, "validation", []) is None
    assert messages().count("no maps to compare") == 3
    with monkeypatch.context() as patch:  # the maps as they are drawn
        patch.setattr(examples, "plot_heatmaps", lambda panels, heats, title: (panels, heats))
        panels, heats = examples.compare_maps(rows, "validation", samples)
    by_id = {sample.id: sample for sample in samples}
    shown = [by_id[panel.title.split("\n")[0]] for panel in panels]
    images = to_input(torch.from_numpy(np.stack([read_image(s.image, (96, 64)) for s in shown])), torch.device("cpu"))
    for model, maps in zip(models, heats.values(), strict=True):
        expected = class_activation_maps(model, images, [sample.label for sample in shown])
        np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4)
    figure = examples.compare_maps(rows, "validation", samples)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["photograph", "cls-2-4\narl14", "resnet14-scratch\nresnet14"]
