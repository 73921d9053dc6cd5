"""What every experiment is: the one table that scripts, notebooks, tests and result tables go by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import nets

EQUAL = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Experiment:
    """One row: a network with its settings, and the numbers that others published for it.

    Attributes:
        name: e.g. "seg-3"; also the folder of its runs below `model/`.
        task: "segmentation" or "classification".
        net: name for `nets.create_model`.
        pretrained: whether the encoder starts from pretrained weights.
        loss: name for `utils.loss.create_loss`.
        class_weights: one for each of `utils.data.isic.CLASSES` in the loss; None where there are no such classes.
        attention, alpha: of ARL networks, as for `nets.arl.arl`; None for others.
        train_views: of classification: what it is trained on, a name of `utils.data.transforms.TRAIN_TRANSFORMS`.
        views, flips: what scores average: names of `utils.data.transforms.TEST_PATCHES` (classification), the four flips.
        size: (width, height) of the network's input, pixels.
        epochs: of the whole schedule.
        optimizer, lr, weight_decay, patience: as for `utils.model.trainer.Schedule`.
        published: the earlier project's numbers on the official test set. Segmentation: pooled over all pixels; its
            jaccard, dice and threshold_jaccard are means of background and lesion. Classification: a mapping for each
            of melanoma and seborrheic_keratosis.
    """

    name: str
    task: str
    net: str
    pretrained: bool
    loss: str
    size: tuple[int, int]
    batch_size: int
    lr: float
    weight_decay: float
    epochs: int
    patience: int
    class_weights: tuple[float, ...] | None = None
    attention: str | None = None
    alpha: str | None = None
    optimizer: str = "adamw"
    train_views: str | None = None
    views: str | None = None
    flips: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)


DEFAULTS: dict[str, Experiment] = {
    "segmentation": Experiment(
        "", "segmentation", "", False, "dice_ce", (336, 224), 16, lr=1e-4, weight_decay=1e-4, epochs=150, patience=45
    ),
    "classification": Experiment(
        "", "classification", "", False, "focal", (224, 224), 32, lr=1e-4, weight_decay=1e-2, epochs=100, patience=30,
        class_weights=EQUAL, train_views="patches", views="9",
    ),
}  # fmt: skip


def default_attention(net: str) -> dict[str, str | None]:
    """The paper's attention for networks that have one, None for others."""
    return {"attention": "spatial", "alpha": "learn"} if net in nets.ATTENTIVE else {"attention": None, "alpha": None}


def _segment(name: str, net: str, pretrained: bool, *published: float) -> Experiment:
    names = ("accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard")
    numbers = dict(zip(names, published, strict=True))
    default = DEFAULTS["segmentation"]
    return replace(default, name=name, net=net, pretrained=pretrained, published=numbers, **default_attention(net))


def _classify(
    name: str,
    net: str,
    pretrained: bool,
    loss: str,
    class_weights: tuple[float, ...],
    melanoma: tuple[float, ...],
    keratosis: tuple[float, ...],
) -> Experiment:
    names = ("auc", "accuracy", "sensitivity", "specificity")
    numbers = {
        "melanoma": dict(zip(names, melanoma, strict=True)),
        "seborrheic_keratosis": dict(zip(names, keratosis, strict=True)),
    }
    return replace(
        DEFAULTS["classification"], name=name, net=net, pretrained=pretrained, loss=loss, class_weights=class_weights,
        published=numbers, **default_attention(net),
    )  # fmt: skip


# Rows of this project's own, small enough for two cores; nothing is published for them.
_SMALL = {
    "segmentation": {"size": (256, 192), "lr": 1e-3, "epochs": 15, "patience": 15, "flips": True},
    "classification": {
        "size": (192, 192), "loss": "ce", "lr": 5e-4, "epochs": 8, "patience": 8, "flips": True,
        "train_views": "frame", "views": "1",
    },
}  # fmt: skip


def _small(name: str, task: str, net: str) -> Experiment:
    return replace(DEFAULTS[task], name=name, net=net, pretrained=True, **default_attention(net), **_SMALL[task])


_RARE = (2.5, 2.5, 0.5)
EXPERIMENTS: dict[str, Experiment] = {
    row.name: row
    for row in (
        _classify("cls-1-1", "arl50", True, "focal", EQUAL, (.861, .853, .590, .917), (.959, .927, .722, .963)),
        _classify("cls-1-2", "resnet50", True, "focal", EQUAL, (.849, .860, .504, .946), (.919, .908, .533, .975)),
        _classify("cls-2-1", "arl14", False, "focal", EQUAL, (.846, .858, .538, .936), (.924, .912, .511, .982)),
        _classify("cls-2-2", "arl14", False, "focal", _RARE, (.863, .862, .556, .936), (.927, .903, .444, .984)),
        _classify("cls-2-3", "arl14", False, "ce", EQUAL, (.822, .835, .487, .919), (.929, .893, .833, .904)),
        _classify("cls-2-4", "arl14", False, "ce", _RARE, (.882, .857, .632, .911), (.955, .925, .811, .945)),
        _small("cls-b1", "classification", "mobilenet"),
        _small("cls-b2", "classification", "arl_mobilenet"),
        _segment("seg-1", "unet", False, .8924, .6872, .9705, .7525, .8539, .6784),
        _segment("seg-2", "dense_unet", False, .9215, .8224, .9593, .8207, .8995, .7420),
        _segment("seg-3", "dense_unet", True, .9335, .8452, .9672, .8457, .9150, .7875),
        _segment("seg-4", "res_unet", True, .9222, .7765, .9778, .8174, .8972, .7447),
        _segment("seg-5", "arl_unet", True, .9220, .7795, .9764, .8173, .8972, .7413),
        _small("seg-b1", "segmentation", "mobilenet_unet"),
    )
}  # fmt: skip


def experiments(task: str) -> list[str]:
    """Names of the rows of a task, in the table's order."""
    return [name for name, row in EXPERIMENTS.items() if row.task == task]


def find_experiment(
    task: str, net: str, pretrained: bool, *, base: Experiment | None = None, **settings: Any
) -> Experiment:
    """The first row of this network and start that has these settings; without one, they make a row of their own.

    Rows with a size and schedule of their own are not looked at: who names a network gets the task's defaults.
    base: a row to take the other settings from, in place of those.
    """
    wanted = {"task": task, "net": net, "pretrained": pretrained, **settings}
    scale = {"size": DEFAULTS[task].size, "epochs": DEFAULTS[task].epochs}
    for row in EXPERIMENTS.values() if base is None else ():
        if all(getattr(row, name) == value for name, value in (scale | wanted).items()):
            return row
    name = f"{net}-{'pretrained' if pretrained else 'scratch'}"
    return replace(base or DEFAULTS[task], name=name, published={}, **default_attention(net) | wanted)
