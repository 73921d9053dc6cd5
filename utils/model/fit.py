"""The training of a run from its checkpoint to its end."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from nets.arl import ARLAttention
from utils import UserError, distributed
from utils.files import written_whole
from utils.logger import log
from utils.model.run import Run
from utils.model.trainer import NotFinite, Progress, Trainer
from utils.model.weights import load_file
from utils.signals import StopRequested, StopSignals, stop_signals

LEAST_SCALE = 1e-4  # of a float16 loss; halved at each gradient that is not finite, from 65536 on


_LOADER_FAILURES = ("DataLoader worker", "shared memory", "shm_open")  # in torch's messages


GO_ON = "the same command (without -c 0) goes on from there"


def fit(
    trainer: Trainer, loader: DataLoader, validate: Callable[[nn.Module], tuple[float, dict[str, float]]], run: Run
) -> None:
    """Train until the schedule ends or the validation score stops rising, continuing from the run's checkpoint.

    A signal that asks to stop is followed after the step under way: a checkpoint is written from which the same run
    goes on, to the same weights, history and scores as if it had not stopped.

    Args:
        trainer: the model and what belongs to it.
        loader: of `utils.data.loader.train_loader`.
        validate: scores the model: (score to select the best weights by, columns for the history). The first three
            columns are printed. Of several processes each calls it and gets the same.
        run: where history, events, `last.pth` (everything) and `best.pth` (weights of the best epoch) go.

    Raises:
        UserError: a gradient or the weights are no longer finite, or the checkpoint cannot be read.
        StopRequested: by a signal, after the checkpoint is written.
    """
    last, done = run.path("last.pth"), trainer.progress
    if last.is_file():
        with _of_this_run(last):
            trainer.load_state(load_file(last))
        done = trainer.progress
        log.info("continuing %s after epoch %d, step %d", run.folder, done.epoch, done.step)
        if done.step == 0:  # killed after last.pth was written and before best.pth
            _keep_best(trainer, run)
    history = [row for row in run.history() if row["epoch"] <= done.epoch]
    if len(history) < done.epoch or (done.best_epoch and not run.path("best.pth").is_file()):
        raise UserError(
            f"{run.folder}: last.pth is of epoch {done.epoch}, but history.csv or best.pth is not there or shorter; "
            "put them back, or start afresh with -c 0 (what is there is kept)"
        )
    distributed.wait_for_all()  # before the first writes what others have yet to read
    with stop_signals() as stop:
        while not done.finished(trainer.schedule):
            try:
                with _loader_failures_explained():
                    row, score = _epoch(trainer, loader, validate, run, stop)
            except StopRequested as request:
                _save(trainer.state(), last)
                kept = f"in epoch {done.epoch + 1} after step {done.step}; {GO_ON}"
                raise StopRequested(request.number, kept) from None
            done.epoch, done.step, done.loss, done.uncounted = done.epoch + 1, 0, 0.0, 0
            if score > done.best_score:
                done.best_score, done.best_epoch = score, done.epoch
            history.append(row)
            run.write_history(history)
            run.write_events(row, done.epoch)
            _save(trainer.state(), last)
            _keep_best(trainer, run)
            shown = "  ".join(f"{name.removeprefix('train_')} {value:.4f}" for name, value in [*row.items()][2:6])
            star = "*" if done.best_epoch == done.epoch else ""
            length = trainer.schedule.epochs
            log.info("epoch %d/%d  %s  %.0f s  %s", done.epoch, length, shown, row["train_seconds"], star)
        if stop.number is not None:
            raise StopRequested(stop.number, "after the last epoch; the same command (without -c 0) scores it")
    if done.epoch < trainer.schedule.epochs:
        log.info("stopped early: best epoch was %d", done.best_epoch)


def _epoch(
    trainer: Trainer,
    loader: DataLoader,
    validate: Callable[[nn.Module], tuple[float, dict[str, float]]],
    run: Run,
    stop: StopSignals,
) -> tuple[dict[str, float], float]:
    """Train the (rest of the) next epoch and validate; returns its row of the history and its score."""
    done, first, skipped = trainer.progress, trainer.progress.step, trainer.progress.skipped
    start = time.perf_counter()
    try:
        loss = trainer.train_one_epoch(loader, lambda: stop.number is not None)
    except NotFinite as problem:
        ids = ", ".join(loader.dataset.cache.samples[index].id for index in problem.indices)
        raise UserError(f"{problem} {_way_out(trainer, run)}; the images of this step: {ids}") from problem
    if loss is None:
        raise StopRequested(stop.number or signal.SIGTERM)
    seconds = time.perf_counter() - start
    distributed.share_buffers(trainer.model)
    tensors = chain(trainer.model.parameters(), trainer.model.buffers())
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():  # one wait for a GPU, not one a tensor
        raise UserError(f"the weights or running statistics are not finite {_way_out(trainer, run)}")
    if trainer.scaler.is_enabled() and trainer.scaler.get_scale() < LEAST_SCALE:
        raise UserError(f"the gradient is not finite at any scale {_way_out(trainer, run)}")
    if done.skipped > skipped:
        count = done.skipped - skipped
        log.warning("epoch %d: %d steps left out, their gradient was not finite", done.epoch + 1, count)
    trainer.begin_next_epoch(loader)
    with stop.at_once():
        score, columns = validate(trainer.model)
    images = (done.step - first) * loader.batch_sampler.batch_size
    row = {"epoch": done.epoch + 1, "lr": done.lr, "train_loss": loss, **columns, **alphas(trainer.model)}
    row |= {"train_seconds": round(seconds, 3), "images_per_second": round(images / seconds, 2)}
    return row, score


@contextmanager
def _loader_failures_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:
        if not any(sign in str(problem) for sign in _LOADER_FAILURES):
            raise
        raise UserError(
            f"a loader process failed ({str(problem).splitlines()[0][:160]}): take fewer --workers (0 for none), or "
            f"allow more shared memory (docker --shm-size); {GO_ON}"
        ) from problem


def _keep_best(trainer: Trainer, run: Run) -> None:
    """best.pth, where the epoch just done is the best one. After last.pth, from which it can be made again."""
    if trainer.progress.best_epoch == trainer.progress.epoch:
        state = {"model": trainer.model.state_dict(), "progress": vars(trainer.progress).copy()}
        _save(state, run.path("best.pth"))


def _way_out(trainer: Trainer, run: Run) -> str:
    done, last = trainer.progress, run.path("last.pth")
    kept = f"; {last} holds the weights after epoch {done.epoch}" if last.is_file() else ""
    return f"in epoch {done.epoch + 1}: start afresh (-c 0) with a lower --lr or --amp off, or --on-nan skip{kept}"


def _save(state: dict[str, Any], path: Path) -> None:
    if distributed.is_main():
        save_checkpoint(state, path)


def alphas(model: nn.Module) -> dict[str, float]:
    """α of every ARL block in order, e.g. {"alpha_layer1.0": 0.001, …}; empty where there is none or it is off."""
    modules = model.named_modules()
    blocks = {name: module for name, module in modules if isinstance(module, ARLAttention) and not module.off}
    values = torch.stack([block.alpha.detach() for block in blocks.values()]).tolist() if blocks else []
    return {f"alpha_{name.removesuffix('.attention')}": value for name, value in zip(blocks, values, strict=True)}


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values so that `path` holds the old checkpoint or the whole new one at any moment."""
    with written_whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch closes its archive after Ctrl-C or on a full disk, and fails at that
            if isinstance(error.__context__, (KeyboardInterrupt, OSError)):
                raise error.__context__ from None
            raise


def load_best(model: nn.Module, folder: Path) -> int:
    """Put the weights of a run's best epoch into the model; returns that epoch, counted from 1."""
    path = folder / "best.pth"
    with _of_this_run(path):
        checkpoint = load_file(path)
        model.load_state_dict(checkpoint["model"])
        return Progress(**checkpoint["progress"]).best_epoch


@contextmanager
def _of_this_run(path: Path) -> Iterator[None]:
    """Turns what loading raises for content that no training of this model wrote into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, IndexError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no checkpoint of this run ({reason[:200]}); start afresh with -c 0") from error
