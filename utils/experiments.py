"""What every experiment is: the one table that scripts, notebooks, tests and result tables go by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Experiment:
    """One row: a network with its settings, and the numbers that others published for it.

    Attributes:
        name: e.g. "seg-3"; also the folder of its runs below `model/`.
        net: name for `nets.create_model`.
        pretrained: whether the encoder starts from pretrained weights.
        loss: name for `utils.loss.create_loss`.
        size: (width, height) of the network's input, pixels.
        epochs: of the whole schedule; the learning rate falls from `lr` to 0 along a half cosine.
        patience: epochs without a better validation score after which training stops.
        published: the earlier project's numbers on the official test set, pooled over all pixels; its jaccard, dice
            and threshold_jaccard are means of background and lesion.
    """

    name: str
    net: str
    pretrained: bool
    loss: str = "dice_ce"
    size: tuple[int, int] = (336, 224)
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 1e-4
    epochs: int = 150
    patience: int = 45
    published: Mapping[str, float] = field(default_factory=dict)


def _published(*values: float) -> dict[str, float]:
    names = ("accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard")
    return dict(zip(names, values, strict=True))


EXPERIMENTS: dict[str, Experiment] = {
    row.name: row
    for row in (
        Experiment("seg-1", "unet", False, published=_published(0.8924, 0.6872, 0.9705, 0.7525, 0.8539, 0.6784)),
        Experiment("seg-2", "dense_unet", False, published=_published(0.9215, 0.8224, 0.9593, 0.8207, 0.8995, 0.7420)),
        Experiment("seg-3", "dense_unet", True, published=_published(0.9335, 0.8452, 0.9672, 0.8457, 0.9150, 0.7875)),
        Experiment("seg-4", "res_unet", True, published=_published(0.9222, 0.7765, 0.9778, 0.8174, 0.8972, 0.7447)),
        Experiment("seg-5", "arl_unet", True, published=_published(0.9220, 0.7795, 0.9764, 0.8173, 0.8972, 0.7413)),
    )
}


def find_experiment(net: str, pretrained: bool) -> Experiment:
    """The row of this network and this start; without one, the network's other row under a name of its own."""
    rows = [row for row in EXPERIMENTS.values() if row.net == net]
    for row in rows:
        if row.pretrained == pretrained:
            return row
    return replace(
        rows[0], name=f"{net}-{'pretrained' if pretrained else 'scratch'}", pretrained=pretrained, published={}
    )
