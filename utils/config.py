"""What a run is: the table of experiments, and the one object that scripts, notebooks and tests start a run with.

config = configure("seg-2", data=Path("Data/ISIC2017"), epochs=30)      # a row of the table, with one setting changed
run = utils.tasks.train(config)
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import nets
from nets.pretrained import find_pretrained
from utils import UserError
from utils.logger import log

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "model"  # pretrained weights and runs
CACHE = ROOT / "Data" / "cache"  # prepared images
EQUAL = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Experiment:
    """One row of the table: a network with its settings. What others published: utils/evaluation/published.json."""

    name: str  # e.g. "seg-3"; also the folder of its runs below `model/`
    task: str  # "segmentation" or "classification"
    net: str  # name for `nets.create_model`
    pretrained: bool  # whether the encoder starts from pretrained weights
    loss: str  # as for `utils.loss.Loss`
    size: tuple[int, int]  # (width, height) of the network's input, pixels
    batch_size: int  # images in a step
    lr: float  # this and the next three: as for `utils.model.trainer.Schedule`
    weight_decay: float
    epochs: int
    patience: int
    class_weights: tuple[float, ...] | str | None = None  # one a class in the loss, or "balanced"; None: no classes
    attention: str | None = None  # of ARL networks, as for `nets.arl.arl`
    alpha: str | None = None  # likewise
    optimizer: str = "adamw"  # as for `Schedule`
    train_views: str | None = None  # classification: a name of `utils.data.transforms.TRAIN_TRANSFORMS`
    views: str | None = None  # classification: what scores average, a name of `utils.data.transforms.TEST_PATCHES`
    flips: bool = False  # whether scores also average the four flips


@dataclass(frozen=True)
class Config(Experiment):
    """Everything that says what a run is: the settings of a row, and on what data, where and how it is computed."""

    data: Path = Path("Data/ISIC2017")  # folder of the images
    output: Path = MODEL  # of the runs
    cache: Path = CACHE  # of the prepared images
    id: int = 0  # number of the run
    seed: int = 0  # of weights, order of the images and augmentation
    resume: bool = True  # continue the run in this folder, if any; False starts anew and keeps the old one aside
    weights: Path | None = None  # file to start from in place of the pretrained one
    message: str = ""  # a note kept with the run
    keep_copies: bool = False  # keep training images that are copies of validation or test images
    require_all: bool = False  # classification: stop when a labelled image is missing
    extra: tuple[Path, ...] = ()  # folders of images to train on besides (`utils.data.extra`)
    extra_share: float = 0.5  # of each batch
    others: str | None = None  # what diagnoses of `extra` count as that are none of the classes; None: left out
    split: tuple[float, float, float] | str | None = None  # of one's own folder: training, validation, test shares
    split_seed: int = 0
    fold: tuple[int, int] | None = None  # (K, N) of one's own folder: the Kth of N folds
    classes: tuple[str, ...] = ()  # of one's own folder, filled in when it is read; empty for ISIC 2017's
    device: str | None = None  # as for `utils.device.find_device`
    amp: str = "auto"  # as for `utils.device.find_precision`
    workers: int | None = None  # of the DataLoader; None for `utils.data.loader.default_workers`
    accumulate: int = 1  # micro-batches that each batch is computed in
    graphs: bool = True  # on a GPU, launch each step as one CUDA graph
    sync_batchnorm: bool = False  # under torchrun, batch norm over all processes' images
    deterministic: bool = False  # on GPUs, kernels that give the same bits each time
    on_nan: str = "stop"  # a gradient that is not finite stops the run, or its step is left out ("skip")

    @property
    def folder(self) -> Path:
        return self.output / self.name / f"run{self.id}"

    def settings(self) -> dict[str, Any]:
        """What defines the run, by name: a continuation must have the same. metrics.json has how it is scored."""
        row = {each.name: getattr(self, each.name) for each in fields(Experiment)}
        row |= {"seed": self.seed, "amp": self.amp}
        if self.split or self.fold:
            row |= {name: getattr(self, name) for name in ("split", "split_seed", "fold", "classes")}
        if self.extra:
            row |= {name: getattr(self, name) for name in ("extra_share", "others")}
            row["extra"] = [path.resolve().name for path in self.extra]
        return {name: value for name, value in row.items() if name not in ("views", "flips")}


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


def _row(name: str, task: str, net: str, pretrained: bool, **settings: Any) -> Experiment:
    return replace(DEFAULTS[task], name=name, net=net, pretrained=pretrained, **default_attention(net) | settings)


# Settings of this project's own rows, small enough for two cores; nothing is published for them.
_SMALL = {
    "segmentation": {"size": (256, 192), "lr": 1e-3, "epochs": 15, "patience": 15, "flips": True},
    "classification": {
        "size": (192, 192), "loss": "ce", "lr": 5e-4, "epochs": 8, "patience": 8, "flips": True,
        "train_views": "frame", "views": "1",
    },
}  # fmt: skip

DEFAULT_NET = {"segmentation": "dense_unet", "classification": "arl50"}  # where neither row nor network is named
KIND = ("loss", "class_weights", "optimizer", "train_views")  # settings that, with the attention, identify a row
EXPERIMENTS: dict[str, Experiment] = {
    row.name: row
    for row in (
        _row("cls-1-1", "classification", "arl50", True),
        _row("cls-1-2", "classification", "resnet50", True),
        _row("cls-2-1", "classification", "arl14", False),
        _row("cls-2-2", "classification", "arl14", False, class_weights=(2.5, 2.5, 0.5)),
        _row("cls-2-3", "classification", "arl14", False, loss="ce"),
        _row("cls-2-4", "classification", "arl14", False, loss="ce", class_weights=(2.5, 2.5, 0.5)),
        _row("cls-b1", "classification", "mobilenet", True, **_SMALL["classification"]),
        _row("cls-b2", "classification", "arl_mobilenet", True, **_SMALL["classification"]),
        _row("seg-1", "segmentation", "unet", False),
        _row("seg-2", "segmentation", "dense_unet", False),
        _row("seg-3", "segmentation", "dense_unet", True),
        _row("seg-4", "segmentation", "res_unet", True),
        _row("seg-5", "segmentation", "arl_unet", True),
        _row("seg-b1", "segmentation", "mobilenet_unet", True, **_SMALL["segmentation"]),
        _row("seg-b5", "segmentation", "mobile_sam_unet", True, **_SMALL["segmentation"] | {"size": (224, 224)}),
    )
}


def experiments(task: str) -> list[str]:
    """Names of the rows of a task, in the table's order."""
    return [name for name, row in EXPERIMENTS.items() if row.task == task]


def configure(
    experiment: str | None = None,
    *,
    task: str | None = None,
    net: str | None = None,
    pretrained: bool | None = None,
    weights: Path | None = None,
    recipe: str = "repo",
    **changes: Any,
) -> Config:
    """The run that a row of the table, or a network, and changes of its settings describe.

    Without `experiment` it is the task's row with this network, start and the same loss, class weights, optimizer,
    training views and attention. Where no row has them, the run is named "<net>-pretrained" or "<net>-scratch" (a slash
    in it as a dash); so is an `experiment` with another network.

    Args:
        experiment: a name of EXPERIMENTS.
        task: "segmentation" or "classification", where there is no `experiment`.
        net: name for `nets.create_model`.
        pretrained, weights: as in `Config`.
        recipe: "repo", or "paper": SGD, learning rate 0.01 (pretrained 1e-4), halved every 30 epochs.
        changes: further fields of `Config`; None leaves one as the row has it.

    Raises:
        UserError: settings that do not go together.
    """
    row = EXPERIMENTS[experiment] if experiment else None
    task = row.task if row else task
    net = net or (row.net if row else DEFAULT_NET[task])
    pretrained = _starts_pretrained(net, row, pretrained, weights)
    changes = {name: value for name, value in changes.items() if value is not None}
    kind = {name: changes.pop(name) for name in KIND if name in changes} | _attention(net, changes)
    if recipe == "paper":
        kind["optimizer"] = "sgd"
    if row is None or net != row.net:
        row = _row_with(task, net, pretrained, row, kind)
    if "train_views" in kind and "views" not in changes:
        changes["views"] = "1" if kind["train_views"] == "frame" else "9"
    if recipe == "paper":
        changes = {"lr": 1e-4 if pretrained else 1e-2, "weight_decay": 1e-4} | changes
    known = {each.name: getattr(row, each.name) for each in fields(Experiment)}
    config = Config(**known | kind | changes | {"pretrained": pretrained, "weights": weights})
    return replace(config, name="-".join([config.name, *(path.resolve().name for path in config.extra)]))


def _starts_pretrained(net: str, row: Experiment | None, pretrained: bool | None, weights: Path | None) -> bool:
    if weights and pretrained is False:
        raise UserError("--weights FILE starts from weights, -p 0 does not: use only one of them")
    if pretrained is None:
        pretrained = row.pretrained if row else True
    if pretrained and not weights and not find_pretrained(net):
        log.info("%s has no pretrained weights: it starts from random ones", net)
        return False
    return pretrained or weights is not None


def _attention(net: str, changes: dict[str, Any]) -> dict[str, str | None]:
    """Takes attention and alpha out of `changes`."""
    asked = {name: changes.pop(name) for name in ("attention", "alpha") if name in changes}
    if asked and net not in nets.ATTENTIVE:
        raise UserError(f"--attention and --alpha are for ARL networks, {net} has no ARL block")
    if asked.get("attention") == "none":
        if "alpha" in asked:
            raise UserError("--attention none leaves no α: leave --alpha away")
        asked["alpha"] = None
    return asked


def _row_with(task: str, net: str, pretrained: bool, base: Experiment | None, kind: Mapping[str, Any]) -> Experiment:
    """The first row with this network, start and settings `kind`; where there is none, a new one.

    Rows with another size or number of epochs than the task's defaults never match.
    base: a row to take the remaining settings from, in place of the defaults.
    """
    default, own = DEFAULTS[task], {"net": net, "pretrained": pretrained, **kind}
    if base is None:
        wanted = {"size": default.size, "epochs": default.epochs, **own}
        for row in map(EXPERIMENTS.get, experiments(task)):
            if all(getattr(row, name) == value for name, value in wanted.items()):
                return row
    name = f"{net.replace('/', '-')}-{'pretrained' if pretrained else 'scratch'}"
    return replace(base or default, name=name, **default_attention(net) | own)
