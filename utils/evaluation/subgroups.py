"""Scores by kind of image: by class, lesion size, whether the lesion is cut off, and the patient's age and sex.

A mean over all images hides where a model fails. The groups have fixed bounds and mean the same in every split. Many
are small: read the interval before the score, and an AUC with the number of its positives.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.data.images import read_mask
from utils.data.isic import CLASSES, Metadata, read_metadata, read_split
from utils.data.parallel import cores
from utils.evaluation.classification import TASKS, classification_scores, score_intervals
from utils.evaluation.export import Score
from utils.evaluation.rows import Row
from utils.evaluation.statistics import bootstrap_interval

SEGMENTATION = ("jaccard", "threshold_jaccard", "dice")
BORDER = 0.01  # of a side
FEWEST = 5  # positives, and negatives, that an AUC rests on


def image_facts(root: str | Path, split: str) -> pd.DataFrame:
    """What is known of every image of `utils.data.isic.read_split` that has a label or a mask, one row each, by id.

    Columns: image_id; class, of `CLASSES` (None without a label); lesion_share, the true mask's lesion pixels / all
    its pixels (NaN without a mask); touches_border, whether the true mask has a lesion pixel in the outermost 1 % of
    its rows or columns (None without a mask; not the last row alone, for many originals leave free 1 to 4 pixels); age
    in years, approximate (NaN) and sex, "female" or "male" (None), as the challenge gives them, where it does.

    UserError when `root` is no folder, or naming the label, metadata or mask file that is faulty.
    """
    samples = [sample for sample in read_split(root, split) if sample.label is not None or sample.mask]
    people = read_metadata(root, split)
    with ThreadPoolExecutor(cores()) as pool:
        masks = pool.map(_mask_facts, [sample.mask for sample in samples])
        lines = [
            (sample.id, None if sample.label is None else CLASSES[sample.label], *facts, person.age, person.sex)
            for sample, facts, person in zip(
                samples, masks, (people.get(sample.id, Metadata()) for sample in samples), strict=True
            )
        ]
    columns = ["image_id", "class", "lesion_share", "touches_border", "age", "sex"]
    # Objects, because pandas turns None into NaN in columns of its own choice.
    return pd.DataFrame(lines, columns=columns, dtype=object).astype({"lesion_share": float, "age": float})


def subgroups(facts: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Image ids by factor and group, from `image_facts`.

    An image is in no group of a factor where its fact is not recorded. Groups and factors without images are left out.
    """
    share, border, age, sex = (facts[name] for name in ("lesion_share", "touches_border", "age", "sex"))
    those = {
        "class": {name.replace("_", " "): facts["class"].eq(name) for name in CLASSES},
        "lesion size": {"under 10 %": share < 0.1, "10 to 30 %": share.between(0.1, 0.3), "over 30 %": share > 0.3},
        "lesion touches the border": {"no": border.eq(False), "yes": border.eq(True)},
        "age": {"under 40": age < 40, "40 to 59": (age >= 40) & (age < 60), "60 and over": age >= 60},
        "sex": {name: sex.eq(name) for name in ("female", "male")},
    }
    ids = {
        factor: {group: facts.loc[chosen, "image_id"].tolist() for group, chosen in groups.items() if chosen.any()}
        for factor, groups in those.items()
    }
    return {factor: groups for factor, groups in ids.items() if groups}


def segmentation_groups(row: Row, split: str, facts: pd.DataFrame) -> pd.DataFrame:
    """Official scores of a row's runs on each of `subgroups`, after a line of all images (factor and group "all").

    Columns: factor, group, images (how many), then a `Score` for each of SEGMENTATION, as `segmentation_table` has it,
    with the interval over the images of the group. Images that `facts` does not have are in the first line only.
    UserError as `Row.per_image`.
    """
    tables = row.per_image(split)
    values = np.stack([table[list(SEGMENTATION)] for table in tables])  # [S, N, 3]
    shown = np.array(row.lesions(split))

    def scores(images: np.ndarray) -> dict[str, Score]:
        chosen = values[:, images]
        intervals = [bootstrap_interval(means, shown[images]) for means in chosen.mean(axis=0).T]
        by_seed = chosen.mean(axis=1).T  # [3, S]
        return {name: Score.over_seeds(*both) for name, *both in zip(SEGMENTATION, by_seed, intervals, strict=True)}

    return _by_group(tables[0]["image_id"], facts, scores)


def classification_groups(row: Row, split: str, facts: pd.DataFrame) -> pd.DataFrame:
    """As `segmentation_groups`: AUCs as in `classification_table`, and the accuracy of the three classes.

    Columns: factor, group, images, melanoma, seborrheic keratosis (how many of the images are), then Scores: MEL AUC,
    SK AUC, and accuracy, the share of images whose most probable class is right: within a class, its sensitivity. An
    AUC of fewer than FEWEST positives or negatives is left out, Score(): one melanoma in a group gives an AUC and an
    interval that say nothing. UserError as `Row.probabilities`.
    """
    probabilities, labels = row.probabilities(split)
    ids = row.per_image(split)[0]["image_id"]
    shown = np.array(row.lesions(split))

    def scores(images: np.ndarray) -> dict[str, Any]:
        chosen, classes = probabilities[:, images], labels[images]  # [S, n, 3], [n]
        each = [classification_scores(one, classes) for one in chosen]
        intervals = score_intervals(chosen, classes, groups=shown[images])
        counts = np.bincount(classes, minlength=len(CLASSES))
        line: dict[str, Any] = {task.replace("_", " "): int(counts[number]) for number, task in enumerate(TASKS)}
        for number, (short, task) in enumerate(zip(("MEL", "SK"), TASKS, strict=True)):
            enough = FEWEST <= counts[number] <= len(classes) - FEWEST
            aucs = [one[task]["auc"] for one in each]
            line[f"{short} AUC"] = Score.over_seeds(aucs, intervals[task]["auc"]) if enough else Score()
        accuracy = Score.over_seeds([one["accuracy"] for one in each], intervals["accuracy"])
        return {**line, "accuracy": accuracy}

    return _by_group(ids, facts, scores)


def _mask_facts(path: Path | None) -> tuple[float, bool | None]:
    """lesion_share and touches_border."""
    if path is None:
        return math.nan, None
    mask = read_mask(path)
    rows, columns = (math.ceil(side * BORDER) for side in mask.shape)
    sides = (mask[:rows], mask[-rows:], mask[:, :columns], mask[:, -columns:])
    return np.count_nonzero(mask) / mask.size, any(side.any() for side in sides)


def _by_group(ids: pd.Series, facts: pd.DataFrame, scores: Callable[[np.ndarray], dict[str, Any]]) -> pd.DataFrame:
    """One line a group; `scores` takes the places of its images among `ids`."""
    lines = [("all", "all", np.arange(len(ids)))]
    for factor, groups in subgroups(facts[facts["image_id"].isin(ids)]).items():
        lines += [(factor, group, np.flatnonzero(ids.isin(members))) for group, members in groups.items()]
    return pd.DataFrame(
        [{"factor": factor, "group": group, "images": len(images), **scores(images)} for factor, group, images in lines]
    )
