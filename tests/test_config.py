"""The table of experiments holds the settings that it says it holds."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

import cls_main
import seg_main
from utils.config import EXPERIMENTS, MODEL, configure

EQUAL, RARE = (1, 1, 1), (2.5, 2.5, 0.5)
SEGMENTATION = {
    "task": "segmentation", "loss": "dice_ce", "size": (336, 224), "batch_size": 16, "lr": 1e-4, "weight_decay": 1e-4,
    "epochs": 150, "patience": 45, "optimizer": "adamw", "class_weights": None, "flips": False,
}  # fmt: skip
CLASSIFICATION = {
    "task": "classification", "size": (224, 224), "batch_size": 32, "lr": 1e-4, "weight_decay": 1e-2, "epochs": 100,
    "patience": 30, "optimizer": "adamw", "train_views": "patches", "views": "9", "flips": False,
}  # fmt: skip
ARL, PLAIN = {"attention": "spatial", "alpha": "learn"}, {"attention": None, "alpha": None}
ROWS = {
    "seg-1": ("unet", False),
    "seg-2": ("dense_unet", False),
    "seg-3": ("dense_unet", True),
    "seg-4": ("res_unet", True),
    "seg-5": ("arl_unet", True),
    "cls-1-1": ("arl50", True, "focal", EQUAL),
    "cls-1-2": ("resnet50", True, "focal", EQUAL),
    "cls-2-1": ("arl14", False, "focal", EQUAL),
    "cls-2-2": ("arl14", False, "focal", RARE),
    "cls-2-3": ("arl14", False, "ce", EQUAL),
    "cls-2-4": ("arl14", False, "ce", RARE),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_experiment_it_is_named_after(name):
    net, pretrained, *loss = ROWS[name]
    expected = {"net": net, "pretrained": pretrained, **(ARL if net.startswith("arl") else PLAIN)}
    if loss:
        expected |= CLASSIFICATION | dict(zip(("loss", "class_weights"), loss, strict=True))
    else:
        expected |= SEGMENTATION
    row = asdict(EXPERIMENTS[name])
    assert {setting: row[setting] for setting in expected} == expected


@pytest.mark.parametrize(("script", "net"), [(seg_main, "mobilenet_unet"), (cls_main, "mobilenet")])
@pytest.mark.parametrize("pretrained", [False, True])
def test_who_names_a_network_gets_the_defaults_of_the_task(script, net, pretrained):
    """Not the size and schedule of the small rows, which are meant by their names alone; flags or `configure`."""
    default, config = script.parse([]), script.parse(["-n", "mobilenet", "-p", str(int(pretrained))])
    assert config == configure(task=default.task, net=net, pretrained=pretrained) and config.name not in EXPERIMENTS
    for setting in ("size", "epochs", "lr", "batch_size", "patience", "train_views", "views", "flips"):
        assert getattr(config, setting) == getattr(default, setting), setting


def test_what_defines_a_run_is_its_row_seed_and_precision():
    """Where it lies, on how many workers and how it is scored may change from one continuation to the next."""
    one = configure("cls-b1")
    other = replace(
        one, data=Path("elsewhere"), workers=3, flips=False, views="9", device="cpu", accumulate=2, graphs=False
    )
    assert one.settings() == other.settings() and one.folder == MODEL / "cls-b1" / "run0"
    for change in ({"seed": 1}, {"amp": "off"}, {"lr": 0.5}, {"train_views": "patches"}):
        assert replace(one, **change).settings() != one.settings()
