"""Synthetic data: procedural dermoscopy in the challenge's own layout, for when the photographs are absent.

    python -m utils.data.synthetic --out Data/synthetic --train 160 --validation 40 --test 40 --size 384 288 --seed 0

Good for trying the code and for tests; a score on it says nothing about real skin. `utils.data.dermoscopy` draws the
images.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from utils import UserError
from utils.data.dermoscopy import KERATOSIS, MELANOMA, SIZE, SPLIT_STRIDE, draw_label, draw_lesion
from utils.data.isic import PREFIXES, SYNTHETIC
from utils.data.parallel import cores
from utils.logger import progress, run_script

RECORD = SYNTHETIC[0]  # of the parameters, written last
FORMAT = 2  # to be raised whenever the same parameters would draw other files
COUNTS = {"train": 160, "validation": 40, "test": 40}
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
    name = f"ISIC_{FIRST_ID + index}"
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    _write(root / f"{PREFIXES[split]}_Data" / f"{name}.jpg", jpeg.tobytes())
    png = cv2.imencode(".png", mask)[1]
    _write(root / f"{PREFIXES[split]}_Part1_GroundTruth" / f"{name}_segmentation.png", png.tobytes())


def _check(counts: Mapping[str, int], size: tuple[int, int] | str, seed: int) -> dict:
    """The parameters as they are recorded. UserError for one out of range."""
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
    """Whether this very data lies there already; if not, it may be written there. UserError where anything else is."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a new or empty folder")
    for name in (*SYNTHETIC, f"{RECORD}.part"):
        if (out / name).is_file():
            try:
                found = json.loads((out / name).read_text(encoding="utf-8"))
            except ValueError:
                found = None
            if found != settings:
                raise UserError(f"{out} was drawn with other parameters ({name}): choose another folder or delete it")
            return name in SYNTHETIC
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty and not drawn by us: choose a new or empty folder")
    return False


def make_synthetic(
    out: str | Path, counts: Mapping[str, int] = COUNTS, size: tuple[int, int] | str = SIZE, seed: int = 0
) -> Path:
    """Synthetic data in the official layout at `out`, made there unless they already are; returns the folder.

    counts: images per split ("train", "validation", "test"; one left out gets none). size: (width, height) in
    pixels, or "isic" for the mix of sizes of the real challenge. `synthetic.json` records the parameters and is
    written last; until then `synthetic.json.part` marks the folder as ours, and the next call with the same
    parameters completes it. UserError for parameters out of range and for a folder that holds anything else;
    no file that was there before is changed.
    """
    out, settings = Path(out), _check(counts, size, seed)
    if _is_complete(out, settings):
        return out
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{RECORD}.part").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    jobs = []
    for number, (split, count) in enumerate(settings["counts"].items()):
        if not count:
            continue
        indices = range(number * SPLIT_STRIDE, number * SPLIT_STRIDE + count)
        for name in ("Data", "Part1_GroundTruth"):
            (out / f"{PREFIXES[split]}_{name}").mkdir(exist_ok=True)
        rows = ["image_id,melanoma,seborrheic_keratosis"]
        for i in indices:
            label = draw_label(seed, i)
            rows.append(f"ISIC_{FIRST_ID + i},{label == MELANOMA:.1f},{label == KERATOSIS:.1f}")
        _write(out / f"{PREFIXES[split]}_Part3_GroundTruth.csv", "\n".join([*rows, ""]).encode())
        jobs += [(out, split, i, size, seed) for i in indices]
    with ThreadPoolExecutor(min(cores(), 4)) as pool:
        for _ in progress(pool.map(_write_image, *zip(*jobs, strict=True)), "drawing images", len(jobs)):
            pass
    (out / f"{RECORD}.part").replace(out / RECORD)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.data.synthetic", description="Draw synthetic data.")
    parser.add_argument("--out", type=Path, default=Path("Data/synthetic"), help="new or empty folder (%(default)s)")
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"{split} images (%(default)s)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"), help="in pixels")
    sizes.add_argument("--size-mix", choices=["isic"], help="sizes as mixed as those of ISIC 2017")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images")
    args = parser.parse_args(argv)
    counts = {split: getattr(args, split) for split in COUNTS}
    size = args.size_mix or tuple(args.size)
    there = _is_complete(args.out, _check(counts, size, args.seed))
    make_synthetic(args.out, counts, size, args.seed)
    total = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{args.out}: already there ({total})" if there else f"{args.out}: drew {total}")


if __name__ == "__main__":
    run_script(main)
