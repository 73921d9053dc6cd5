"""The table of experiments holds the settings and numbers that it says it holds."""

from dataclasses import asdict

import pytest

import cls_main
import seg_main
from utils.config import EXPERIMENTS

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
    "seg-1": {"net": "unet", "pretrained": False, **SEGMENTATION, **PLAIN},
    "seg-2": {"net": "dense_unet", "pretrained": False, **SEGMENTATION, **PLAIN},
    "seg-3": {"net": "dense_unet", "pretrained": True, **SEGMENTATION, **PLAIN},
    "seg-4": {"net": "res_unet", "pretrained": True, **SEGMENTATION, **PLAIN},
    "seg-5": {"net": "arl_unet", "pretrained": True, **SEGMENTATION, **ARL},
    "cls-1-1": {"net": "arl50", "pretrained": True, "loss": "focal", "class_weights": EQUAL, **CLASSIFICATION, **ARL},
    "cls-1-2": {
        "net": "resnet50", "pretrained": True, "loss": "focal", "class_weights": EQUAL, **CLASSIFICATION, **PLAIN
    },
    "cls-2-1": {"net": "arl14", "pretrained": False, "loss": "focal", "class_weights": EQUAL, **CLASSIFICATION, **ARL},
    "cls-2-2": {"net": "arl14", "pretrained": False, "loss": "focal", "class_weights": RARE, **CLASSIFICATION, **ARL},
    "cls-2-3": {"net": "arl14", "pretrained": False, "loss": "ce", "class_weights": EQUAL, **CLASSIFICATION, **ARL},
    "cls-2-4": {"net": "arl14", "pretrained": False, "loss": "ce", "class_weights": RARE, **CLASSIFICATION, **ARL},
}  # fmt: skip
# The earlier project's, as printed: segmentation ACC SE SP JSI DSC TJI; melanoma AUC ACC SE SP, then keratosis.
PUBLISHED = """
seg-1 .8924 .6872 .9705 .7525 .8539 .6784
seg-2 .9215 .8224 .9593 .8207 .8995 .7420
seg-3 .9335 .8452 .9672 .8457 .9150 .7875
seg-4 .9222 .7765 .9778 .8174 .8972 .7447
seg-5 .9220 .7795 .9764 .8173 .8972 .7413
cls-1-1 .861 .853 .590 .917 .959 .927 .722 .963
cls-1-2 .849 .860 .504 .946 .919 .908 .533 .975
cls-2-1 .846 .858 .538 .936 .924 .912 .511 .982
cls-2-2 .863 .862 .556 .936 .927 .903 .444 .984
cls-2-3 .822 .835 .487 .919 .929 .893 .833 .904
cls-2-4 .882 .857 .632 .911 .955 .925 .811 .945
"""


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_experiment_it_is_named_after(name):
    row = asdict(EXPERIMENTS[name])
    assert {setting: row[setting] for setting in ROWS[name]} == ROWS[name]


def test_the_published_numbers_are_those_that_were_printed():
    for line in PUBLISHED.strip().splitlines():
        name, *numbers = line.split()
        published = EXPERIMENTS[name].published
        order = ("accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard")
        values = [published[metric] for metric in order] if name.startswith("seg") else [
            published[task][metric]
            for task in ("melanoma", "seborrheic_keratosis")
            for metric in ("auc", "accuracy", "sensitivity", "specificity")
        ]  # fmt: skip
        assert values == [float(number) for number in numbers], name


@pytest.mark.parametrize("script", [seg_main, cls_main])
def test_who_names_a_network_gets_the_defaults_of_the_task(script):
    """Not the size and schedule of the small rows, which are meant by their names alone."""
    default = script.choose(script.parse([]))
    for pretrained in ("0", "1"):
        row = script.choose(script.parse(["-n", "mobilenet", "-p", pretrained]))
        assert row.net.startswith("mobilenet") and row.name not in EXPERIMENTS
        for setting in ("size", "epochs", "lr", "batch_size", "patience", "train_views", "views", "flips"):
            assert getattr(row, setting) == getattr(default, setting), setting
