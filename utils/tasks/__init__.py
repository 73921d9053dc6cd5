"""The two tasks, and `train(config)`: one run from data to figures, as scripts, notebooks and `reproduce.py` call it.

A task is an object with the methods of `Segmentation`, whose docstrings say what each is for; what a run does for each
task is decided here and nowhere else.
"""

import shlex
import sys
from pathlib import Path

import torch
from torch import nn

from utils import distributed
from utils.config import ROOT, Config
from utils.data.cache import ImageCache
from utils.data.copies import copies_between
from utils.data.extra import join_extra
from utils.data.splits import refuse_copies
from utils.device import Precision, find_device, find_precision
from utils.logger import log
from utils.model.build import build_model, build_training, start_run
from utils.model.checkpoints import load_best
from utils.model.fit import fit
from utils.model.run import Run
from utils.tasks.classification import Classification
from utils.tasks.segmentation import Segmentation
from utils.visualize.figures import plot_history

Task = Segmentation | Classification
TASKS: dict[str, type[Task]] = {"segmentation": Segmentation, "classification": Classification}


def train(config: Config) -> Run:
    """Train a network, or go on where its run was stopped; score the best weights, write predictions and figures.

    The same call on a finished run scores it again.

    Raises:
        UserError: data, weights, settings or the run's folder are missing or invalid; training failed.
        utils.signals.StopRequested: by a signal, after a checkpoint is written.
    """
    device = find_device(config.device)
    with distributed.joined(device):
        return _train(TASKS[config.task](config), find_precision(device, config.amp))


def _train(task: Task, precision: Precision) -> Run:
    """Read data → build the model → prepare images → build trainer and loader → open the run → fit → evaluate."""
    with distributed.main_first():
        data = task.read_data()
        config = task.config
        torch.manual_seed(config.seed)
        model, weights = build_model(config)
        caches = task.prepare(data)
        grouped = bool(config.split or config.fold)
        copies = copies_between(caches)
        refuse_copies(copies, data, keep_copies=config.keep_copies, grouped=grouped)
        training = caches["train"]
        if config.extra:
            training = join_extra(caches, copies)
            data["extra"] = training.samples[len(caches["train"].samples) :]

    validate = task.validation(caches["validation"], precision)
    trainer, loader = build_training(config, model, task.loss(), training, task.transforms(), precision)
    with start_run(config, data, weights, precision, caches) as run:
        fit(trainer, loader, validate, run, task.picture(caches["validation"], precision))
        if distributed.is_main():
            with distributed.alone():
                evaluate(task, model, caches, precision, run)
        distributed.wait_for_all()
    photographs = (data["test"] or data["validation"])[0].image.parent
    log.info("run folder: %s\nnext, with these photographs or your own:\n  %s", run.folder, _next(run, photographs))
    return run


def _next(run: Run, photographs: Path) -> str:
    """The command that predicts photographs, as it can be typed here."""
    paths = [Path(sys.executable), ROOT / "predict.py", run.folder, photographs]
    here = Path.cwd()
    return shlex.join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths)


def evaluate(task: Task, model: nn.Module, caches: dict[str, ImageCache], precision: Precision, run: Run) -> None:
    """Predict validation and test images with the best weights, score them where the truth is there, draw figures."""
    torch.backends.cudnn.benchmark = False  # few batches of each shape: trying algorithms out would take longer
    config, best_epoch, history = task.config, load_best(model, run.folder), run.history()
    metrics = {"validation": None, "test": None, "best_epoch": best_epoch, "epochs": len(history)}
    metrics |= ({"views": config.views} if config.views else {}) | {"flips": config.flips}
    results = {}
    for split in ("validation", "test"):
        if split in caches:
            metrics[split], results[split] = task.score(model, caches[split], split, precision, run)
    results = {split: result for split, result in results.items() if result is not None}
    run.write_json("metrics.json", metrics)
    run.save_figure(plot_history(history, best_epoch), "history.png")
    for split, result in results.items():
        for name, figure in task.figures(model, caches[split], split, result, precision):
            log.info("figure: %s", run.save_figure(figure, name))
    task.finish(model, results, best_epoch, run)
