"""Outline the lesion, and tell the class, of photographs of your own with trained networks.

    python predict.py best folder/                                   the best released segmenter and classifier
    python predict.py cls-b1 photo.jpg folder/ --recursive           a row's best released run
    python predict.py model/seg-4/run0 folder/ --output predictions  a run of your own

JPEG, PNG, TIFF, BMP and WebP. The output folder gets index.html to look at, summary.csv, and pictures under the name of
each photograph (docs/photographs.md). The same command goes on where it was stopped, and passes over what is finished.
Scored as the run was: whole frame or patches, flips averaged or not. Exit code 1: no photograph could be read. For
research, not a medical device.
"""

import argparse
import base64
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError
from utils.command_line import AMP
from utils.data.parallel import attempts, in_order
from utils.device import find_device, find_precision
from utils.files import listed, sha256, written_whole
from utils.inference.findings import NOTICE, Finding, Loaded, Reader, examine, load
from utils.inference.photographs import Photograph, find_photographs
from utils.inference.trained import chosen_runs, run_label, weights_file
from utils.logger import log, run_script
from utils.signals import StopRequested
from utils.visualize.overlay import captioned, grey_png, jpeg, pictures, thumbnail
from utils.visualize.report import Record, identity, write_tables

AHEAD = 4  # photographs decoded, and written, beside the one that is predicted: so many are in memory
FEW = 20  # of so many each has a line in the log


def write_outputs(photograph: Photograph, loaded: Loaded, finding: Finding, output: Path) -> dict[str, Any]:
    """The files of one photograph; returns its line of the record."""
    path, row, said, files = output / photograph.name, finding.row(), [], {}
    if finding.lesion is not None:
        said.append(f"lesion on {100 * float(row['lesion_share']):.1f} % of the frame")
        files["segmentation.png"] = grey_png(finding.mask * np.uint8(255), NOTICE)
        files["probability.png"] = grey_png(np.rint(finding.probability * 255).astype(np.uint8), NOTICE)
    if finding.classes:
        said.append(", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in finding.classes))
    small = thumbnail(loaded.shown)
    icons, kept = pictures(small, finding), []
    for name, (what, image) in pictures(loaded.shown, finding).items():
        files[f"{name}.jpg"] = jpeg(captioned(image, [*said, what, NOTICE]))
        shown = [icons[name][1]] if finding.lesion is not None else [small, icons[name][1]]
        for icon in shown:
            code = base64.b64encode(jpeg(icon, quality=60)).decode()
            kept.append([f"{photograph.file}: {what}", f"{photograph.name}_{name}.jpg", code])
    path.parent.mkdir(parents=True, exist_ok=True)
    for end, content in files.items():
        with written_whole(path.with_name(f"{path.name}_{end}")) as file:
            file.write(content)
    known = {"file": str(photograph.file.absolute()), "identity": identity(photograph.file), "name": photograph.name}
    said += [row["warnings"]] * bool(row["warnings"])
    row = {"file": str(photograph.file)} | row
    return known | {"row": row, "classes": finding.classes, "pictures": kept, "said": "; ".join(said)}


def predict(readers: Sequence[Reader], photographs: Sequence[Photograph], record: Record) -> dict[str, str]:
    """Predict and record; returns why those are not that cannot be read, by their path."""
    failed: dict[str, str] = {}
    record.start(photograph.name for photograph in photographs)

    def found() -> Iterator[tuple[Photograph, Loaded, Finding]]:
        each = attempts(lambda photograph: load(readers, photograph.file), photographs, "photographs", AHEAD)
        for photograph, loaded in zip(photographs, each, strict=True):
            if isinstance(loaded, UserError):
                log.warning("%s", loaded)
                failed[str(photograph.file)] = str(loaded).removeprefix(f"{photograph.file}: ")
            else:
                yield photograph, loaded, examine(readers, loaded)

    for line in in_order(lambda each: write_outputs(*each, record.path.parent), found(), AHEAD):
        record.add(line)
        if len(photographs) <= FEW:
            log.info("%s: %s", line["row"]["file"], line["said"])
    return failed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", help="a run's folder, a row's name for its best released run, or best for the best of each task")
    add("photographs", type=Path, nargs="+", help="files, or folders of them")
    add("--output", type=Path, default=Path("predictions"), metavar="DIR", help="where predictions go (predictions)")
    add("--recursive", action="store_true", help="look into the folders in folders too")
    add(
        "--uncertainty", action="store_true", help="the mean of all released runs of a row, and by how much they differ"
    )
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    args = parser.parse_args(argv)
    runs = chosen_runs(args.run, ensemble=args.uncertainty)
    record = Record(args.output, {run_label(run): sha256(weights_file(run.folder)) for run in runs})
    photographs, skipped = find_photographs(args.photographs, args.output, args.recursive, record.names)
    waiting = [each for each in photographs if record.waits(each.file)]
    failed: dict[str, str] = {}
    if waiting:
        precision = find_precision(find_device(args.device), args.amp)
        try:
            failed = predict([Reader(run, precision) for run in runs], waiting, record)
        except StopRequested as request:
            raise StopRequested(request.number, "while predicting; the same command goes on from here") from None
    done = len(photographs) - len(failed)
    if record.finished or failed:
        write_tables(record, failed, " and ".join(map(run_label, runs)), NOTICE)
        log.info("%s: look at index.html there, or at summary.csv", args.output)
    told = [f"{Path(name).name} ({re.split(' [(]|;', why)[0]})" for name, why in failed.items()] + skipped
    before = f", {len(photographs) - len(waiting)} of them before" if len(waiting) < len(photographs) else ""
    skips = f"; skipped: {listed(told, 10)}" if told else ""
    log.info("%d of %d predicted%s%s", done, len(photographs) + len(skipped), before, skips)
    if not done:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
