"""Outline the lesion, or tell the class, of photographs of your own with a trained network.

    python predict.py model/seg-b1/run2 photo.jpg folder/ --output predictions
    python predict.py results/cls-b1/seed5 folder/

The first argument is a run's folder: one of seg_main.py or cls_main.py, or one in results/ that holds its weights. A
segmenter leaves <name>_segmentation.png (0 and 255, at the photograph's own size) for each photograph, a classifier one
predictions.csv. Scored as the run was: whole frame or patches, flips averaged or not. Not a medical device.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils import UserError
from utils.command_line import AMP
from utils.data.cache import load_image
from utils.data.images import image_size
from utils.data.isic import Sample
from utils.data.parallel import in_order
from utils.data.transforms import Pixels
from utils.device import Precision, find_device, find_precision
from utils.evaluation.classification import predictions_table
from utils.evaluation.runs import RunResult, read_run
from utils.files import written_whole
from utils.inference.segmentation import lesion_mask, mask_png
from utils.inference.trained import load_network, predict_photographs, stored_sizes
from utils.logger import log, run_script

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NO_PHOTOGRAPHS = ("_segmentation", "_superpixels")  # ends of names of PNG files that lie among photographs


def find_photographs(paths: Sequence[Path]) -> list[Sample]:
    """A sample for each file, and for each image in a folder; its id is the file's name without its ending.

    UserError when there is none, or two would have the same name in the output.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES]
            files = [file for file in inside if not file.stem.endswith(NO_PHOTOGRAPHS)]
            if not files:
                raise UserError(f"{path}: no photograph in this folder ({', '.join(IMAGE_SUFFIXES)})")
        else:
            files = [path]
        for file in files:
            other = found.setdefault(file.stem, file)
            if other.resolve() != file.resolve():
                raise UserError(f"{file} and {other} would have one name in the output: predict them one by one")
    for file in found.values():
        image_size(file)  # refuses what is absent or no image, before the network is loaded
    return [Sample(name, file, None, None) for name, file in found.items()]


def predictions(run: RunResult, samples: Sequence[Sample], precision: Precision) -> Iterator[np.ndarray]:
    """What the run's network says of each photograph in turn; a few of them are decoded ahead."""
    model = load_network(run, precision.device)

    def load(sample: Sample) -> Pixels:
        return load_image(sample.image, stored_sizes(run, image_size(sample.image)))

    return predict_photographs(run, model, in_order(load, samples), precision)


def write_mask(sample: Sample, probability: np.ndarray, path: Path) -> float:
    """The share of the frame that is lesion."""
    mask = lesion_mask(probability, image_size(sample.image))
    with written_whole(path) as file:
        file.write(mask_png(mask))
    return float(mask.mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="the run's folder")
    add("images", type=Path, nargs="+", help="photographs (JPEG or PNG), or folders of them")
    add("--output", type=Path, default=Path("predictions"), help="where predictions go (predictions)")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    add("--amp", choices=AMP, default="auto", help="mixed precision (auto: where the hardware gains by it)")
    args = parser.parse_args(argv)
    run = read_run(args.run)
    samples = find_photographs(args.images)
    masks = run.task == "segmentation"
    names = [f"{sample.id}_segmentation.png" for sample in samples] if masks else ["predictions.csv"]
    if there := next((args.output / name for name in names if (args.output / name).exists()), None):
        raise UserError(f"{there} is there already: move it away, or choose another --output")
    precision = find_precision(find_device(args.device), args.amp)
    predicted = predictions(run, samples, precision)
    args.output.mkdir(parents=True, exist_ok=True)
    if masks:
        for sample, name, probability in zip(samples, names, predicted, strict=True):
            share = write_mask(sample, probability, args.output / name)
            log.info("%s: lesion on %.1f %% of the frame", args.output / name, 100 * share)
        return
    table = predictions_table([sample.id for sample in samples], np.stack(list(predicted)))
    with written_whole(args.output / names[0]) as file:
        file.write(table.to_csv(index=False, lineterminator="\n").encode())
    log.info("%s\n%s", args.output / names[0], table.head(20).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    run_script(main)
