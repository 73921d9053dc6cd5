"""Images to train on besides those of the data folder: HAM10000, ISIC 2016 and 2018, or a folder of one's own.

They are only trained on. Left out of them is whatever is in the data folder as well: images with the id of one there
or of the challenge's validation and test sets or of a known copy of these, those of a `group` that is validated or
tested on, the same files, and near copies (`utils.data.copies`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils import UserError
from utils.config import Config
from utils.data.cache import ImageCache, JoinedCache
from utils.data.copies import Copy
from utils.data.isic import CLASSES, HAM10000, LEFT_OUT, OFFICIAL, Sample, find_files
from utils.data.own import Folder, is_own, read_folder, read_table
from utils.files import listed
from utils.logger import log

# What ISIC 2017 calls the diagnoses of other data; their names in lower case. HAM10000's bkl are seborrheic keratoses,
# solar lentigines and lichen-planus-like keratoses; ISIC 2016 calls melanoma malignant. bcc, akiec, vasc, df and
# ISIC 2016's benign are none of the three.
DIAGNOSES = {"mel": "melanoma", "malignant": "melanoma", "bkl": "seborrheic_keratosis", "nv": "nevus"}
LICENCE = "HAM10000, CC BY-NC 4.0: weights trained on it are for non-commercial use"


def extra_samples(config: Config, data: Mapping[str, Sequence[Sample]], *, masks: bool) -> list[Sample]:
    """The images of `config.extra` that have a mask, or a diagnosis that counts as one of the classes.

    data: the images of each split, which are left out, as the official validation and test images are. UserError when
    a folder has none of them, nothing is left, or two have one id.
    """
    classes, found = config.classes or CLASSES, {}
    if config.others and config.others not in classes:
        raise UserError(f"--others {config.others}: no class here; choose one of {', '.join(classes)}")
    taken = OFFICIAL["validation"].union(OFFICIAL["test"], *({each.id for each in split} for split in data.values()))
    taken |= frozenset() if config.keep_copies else LEFT_OUT
    held_out = {each.group for split in ("validation", "test") for each in data.get(split, ())} - {None, ""}
    for root in config.extra:
        folder = _folder(root)
        samples = list(_with_masks(folder) if masks else _with_labels(folder, classes, config.others))
        if not samples:
            raise UserError(f"{root}: no image with a {'mask' if masks else 'diagnosis'}; see docs/data.md")
        fresh = [sample for sample in samples if sample.id not in taken and sample.group not in held_out]
        if twice := [sample for sample in fresh if sample.id in found]:
            raise UserError(f"{twice[0].image} and {found[twice[0].id].image} have one id: leave one of them out")
        found |= {sample.id: sample for sample in fresh}
        counts = Counter(classes[sample.label] for sample in fresh) if not masks else {}
        more = f" ({', '.join(f'{name} {count}' for name, count in counts.items())})" if counts else ""
        if gone := len(samples) - len(fresh):
            where = f"{config.data}, or of the challenge's validation or test set"
            more += f"; {gone} left out: they, or their group, are of {where}"
        log.info("extra training images from %s: %d%s", root, len(fresh), more)
    if not found:
        raise UserError(f"--extra {' '.join(map(str, config.extra))}: nothing of it is left to train on; leave it away")
    return sorted(found.values(), key=lambda sample: sample.id)


def _folder(root: Path) -> Folder:
    if is_own(root):
        return read_folder(root)
    files = find_files(root, "extra")
    table = read_table(files.labels) if files.labels else ()
    return Folder(root, files.images, files.masks, *table)


def _with_masks(folder: Folder) -> Iterable[Sample]:
    for id_ in folder.images.keys() & folder.masks:
        yield Sample(id_, folder.images[id_], folder.masks[id_], None, folder.groups.get(id_))


def _with_labels(folder: Folder, classes: Sequence[str], others: str | None) -> Iterable[Sample]:
    left_out: Counter[str] = Counter()
    known = {_plain(name): name for name in classes}
    for id_, number in folder.labels.items():
        name = folder.classes[number]
        if name not in classes:
            name = known.get(_plain(name)) or known.get(DIAGNOSES.get(_plain(name))) or others
        if id_ in folder.images and name is None:
            left_out[folder.classes[number]] += 1
        elif id_ in folder.images:
            yield Sample(id_, folder.images[id_], None, classes.index(name), folder.groups.get(id_))
    if left_out:
        counts = ", ".join(f"{name} {count}" for name, count in left_out.items())
        log.info("%s: %d images of other diagnoses left out (%s)", folder.root, left_out.total(), counts)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def join_extra(caches: Mapping[str, ImageCache], copies: Sequence[Copy]) -> JoinedCache:
    """The training images, then the extra ones but for `copies` of images in the splits, and of each other."""
    extra, seen, kept = caches["extra"], set(), []
    copied = {copy.ids[0] for copy in copies if copy.splits[0] == "extra"}
    for index, (sample, digest) in enumerate(zip(extra.samples, extra.digests, strict=True)):
        if sample.id not in copied and digest not in seen:
            kept.append(index)
            seen.add(digest)
    if gone := len(extra.samples) - len(kept):
        log.warning("%d extra images left out: copies of others (%s)", gone, listed(sorted(copied)) or "the same files")
    return JoinedCache(caches["train"], extra, tuple(kept))


def licence(ids: Iterable[str]) -> str | None:
    """What is to be said of weights that are trained on these images; None where nothing is known."""
    numbers = (id_.removeprefix("ISIC_") for id_ in ids)
    return LICENCE if any(number.isdigit() and int(number) in HAM10000 for number in numbers) else None
