"""Training on any device: the loop that both tasks share, its checkpoints, and running a model over images."""

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import DataLoader

from nets.arl import ARLAttention
from utils import UserError
from utils.loader import to_input
from utils.logger import log, progress
from utils.run import Run, written_whole
from utils.weights import load_file

AMP = ("auto", "off", "bf16", "fp16")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
HALVED_EVERY = 30  # epochs, of the ARL-CNN paper's schedule


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls from `lr`, and when training ends.

    Attributes:
        epochs: of the whole schedule.
        patience: epochs without a better validation score after which training stops.
        optimizer: "adamw", its rate falling to 0 along a half cosine over all steps; or "sgd" with momentum 0.9, its
            rate halved every 30 epochs.
    """

    epochs: int
    lr: float
    weight_decay: float
    patience: int
    optimizer: str = "adamw"

    def build(self, model: nn.Module, steps: int, device: torch.device) -> tuple[Optimizer, LRScheduler]:
        """The optimizer over the model's parameters and its scheduler, to be stepped `steps` times an epoch."""
        options = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "fused": device.type in ("cpu", "cuda"),  # one pass over the parameters in place of a dozen
        }
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **options)
            return optimizer, StepLR(optimizer, HALVED_EVERY * steps, gamma=0.5)
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        return optimizer, CosineAnnealingLR(optimizer, steps * self.epochs)


@dataclass(frozen=True)
class Precision:
    """Where and in which type the network computes; `dtype` None is plain float32."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return f"{self.device} in {'float32' if self.dtype is None else f'{self.dtype} autocast'}".replace("torch.", "")


def find_device(name: str | None = None) -> torch.device:
    """The device of that name, else the first of cuda, mps, cpu that is there. UserError when it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


def find_precision(device: torch.device, amp: str = "auto") -> Precision:
    """How to compute on `device`: "auto" takes bfloat16 where the hardware multiplies it faster than float32."""
    if amp == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):
                amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            amp = "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "off"
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs a CUDA device, not {device.type}; use bf16 or off")
    return Precision(device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _cpu_multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 instructions; without them autocast is slower than float32."""
    try:
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return False


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, where it is glibc; elsewhere do nothing.

    It hands large blocks back to the system, which then clears every page of the same activations anew at each step:
    a ResNet-50 step at 224² took 0.78 s with that and 0.72 s without (8 images, one thread), an ARL-50 step 1.39 and
    0.99. The peak of memory stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass
class Progress:
    """How far a run has come; goes into its checkpoint and back."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0  # counted from 1; 0 before the first
    best_score: float = float("-inf")

    def finished(self, schedule: Schedule) -> bool:
        return self.epoch >= schedule.epochs or self.epoch - self.best_epoch >= schedule.patience


class Trainer:
    """A model with all that its training carries along: optimizer, schedule, scaler, progress.

    The optimizer is built once, over the parameters of the very model that is trained; a checkpoint is loaded into
    both, so that a continued run goes on as if it had never stopped.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, schedule: Schedule, steps: int, precision: Precision):
        if precision.device.type == "cpu":
            keep_freed_memory()
        self.precision, self.schedule = precision, schedule
        self.model = model.to(precision.device, memory_format=torch.channels_last)
        self.criterion = criterion.to(precision.device)
        self.optimizer, self.scheduler = schedule.build(self.model, steps, precision.device)
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
        self.progress = Progress()

    def train_one_epoch(self, loader: DataLoader) -> float:
        """One pass over the loader's (images, targets); returns the mean of the batches' losses."""
        self.model.train()
        total = torch.zeros((), device=self.precision.device)
        loader.sampler.epoch = self.progress.epoch
        batches = 0
        for images, targets in progress(loader, f"epoch {self.progress.epoch + 1}/{self.schedule.epochs}"):
            loss = self._step(images, targets.to(self.precision.device, non_blocking=True))
            total += loss
            batches += 1
        return float(total) / batches

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        with self.precision.autocast():
            logits = self.model(to_input(images, self.precision.device))
        loss = self.criterion(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything that continuing needs; tensors and plain values only."""
        cuda = torch.cuda.get_rng_state_all() if self.precision.device.type == "cuda" else []
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(self.progress).copy(),
            "random": {"torch": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"]["torch"])
        if self.precision.device.type == "cuda" and len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])


def fit(
    trainer: Trainer, loader: DataLoader, validate: Callable[[nn.Module], tuple[float, dict[str, float]]], run: Run
) -> None:
    """Train until the schedule ends or the validation score stops rising, continuing from the run's checkpoint.

    Args:
        trainer: the model and what belongs to it.
        loader: batches of (uint8 images [B, H, W, 3], targets), its sampler with an `epoch`.
        validate: scores the model: (score to select the best weights by, columns for the history). The first three
            columns are printed.
        run: where history, events, `last.pth` (everything) and `best.pth` (weights of the best epoch) go.

    Raises:
        UserError: the loss is no longer finite, or the checkpoint cannot be read.
    """
    last = run.path("last.pth")
    if last.is_file():
        trainer.load_state(load_file(last))
        log.info("continuing %s after epoch %d", run.folder, trainer.progress.epoch)
    history = [row for row in run.history() if row["epoch"] <= trainer.progress.epoch]
    while not trainer.progress.finished(trainer.schedule):
        start, lr = time.perf_counter(), trainer.scheduler.get_last_lr()[0]
        loss = trainer.train_one_epoch(loader)
        seconds = time.perf_counter() - start
        done = trainer.progress
        if not (np.isfinite(loss) and all(bool(tensor.isfinite().all()) for tensor in trainer.model.parameters())):
            what = "the weights are not finite" if np.isfinite(loss) else f"the loss is {loss}"
            raise UserError(
                f"{what} in epoch {done.epoch + 1}: start afresh (-c 0) with a lower --lr or --amp off"
                + (f"; {last} holds the weights after epoch {done.epoch}" if done.epoch else "")
            )
        score, columns = validate(trainer.model)
        done.epoch += 1
        if score > done.best_score:
            done.best_score, done.best_epoch = score, done.epoch
            save_checkpoint({"model": trainer.model.state_dict(), "progress": vars(done).copy()}, run.path("best.pth"))
        row = {"epoch": done.epoch, "lr": lr, "train_loss": loss, **columns}
        row |= alphas(trainer.model)
        row |= {
            "train_seconds": round(seconds, 3),
            "images_per_second": round(len(loader) * loader.batch_size / seconds, 2),
        }
        history.append(row)
        run.write_history(history)
        run.write_events(row, done.epoch)
        save_checkpoint(trainer.state(), last)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in [("loss", loss), *columns.items()][:4])
        star = "  *" if done.best_epoch == done.epoch else ""
        log.info("epoch %d/%d  %s  %.0f s%s", done.epoch, trainer.schedule.epochs, shown, seconds, star)
    if trainer.progress.epoch < trainer.schedule.epochs:
        log.info("stopped early: best epoch was %d", trainer.progress.best_epoch)
    run.close()


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
        except RuntimeError as error:  # torch closes its archive after Ctrl-C, and fails at that
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise


def load_best(model: nn.Module, folder: Path) -> int:
    """Put the weights of a run's best epoch into the model; returns that epoch, counted from 1."""
    checkpoint = load_file(folder / "best.pth")
    model.load_state_dict(checkpoint["model"])
    return checkpoint["progress"]["best_epoch"]


@torch.inference_mode()
def predict(
    model: nn.Module, images: Iterable[np.ndarray], precision: Precision, batch_size: int
) -> Iterator[np.ndarray]:
    """Probabilities for images uint8 [H, W, 3] of one size, in their order.

    Yields float32 arrays of the logits' shape without the batch axis, softmax over classes.
    """
    model.eval()
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        with precision.autocast():
            logits = model(to_input(torch.from_numpy(np.stack(batch)), precision.device))
        yield from logits.float().softmax(dim=1).cpu().numpy()
