"""Finished runs on the same photographs: which compare, what they get wrong, where their networks look."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nets
from tests.evaluation import test_runs as test_results
from tests.evaluation.test_runs import classification_run, segmentation_run
from utils import UserError
from utils.config import EXPERIMENTS, find_experiment
from utils.data.images import read_image, read_mask
from utils.data.isic import CLASSES, read_split
from utils.data.loader import to_input
from utils.data.synthetic import make_synthetic
from utils.evaluation.rows import result_rows
from utils.evaluation.runs import find_runs
from utils.evaluation.statistics import bootstrap_interval
from utils.evaluation.tables import Score
from utils.inference.saliency import class_activation_maps, mass_inside, to_image_size
from utils.visualize.examples import (
    classification_failures,
    comparable_runs,
    compare_maps,
    find_samples,
    photograph,
    segmentation_failures,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_synthetic(
        tmp_path_factory.mktemp("data") / "sample", {"train": 2, "validation": 12, "test": 2}, (96, 72)
    )


@pytest.fixture
def samples(place, monkeypatch):
    """The drawn validation images; the runs that a test writes are of them, and their labels these."""
    found = read_split(place, "validation")
    monkeypatch.setitem(test_results.IDS, "validation", [sample.id for sample in found])
    true = np.array([sample.label for sample in found])
    of_ids = test_results.labels_of
    monkeypatch.setattr(test_results, "labels_of", lambda split: true if split == "validation" else of_ids(split))
    return found


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO)
    return lambda: " | ".join(caplog.messages)


def rows_of(folder, task) -> list:
    return [row for row in result_rows(find_runs(folder), task, "validation") if row.runs]


def test_the_runs_of_most_images_or_of_those_at_hand(tmp_path, place, samples, messages, monkeypatch):
    segmentation_run(tmp_path / "model/of-the-sample")
    classification_run(tmp_path / "model/another-task")
    monkeypatch.setitem(test_results.IDS, "validation", ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"])
    for seed in (1, 2):
        segmentation_run(tmp_path / f"results/seg-4/seed{seed}", seed=seed)
    segmentation_run(tmp_path / "results/without-scores", seed=5, splits=("test",))
    folders = [tmp_path / "results", tmp_path / "model"]
    found = comparable_runs(folders, "segmentation", "validation", tmp_path / "nowhere")
    assert [run.seed for run in found] == [1, 2]
    assert f"left out, scored on 12 other images: {tmp_path / 'model/of-the-sample'}" in messages()
    assert "runs scored on the same 3 validation images: 2" in messages()
    found = comparable_runs(folders, "segmentation", "validation", place)
    assert [run.folder.name for run in found] == ["of-the-sample"]


def test_without_runs_it_says_what_makes_one(tmp_path, place, messages):
    assert comparable_runs([tmp_path / "model"], "classification", "validation", place) == []
    assert f"no finished classification run with validation scores below {tmp_path / 'model'}" in messages()
    assert "python cls_main.py makes one" in messages()
    assert find_samples([], "validation", place)[1] == []


def test_images_are_found_where_asked_or_where_the_run_had_them(tmp_path, place, samples, messages):
    segmentation_run(tmp_path / "run0")
    (run,) = find_runs(tmp_path)
    assert run.data is None
    assert find_samples([run], "validation", place) == (place, samples)
    assert find_samples([run], "validation", tmp_path) == (tmp_path, [])
    assert f"{tmp_path} does not hold the 12 validation images of these runs" in messages()
    test_results.edit(tmp_path / "run0/config.json", lambda config: config.update(data=str(place)))
    assert find_samples(find_runs(tmp_path), "validation", tmp_path / "nowhere") == (place, samples)


def test_the_worst_segmentations_by_every_row(tmp_path, samples):
    segmentation_run(tmp_path / "seg-4", seed=3)
    segmentation_run(tmp_path / "seg-2", EXPERIMENTS["seg-2"], seed=4)
    drawn = np.random.default_rng(0).integers(0, 2, (144, 192), np.uint8)
    with zipfile.ZipFile(tmp_path / "seg-2/validation_masks.zip", "w") as archive:
        for sample in samples:
            Image.fromarray(drawn * 255).save(tmp_path / "mask.png")
            archive.write(tmp_path / "mask.png", f"{sample.id}_segmentation.png")
    rows = rows_of(tmp_path, "segmentation")
    panels = segmentation_failures(rows, "validation", samples, count=3)
    tables = [row.per_image("validation")[0].set_index("image_id")["jaccard"] for row in rows]
    worst = ((tables[0] + tables[1]) / 2).nsmallest(3).index
    assert [panel.title for panel in panels] == [
        f"{id_}\n{row.experiment}, Jaccard {table[id_]:.3f}"
        for id_ in worst
        for row, table in zip(rows, tables, strict=True)
    ]
    assert [row.experiment for row in rows] == ["seg-2", "seg-4"]
    assert panels[1].prediction is None  # a run without masks
    assert panels[0].prediction.shape == panels[0].truth.shape == panels[0].image.shape[:2] == (240, 320)
    assert panels[0].prediction.mean() == pytest.approx(drawn.mean(), abs=0.02)
    (sample,) = (sample for sample in samples if sample.id == worst[0])
    np.testing.assert_array_equal(panels[0].truth, read_mask(sample.mask, (320, 240)))


def test_a_damaged_zip_is_named(tmp_path, samples):
    segmentation_run(tmp_path / "seg-4")
    (tmp_path / "seg-4/validation_masks.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"validation_masks.zip: damaged, or without ISIC_\d+ .*; copy it again"):
        segmentation_failures(rows_of(tmp_path, "segmentation"), "validation", samples)


def test_a_prediction_covers_the_frame(samples):
    half = np.zeros((30, 20), np.uint8)
    half[:, 10:] = 1
    panel = photograph(samples[0], "title", height=60, prediction=half)
    assert panel.image.shape == (60, 80, 3)
    np.testing.assert_array_equal(panel.prediction, np.repeat([[0] * 40 + [1] * 40], 60, axis=0))


def test_the_worst_of_each_class(tmp_path, samples):
    for seed in (0, 1):
        classification_run(tmp_path / f"cls-2-4/{seed}", seed=seed)
    classification_run(tmp_path / "cls-2-3", EXPERIMENTS["cls-2-3"], seed=2)
    rows = rows_of(tmp_path, "classification")
    tables = [[run.predictions("validation").set_index("image_id") for run in row.runs] for row in rows]
    mean = sum(sum(row) / len(row) for row in tables) / 2
    panels = classification_failures(rows, "validation", samples, count=2)
    expected = []
    for label, name in enumerate(CLASSES):
        ids = [sample.id for sample in samples if sample.label == label]
        for id_ in mean.loc[ids, name].nsmallest(2).index:
            said = mean.loc[id_, list(CLASSES)].astype(float).idxmax()
            title = f"{id_}\n{name}, p = {mean.loc[id_, name]:.2f}\nsaid {said}, p = {mean.loc[id_, said]:.2f}"
            expected.append(title.replace("_keratosis", " keratosis"))
    assert [panel.title for panel in panels] == expected and len(expected) == 6


def test_maps_of_an_arl_network_and_a_resnet(tmp_path, samples, messages):
    resnet = find_experiment("classification", "resnet14", False)
    models = {}
    for row in (EXPERIMENTS["cls-2-4"], resnet):
        folder = classification_run(tmp_path / row.name, row, size=(48, 32))
        assert compare_maps(rows_of(tmp_path, "classification"), "validation", samples) is None
        torch.manual_seed(len(models))
        models[row.net] = nets.create_model(row.net).eval()
        checkpoint = {"model": models[row.net].state_dict(), "progress": {"epoch": 1, "best_epoch": 1}}
        torch.save(checkpoint, folder / "best.pth")
    assert messages().count("no maps to compare") == 2
    rows = rows_of(tmp_path, "classification")
    assert compare_maps(rows, "validation", []) is None
    figure, table = compare_maps(rows, "validation", samples)
    assert table["network"].tolist() == ["arl14", "resnet14"]

    frames = np.stack([read_image(sample.image, (96, 64)) for sample in samples])
    images = to_input(torch.from_numpy(frames), torch.device("cpu"))
    masks = [read_mask(sample.mask, (128, 128)) for sample in samples]
    shares = []
    for model in models.values():
        heats = class_activation_maps(model, images, [sample.label for sample in samples])
        heats = to_image_size(heats, (128, 128), scaled=False)
        shares.append([mass_inside(heat, mask) for heat, mask in zip(heats, masks, strict=True)])
    shares = np.array(shares)
    both = np.isfinite(shares).all(axis=0)  # untrained, a network may find nothing of a class anywhere
    assert 3 < both.sum() < 12 and table["images"].tolist() == [both.sum()] * 2
    areas = np.array([mask.mean() for mask in masks])[both]
    for line, values in zip(table.itertuples(index=False), shares[:, both], strict=True):
        for score, expected in ((line[3], values), (line[4], areas)):
            assert isinstance(score, Score) and score.mean == pytest.approx(expected.mean(), rel=1e-4)
            assert score.interval == pytest.approx(bootstrap_interval(expected), rel=1e-4)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["photograph", "cls-2-4\narl14", "resnet14-scratch\nresnet14"]
