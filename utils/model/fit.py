"""The training of a run, from its checkpoint (if there is one) to its end."""

import signal
import time
from collections.abc import Callable
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from nets.arl import ARLAttention
from utils import UserError, distributed
from utils.files import reading
from utils.logger import log, readable_time
from utils.model.checkpoints import save_checkpoint
from utils.model.run import AFRESH, Run
from utils.model.trainer import NotFinite, Trainer
from utils.model.weights import load_file
from utils.signals import StopRequested, StopSignals, stop_signals

Validate = Callable[[nn.Module], tuple[float, dict[str, float]]]  # → score to select by, columns for the history
Picture = Callable[[nn.Module], np.ndarray]  # → what a network puts out on a few images, uint8 [H, W, 3]
PICTURE_EVERY = 5  # epochs
LEAST_SCALE = 1e-4  # of a float16 loss: it starts at 65536 and is halved at each gradient that is not finite
MEASURED = (5, 3.0)  # steps after the first, and seconds, before the first estimate of the time
_LOADER_FAILURES = ("DataLoader worker", "shared memory", "shm_open")  # in torch's messages
_GO_ON = "the same command (without -c 0) goes on from there"


class Clock:
    """Estimates how long a run still takes: by its first steps, then by its epochs since this process started."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._first = trainer, trainer.progress.epoch
        self._start = time.perf_counter()
        self._steps: list[float] | None = []

    def step(self) -> None:
        """To be called after each step; logs one estimate of the remaining time, as soon as it can."""
        if self._steps is None:
            return
        self._steps.append(time.perf_counter())
        count, seconds = len(self._steps) - 1, self._steps[-1] - self._steps[0]  # the first one warms up
        if count >= MEASURED[0] and seconds >= MEASURED[1]:
            schedule, done = self._trainer.schedule, self._trainer.progress
            left = (schedule.epochs - done.epoch) * self._trainer.steps - done.step
            log.info(
                "training takes about %s: %d steps (%d epochs) of %.2g s each, and validation after each epoch",
                readable_time(left * seconds / count), left, schedule.epochs - done.epoch, seconds / count,
            )  # fmt: skip
            self._steps = None

    def left(self) -> str:
        """After an epoch, such as "about 4 min left"; "" after the last one."""
        done, epochs = self._trainer.progress.epoch, self._trainer.schedule.epochs
        seconds = (time.perf_counter() - self._start) / (done - self._first) * (epochs - done)
        return f"about {readable_time(seconds)} left" if epochs > done else ""


def fit(trainer: Trainer, loader: DataLoader, validate: Validate, run: Run, picture: Picture | None = None) -> None:
    """Train until the schedule ends or the validation score stops rising, continuing from the run's checkpoint.

    A signal that asks to stop takes effect after the current step: a checkpoint is written from which the same run
    goes on, to the same weights, history and scores as if it had not stopped.

    Args:
        loader: of `utils.data.loader.train_loader`.
        validate: scores the model. The first three columns are printed. In distributed training every process
            calls it and gets the same result.
        picture: for TensorBoard, of every fifth epoch.
        run: where history, events, `last.pth` (everything) and `best.pth` (weights of the best epoch) go.

    Raises:
        UserError: a gradient or the weights are no longer finite, or the checkpoint cannot be read.
        StopRequested: by a signal, after the checkpoint is written.
    """
    history, last = _continue(trainer, run), run.path("last.pth")
    done = trainer.progress
    distributed.wait_for_all()  # the first process must not write before the others have read
    clock = Clock(trainer)
    with stop_signals() as stop:
        while not done.finished(trainer.schedule):
            try:
                row, score = _epoch(trainer, loader, validate, run, stop, clock)
            except StopRequested as request:
                save_checkpoint(trainer.state(), last)
                kept = f"in epoch {done.epoch + 1} after step {done.step}; {_GO_ON}"
                raise StopRequested(request.number, kept) from None
            done.epoch, done.step, done.loss, done.uncounted = done.epoch + 1, 0, 0.0, 0
            if score > done.best_score:
                done.best_score, done.best_epoch = score, done.epoch
            history.append(row)
            run.write_history(history)
            shows = picture is not None and distributed.is_main() and done.epoch % PICTURE_EVERY == 1
            run.write_events(row, picture(trainer.model) if shows else None)
            save_checkpoint(trainer.state(), last)
            _keep_best(trainer, run)
            _tell(trainer, row, clock.left())
        if stop.number is not None:
            raise StopRequested(stop.number, "after the last epoch; the same command (without -c 0) scores it")
    if done.epoch < trainer.schedule.epochs:
        log.info("stopped early: best epoch was %d", done.best_epoch)


def _continue(trainer: Trainer, run: Run) -> list[dict[str, float]]:
    """Load the run's checkpoint, where there is one; returns the history up to there."""
    last = run.path("last.pth")
    if last.is_file():
        with reading(last, AFRESH):
            trainer.load_state(load_file(last))
        done = trainer.progress
        steps = f" and {done.step} steps of the next" if done.step else ""
        log.info("continuing %s after epoch %d%s", run.folder, done.epoch, steps)
        if done.step == 0:  # killed after last.pth was written and before best.pth
            _keep_best(trainer, run)
    done = trainer.progress
    history = [row for row in run.history() if row["epoch"] <= done.epoch]
    if len(history) < done.epoch or (done.best_epoch and not run.path("best.pth").is_file()):
        raise UserError(
            f"{run.folder}: last.pth is of epoch {done.epoch}, but history.csv or best.pth is missing or has fewer; "
            f"put them back, or {AFRESH}"
        )
    return history


def _epoch(
    trainer: Trainer, loader: DataLoader, validate: Validate, run: Run, stop: StopSignals, clock: Clock
) -> tuple[dict[str, float], float]:
    """Train the (rest of the) next epoch and validate; returns its row of the history and its score."""
    done, first, skipped = trainer.progress, trainer.progress.step, trainer.progress.skipped

    def should_stop() -> bool:
        clock.step()
        return stop.number is not None

    start = time.perf_counter()
    try:
        loss = trainer.train_one_epoch(loader, should_stop)
    except NotFinite as problem:
        ids = ", ".join(loader.dataset.cache.samples[index].id for index in problem.indices)
        raise UserError(f"{problem} {_way_out(trainer, run)}; the images of this step: {ids}") from problem
    except RuntimeError as problem:
        if not any(sign in str(problem) for sign in _LOADER_FAILURES):
            raise
        raise UserError(
            f"a loader process failed ({str(problem).splitlines()[0][:160]}): take fewer --workers (0 for none), or "
            f"allow more shared memory (docker --shm-size); {_GO_ON}"
        ) from problem
    if loss is None:
        raise StopRequested(stop.number or signal.SIGTERM)
    seconds = time.perf_counter() - start
    distributed.share_buffers(trainer.model)
    _check_finite(trainer, run)
    if done.skipped > skipped:
        count = done.skipped - skipped
        log.warning("epoch %d: %d steps skipped, their loss or gradient was not finite", done.epoch + 1, count)
    with stop.at_once():
        score, columns = validate(trainer.model)
    images = (done.step - first) * loader.batch_sampler.batch_size
    row = {"epoch": done.epoch + 1, "lr": done.lr, "train_loss": loss, **columns, **alphas(trainer.model)}
    row |= {"train_seconds": round(seconds, 3), "images_per_second": round(images / seconds, 2)}
    return row, score


def _check_finite(trainer: Trainer, run: Run) -> None:
    tensors = chain(trainer.model.parameters(), trainer.model.buffers())
    # One wait for the GPU, not one per tensor.
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise UserError(f"the weights or running statistics are not finite {_way_out(trainer, run)}")
    if trainer.scaler.is_enabled() and trainer.scaler.get_scale() < LEAST_SCALE:
        raise UserError(f"the gradient is not finite at any scale {_way_out(trainer, run)}")


def _tell(trainer: Trainer, row: dict[str, float], left: str) -> None:
    done, epochs = trainer.progress, trainer.schedule.epochs
    shown = [f"{name} {value:.4f}" for name, value in [*row.items()][2:6]]
    shown += [f"{row['train_seconds']:.0f} s", left, "best so far" if done.best_epoch == done.epoch else ""]
    log.info("epoch %d/%d  %s", done.epoch, epochs, "  ".join(filter(None, shown)))


def _keep_best(trainer: Trainer, run: Run) -> None:
    """best.pth, where the epoch just done is the best one. Written after last.pth, from which it can be made again."""
    if trainer.progress.best_epoch == trainer.progress.epoch:
        state = {"model": trainer.model.state_dict(), "progress": vars(trainer.progress).copy()}
        save_checkpoint(state, run.path("best.pth"))


def _way_out(trainer: Trainer, run: Run) -> str:
    done, last = trainer.progress, run.path("last.pth")
    kept = f"; {last} holds the weights after epoch {done.epoch}" if last.is_file() else ""
    return f"in epoch {done.epoch + 1}: start afresh (-c 0) with a lower --lr or --amp off, or --on-nan skip{kept}"


def alphas(model: nn.Module) -> dict[str, float]:
    """α of every ARL block in order, e.g. {"alpha_layer1.0": 0.001, …}; empty where there is none or it is off."""
    modules = model.named_modules()
    blocks = {name: module for name, module in modules if isinstance(module, ARLAttention) and not module.off}
    values = torch.stack([block.alpha.detach() for block in blocks.values()]).tolist() if blocks else []
    return {f"alpha_{name.removesuffix('.attention')}": value for name, value in zip(blocks, values, strict=True)}
