"""The embedded sample: procedural dermoscopy in the challenge's own layout, for when the photographs are absent.

    python -m utils.data.synthetic --out Data/sample --train 160 --validation 40 --test 40 --size 384 288 --seed 0

Good for trying the code and for tests; a score on it says nothing about real skin. `utils.data.dermoscopy` draws the images.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils import UserError
from utils.data.dermoscopy import KERATOSIS, MELANOMA, SIZE, SPLIT_STRIDE, draw_label, draw_lesion
from utils.device import cores

FORMAT = 1  # to be raised whenever the same parameters would draw other files
COUNTS = {"train": 160, "validation": 40, "test": 40}
# split: official image folder, official prefix of its truth
FOLDERS = {
    "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training"),
    "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation"),
    "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2"),
}
FIRST_ID = 9_000_000
# The commonest sizes (width, height) of the 2,150 official ISIC 2017 training and validation images, and how many
# have them; the scattered ones above 6,500 px wide are counted as one size. Together they cover 94 %.
ISIC_SIZES = {
    (1024, 768): 501, (4288, 2848): 458, (3008, 2000): 335, (6688, 4439): 164, (3872, 2592): 103,
    (3024, 2016): 81, (767, 576): 65, (2592, 1936): 62, (2048, 1536): 56, (3072, 2304): 54, (919, 802): 53,
    (1504, 1129): 48, (1022, 767): 22, (824, 719): 15,
}  # fmt: skip


def _image_size(seed: int, index: int, size: tuple[int, int] | str) -> tuple[int, int]:
    if size != "isic":
        return size
    shares = np.array(list(ISIC_SIZES.values()), float)
    rng = np.random.default_rng([seed, index, 2])
    return list(ISIC_SIZES)[rng.choice(len(shares), p=shares / shares.sum())]


def _write(path: Path, content: bytes) -> None:
    # A second run at the same time must not cut short what the first one has finished.
    if not (path.exists() and path.read_bytes() == content):
        path.write_bytes(content)


def _write_image(root: Path, split: str, index: int, size: tuple[int, int] | str, seed: int) -> None:
    image, mask, _ = draw_lesion(seed, index, _image_size(seed, index, size))
    images, truth = FOLDERS[split]
    name = f"ISIC_{FIRST_ID + index}"
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    _write(root / images / f"{name}.jpg", jpeg.tobytes())
    _write(
        root / f"{truth}_Part1_GroundTruth" / f"{name}_segmentation.png",
        cv2.imencode(".png", mask)[1].tobytes(),
    )


def _check(counts: Mapping[str, int], size: tuple[int, int] | str, seed: int) -> dict:
    """The parameters as sample.json keeps them."""
    if unknown := set(counts) - set(COUNTS):
        raise UserError(f"split {sorted(unknown)[0]!r} is unknown: use {', '.join(COUNTS)}")
    for split, count in counts.items():
        if not 0 <= count <= SPLIT_STRIDE:
            raise UserError(f"{split} count {count}: must be from 0 to {SPLIT_STRIDE}")
    if not any(counts.values()):
        raise UserError("all counts are 0: ask for at least one image")
    if size != "isic" and (isinstance(size, str) or len(size) != 2 or not all(64 <= side <= 8192 for side in size)):
        raise UserError(f"size {size!r}: must be a width and a height from 64 to 8192 pixels, or 'isic'")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    return {
        "format": FORMAT,
        "counts": {split: counts.get(split, 0) for split in COUNTS},
        "size": size if size == "isic" else list(size),
        "seed": seed,
    }


def _is_complete(out: Path, settings: dict) -> bool:
    """Whether this very sample lies there already; if not, it may be written there.

    UserError when the folder holds anything else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a new or empty folder for the sample")
    for name in ("sample.json", "sample.json.part"):
        if (out / name).is_file():
            try:
                found = json.loads((out / name).read_text(encoding="utf-8"))
            except ValueError:
                found = None
            if found != settings:
                raise UserError(
                    f"{out} holds a sample with other parameters ({name}): choose another folder or delete it"
                )
            return name == "sample.json"
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty and no sample of ours: choose a new or empty folder")
    return False


def make_synthetic(
    out: str | Path,
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] | str = SIZE,
    seed: int = 0,
) -> Path:
    """The sample in the official layout at `out`, made there unless it already is; returns the folder.

    counts: images per split ("train", "validation", "test"; one left out gets none). size: (width, height) in
    pixels, or "isic" for the mix of sizes of the real challenge. `sample.json` records the parameters and is
    written last; until then `sample.json.part` marks the folder as ours, and the next call with the same
    parameters completes it. UserError for parameters out of range and for a folder that holds anything else;
    no file that was there before is changed.
    """
    out, settings = Path(out), _check(counts, size, seed)
    if _is_complete(out, settings):
        return out
    record = json.dumps(settings, indent=2) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): choose another folder") from error
    (out / "sample.json.part").write_text(record, encoding="utf-8")
    jobs = []
    for number, (split, count) in enumerate(settings["counts"].items()):
        if not count:
            continue
        images, truth = FOLDERS[split]
        (out / images).mkdir(exist_ok=True)
        (out / f"{truth}_Part1_GroundTruth").mkdir(exist_ok=True)
        indices = range(number * SPLIT_STRIDE, number * SPLIT_STRIDE + count)
        labels = [draw_label(seed, i) for i in indices]
        rows = [
            f"ISIC_{FIRST_ID + i},{k == MELANOMA:.1f},{k == KERATOSIS:.1f}"
            for i, k in zip(indices, labels, strict=True)
        ]
        table = "\n".join(["image_id,melanoma,seborrheic_keratosis", *rows, ""])
        _write(out / f"{truth}_Part3_GroundTruth.csv", table.encode())
        jobs += [(out, split, i, size, seed) for i in indices]
    with ThreadPoolExecutor(min(cores(), 4)) as pool:
        work = pool.map(_write_image, *zip(*jobs, strict=True))
        for _ in tqdm(work, "drawing the sample", len(jobs), disable=None, unit="image"):
            pass
    (out / "sample.json.part").replace(out / "sample.json")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.data.synthetic", description="Draw the embedded sample.")
    parser.add_argument("--out", type=Path, default=Path("Data/sample"), help="new or empty folder")
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"{split} images")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"), help="in pixels")
    sizes.add_argument("--size-mix", choices=["isic"], help="sizes as mixed as those of ISIC 2017")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images")
    args = parser.parse_args(argv)
    counts = {split: getattr(args, split) for split in COUNTS}
    size = args.size_mix or tuple(args.size)
    try:
        there = _is_complete(args.out, _check(counts, size, args.seed))
        make_synthetic(args.out, counts, size, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{args.out}: already there ({total})" if there else f"{args.out}: drew {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
