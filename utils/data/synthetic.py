"""Synthetic data: drawn dermoscopy in the challenge's own layout, for when the photographs are absent.

    python -m utils.data.synthetic --out Data/synthetic --train 160 --validation 40 --test 40 --size 384 288 --seed 0

Good for trying the code and for tests; a score on them says nothing about real skin. `utils.data.dermoscopy` draws.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cv2

from utils import UserError
from utils.command_line import at_least
from utils.data.dermoscopy import KERATOSIS, MELANOMA, SIZE, SPLIT_STRIDE, draw_label, draw_lesion
from utils.data.isic import PREFIXES, SPLITS, SYNTHETIC
from utils.data.parallel import in_order
from utils.files import load_json
from utils.logger import log, progress, run_script

RECORD = SYNTHETIC[0]  # of the parameters
FORMAT = 3  # to be raised whenever the same parameters would draw other files
COUNTS = {"train": 160, "validation": 40, "test": 40}
FIRST_ID = 9_000_000


def make_synthetic(
    out: str | Path, counts: Mapping[str, int] = COUNTS, size: tuple[int, int] = SIZE, seed: int = 0
) -> Path:
    """Synthetic data in the official layout at `out`, made there unless they already are; returns the folder.

    counts: images per split ("train", "validation", "test"; one left out gets none). size: (width, height) in pixels,
    64 or more. The folder has its name when it is whole; `synthetic.json` in it records the parameters. UserError for
    a folder that is not empty and was not drawn with these.
    """
    out = Path(out)
    record = {"format": FORMAT, "counts": {split: counts.get(split, 0) for split in SPLITS}}
    record |= {"size": list(size), "seed": seed}
    with suppress(OSError, ValueError):
        if load_json(out / RECORD) == record:
            log.info("%s: already there", out)
            return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and was not drawn with these parameters: choose another folder, or delete it")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    jobs = []
    for start, split in zip(range(0, 3 * SPLIT_STRIDE, SPLIT_STRIDE), SPLITS, strict=True):
        if indices := range(start, start + record["counts"][split]):
            _write_tables(partial, split, indices, seed)
            jobs += [(split, index) for index in indices]

    def write(job: tuple[str, int]) -> None:
        split, index = job
        image, mask, _ = draw_lesion(seed, index, size)
        name, prefix = f"ISIC_{FIRST_ID + index}", partial / PREFIXES[split]
        photograph = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        Path(f"{prefix}_Data", f"{name}.jpg").write_bytes(photograph.tobytes())
        mask = cv2.imencode(".png", mask)[1]
        Path(f"{prefix}_Part1_GroundTruth", f"{name}_segmentation.png").write_bytes(mask.tobytes())

    for _ in progress(in_order(write, jobs), "drawing images", len(jobs)):
        pass
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    log.info("%s: drew %s", out, ", ".join(f"{count} {split}" for split, count in record["counts"].items()))
    return out


def _write_tables(folder: Path, split: str, indices: Sequence[int], seed: int) -> None:
    """The label file of a split, beside the folders for its images and masks."""
    for name in ("Data", "Part1_GroundTruth"):
        (folder / f"{PREFIXES[split]}_{name}").mkdir(parents=True)
    rows = ["image_id,melanoma,seborrheic_keratosis"]
    for index in indices:
        label = draw_label(seed, index)
        rows.append(f"ISIC_{FIRST_ID + index},{label == MELANOMA:.1f},{label == KERATOSIS:.1f}")
    table = folder / f"{PREFIXES[split]}_Part3_GroundTruth.csv"
    table.write_text("\n".join([*rows, ""]), encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.data.synthetic", description="Draw synthetic data.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("Data/synthetic"), help="new or empty folder (%(default)s)")
    for split, count in COUNTS.items():
        add(f"--{split}", type=at_least(0), default=count, metavar="N", help=f"{split} images (%(default)s)")
    add("--size", type=at_least(64), nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"),
        help="pixels ({} {})".format(*SIZE))  # fmt: skip
    add("--seed", type=at_least(0), default=0, help="another seed draws other images")
    args = parser.parse_args(argv)
    make_synthetic(args.out, {split: getattr(args, split) for split in COUNTS}, tuple(args.size), args.seed)


if __name__ == "__main__":
    run_script(main)
