"""Pass a trained network on: its weights in half precision and a model card, beside the results of its run.

    python -m utils.inference.release model/seg-b1/run2 results/seg-b1/seed2

The first folder is the run's, with best.pth; the second is for its results, as `reproduce.py` copies them. There go
weights.safetensors, which `predict` takes, likeness.safetensors, by which it warns of photographs unlike the training
images, and README.md, the card, with the scores of that file: it is read back. Scores on other data that
`python -m utils.evaluation.score … --json RESULTS/elsewhere_NAME.json` wrote go into the card too.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import Template

import numpy as np

from utils import UserError
from utils.config import CACHE, Config
from utils.data.cache import prepare
from utils.data.isic import Sample, lesions
from utils.device import find_device, find_precision
from utils.evaluation import classification, segmentation
from utils.evaluation.export import format_scores
from utils.evaluation.rows import deviations
from utils.evaluation.runs import RunResult, read_run
from utils.files import load_json, written_whole
from utils.inference.classification import labels_of
from utils.inference.likeness import write_likeness
from utils.inference.segmentation import score
from utils.inference.trained import (
    RELEASED,
    load_network,
    predict_photographs,
    stored_sizes,
    training_data,
    write_released,
)
from utils.logger import log, run_script
from utils.model.run import copy_results, digest

CARD = Path(__file__).with_name("card.md")
_VIEWS = {"1": "the whole frame, squeezed", "9": "nine patches"}
_TASKS = {
    "segmentation": "Outlines the lesion in a photograph: a mask of the photograph's own size.",
    "classification": "Gives a photograph probabilities of {}, which add up to 1.",
}


def score_again(run: RunResult, samples: Sequence[Sample], cache: Path) -> str:
    """The scores on these images of the weights in the run's folder, as lines of text."""
    precision = find_precision(find_device(None))
    model = load_network(run, precision.device)
    images = prepare(samples, partial(stored_sizes, run), cache, masks=False)
    groups = {sample.id: sample.group for sample in samples}
    if run.task == "segmentation":
        counts = score(model, images, precision, run.settings["batch_size"], run.metrics["flips"])
        return format_scores("validation", segmentation.summarize(counts, groups))
    each = np.stack([*predict_photographs(run, model, map(images.image, range(len(samples))), precision)])
    summary = classification.summarize(each, labels_of(samples), run.classes, lesions(groups, groups))
    return format_scores("validation", summary)


def model_card(run: RunResult, scores: str, size: int) -> str:
    """card.md filled in: what the weights do, what they were trained on and how, how good they are; size in bytes."""
    settings, config = run.settings, run.config
    weights = settings.get("weights") or {}
    attention = f" (attention {settings['attention']}, α {settings['alpha']})" if settings.get("attention") else ""
    flips = ", the four flips averaged" if run.metrics.get("flips") else ""
    facts = settings | run.metrics | config | {
        "experiment": run.experiment,
        "task": _TASKS[run.task].format(", ".join(run.classes).replace("_", " ")),
        "data": run.data.resolve().name if run.own else "ISIC 2017",
        "validation": run.metrics["validation"]["images"],
        "folder": Path(*run.folder.parts[-3:]),
        "attention": attention,
        "size": "{}×{}".format(*settings["size"]),
        "views": _VIEWS[run.metrics.get("views", "1")] + flips,
        "start": weights.get("source") or weights.get("file") or "random weights",
        "images": settings["train_images"].partition(",")[0],
        "differs": "" if run.own else "".join(f"; {text}" for text in deviations(run)),
        "lr": f"{settings['lr']:g}",
        "commit": config["git_commit"],
        "file": RELEASED,
        "megabytes": f"{size / 1e6:.1f}",
        "scores": scores,
        "licence": run.licences,
        "elsewhere": "".join(_elsewhere(path) for path in sorted(run.folder.glob("elsewhere_*.json"))),
    }  # fmt: skip
    return Template(CARD.read_text(encoding="utf-8")).substitute(facts)


def _elsewhere(path: Path) -> str:
    """Scores on data that had no part in training or choosing, for the card."""
    name = path.stem.removeprefix("elsewhere_").upper()
    texts = [format_scores(what, scores) for what, scores in load_json(path).items()]
    return f"\nElsewhere, on {name}, by which nothing was chosen:\n\n```\n" + "\n".join(texts) + "\n```\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.inference.release", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, with best.pth")
    parser.add_argument("results", type=Path, help="the folder of its results; made where it is not there")
    parser.add_argument("--data", type=Path, help="data folder (the one that the run was trained on)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where prepared images go (Data/cache)")
    args = parser.parse_args(argv)
    run = read_run(args.run)
    if not (args.results / "config.json").exists():
        copy_results(args.run, args.results)
    results = read_run(args.results)
    if run.settings != results.settings or run.metrics != results.metrics:
        raise UserError(f"{args.results} holds the results of another run than {args.run}: choose another folder")
    folder = args.data or run.data or Config.data
    data = training_data(results, folder)
    validation = [each for each in data["validation"] if each.mask or run.task == "classification"]
    if digest(validation) != run.settings.get("validation_images"):
        raise UserError(f"{folder}: other validation images than those of the run; choose the folder by --data")
    path = args.results / RELEASED
    write_released(load_network(run, find_device("cpu")), path)
    scores = score_again(results, validation, args.cache)
    write_likeness(results, load_network(results, find_device(None)), data["train"], validation)
    with written_whole(args.results / "README.md") as file:
        file.write(model_card(results, scores, path.stat().st_size).encode())
    log.info("%s\n%s: %.1f MB", scores, path, path.stat().st_size / 1e6)


if __name__ == "__main__":
    run_script(main)
