"""Training on any device: the step, the pass over an epoch, and the state that a checkpoint keeps."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import DataLoader

from utils import UserError, distributed
from utils.data.loader import to_input
from utils.device import Precision, keep_freed_memory
from utils.logger import progress
from utils.loss import Loss
from utils.model.graphs import GraphedStep, Record

HALVED_EVERY = 30  # epochs, of the ARL-CNN paper's schedule
CHECK_EVERY = 20  # steps on a GPU: to see whether they were finite waits for it


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls, and when training ends."""

    epochs: int  # of the whole schedule
    lr: float  # at the start
    weight_decay: float
    patience: int  # epochs without a better validation score after which training stops
    optimizer: str = "adamw"  # the rate falling to 0 along a half cosine; or "sgd" (0.9), halved every 30 epochs

    def build(self, model: nn.Module, steps: int, device: torch.device) -> tuple[Optimizer, LRScheduler]:
        """The optimizer over the model's parameters and its scheduler, to be stepped `steps` times an epoch."""
        options = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "fused": device.type in ("cpu", "cuda"),  # one pass over the parameters in place of a dozen
        }
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **options)
            for parameter in model.parameters():  # torch leaves them unset when the first step is skipped on a GPU
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
            return optimizer, StepLR(optimizer, HALVED_EVERY * steps, gamma=0.5)
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        return optimizer, CosineAnnealingLR(optimizer, steps * self.epochs)


@dataclass
class Progress:
    """How far a run has come; goes into its checkpoint and back."""

    epoch: int = 0  # epochs done
    step: int = 0  # of the epoch in progress: steps done,
    loss: float = 0.0  # sum of their losses,
    lr: float = 0.0  # learning rate at its first step
    best_epoch: int = 0  # counted from 1, 0 before the first
    best_score: float = float("-inf")
    skipped: int = 0  # steps without an update because the loss or gradient was not finite (in float16: the loss)
    uncounted: int = 0  # those of the epoch in progress, whose losses are not in `loss`

    def finished(self, schedule: Schedule) -> bool:
        return self.epoch >= schedule.epochs or self.epoch - self.best_epoch >= schedule.patience


class NotFinite(Exception):
    """The loss or gradient of a step is not finite; its images are `indices` of the training set."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__("the loss or its gradient is not finite")
        self.indices = indices


MicroBatch = tuple[Tensor, Tensor]  # images uint8 [B, H, W, 3], targets [B, …]


class Trainer:
    """A model with all that its training carries along: optimizer, schedule, scaler, progress.

    The optimizer is built once, over the parameters of the very model that is trained; a checkpoint is loaded into
    both, so that a continued run goes on as if it had never stopped. Several processes (`utils.distributed`) hold the
    same weights and average their gradients.

    Args:
        model: images → logits.
        criterion: (logits, targets) → mean loss, over what its `batch_weight(targets)` says.
        schedule: learning rate and length.
        steps: of an epoch.
        precision: device and number type.
        on_nan: "stop" raises NotFinite at a gradient that is not finite, "skip" leaves its step out and counts it.
        record: where steps are recorded once and replayed, what does it (`utils.model.graphs`).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        schedule: Schedule,
        steps: int,
        precision: Precision,
        on_nan: str = "stop",
        record: Record | None = None,
    ) -> None:
        if precision.device.type == "cpu":
            keep_freed_memory()
        elif not torch.are_deterministic_algorithms_enabled():
            torch.backends.cudnn.benchmark = True  # all batches are of one size; does nothing without CUDA
        self.precision, self.schedule, self.on_nan = precision, schedule, on_nan
        self.model = model.to(precision.device, memory_format=torch.channels_last)
        self.criterion = criterion.to(precision.device)
        self.optimizer, self.scheduler = schedule.build(self.model, steps, precision.device)
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
        self.progress, self.steps = Progress(), steps
        self._parallel = distributed.parallel(self.model, precision.device)
        self._record = record
        self._update = self._updating()

    def train_one_epoch(self, loader: DataLoader, should_stop: Callable[[], bool] = lambda: False) -> float | None:
        """The rest of this epoch's pass over the loader; returns the mean of the steps' losses.

        `should_stop` is called after each step; when true, None is returned, and the same call goes on from there.

        Raises:
            NotFinite: as `on_nan` says.
            UserError: a step does not fit into the GPU's memory.
        """
        self.model.train()
        done, batches = self.progress, loader.batch_sampler
        if done.step == 0:
            done.lr = self.scheduler.get_last_lr()[0]
        total = torch.tensor(done.loss, device=self.precision.device)
        batches.epoch, batches.start = done.epoch, done.step
        micro_batches = iter(progress(loader, f"epoch {done.epoch + 1}/{self.schedule.epochs}"))

        flags: list[Tensor] = []  # of the last steps, whether they were finite

        def look() -> None:
            first = done.step - len(flags)
            for step, finite in enumerate(torch.stack(flags).tolist() if flags else [], start=first):
                if not finite and self.on_nan == "stop":
                    raise NotFinite(batches.indices(step))
                done.skipped += not finite
                done.uncounted += not finite
            flags.clear()

        for step in range(done.step, batches.steps):
            loss, finite = self.step(list(islice(micro_batches, batches.accumulate)))
            total += torch.where(finite, loss, 0)
            flags.append(finite)
            done.step = step + 1
            if self.precision.device.type == "cpu" or len(flags) == CHECK_EVERY:
                look()
            if distributed.any_process(should_stop()):
                break
        look()
        done.loss = float(distributed.mean(total))
        if done.step < batches.steps:
            return None
        counted = batches.steps - done.uncounted
        return done.loss / counted if counted else float("nan")

    def step(self, micro_batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """One update of the weights by the gradient of a batch that comes in micro-batches.

        Returns the mean loss and whether it (and, without a loss scaler, the gradient) is finite; where it is not,
        the weights stay as they are (and where steps may be left out, the running statistics).

        Raises:
            UserError: micro-batches of one image where batch norm needs more, or too large for the GPU's memory.
        """
        try:
            results = self._update(micro_batches)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise UserError(
                "batch norm needs more than one value per channel, and one image of this size has one: take a larger "
                "--batch-size or --size, or a smaller --accumulate"
            ) from error
        except torch.OutOfMemoryError as error:
            images, parts = len(micro_batches[0][0]), len(micro_batches)
            fitting = [n for n in range(2 * parts, images * parts + 1) if images * parts % n == 0]
            way = f"--accumulate {fitting[0]} goes on with this run" if fitting else "take a smaller --size"
            where = f"into the memory of {self.precision.device}"
            raise UserError(f"a micro-batch of {images} does not fit {where}: {way}") from error
        self.scheduler.step()
        return results

    def _updating(self) -> Callable[[Sequence[MicroBatch]], tuple[Tensor, Tensor]]:
        if self._record is None:
            return self._step
        return GraphedStep(self._step, self.optimizer, self.precision.device, self._record)

    def _step(self, micro_batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        skips = self.on_nan == "skip" or self.scaler.is_enabled()
        before = [buffer.clone() for buffer in self.model.buffers()] if skips else []
        device = self.precision.device
        loss = torch.zeros((), device=device)
        micro_batches = [(images, targets.to(device, non_blocking=True)) for images, targets in micro_batches]
        weights = torch.stack([self.criterion.batch_weight(targets) for _, targets in micro_batches])
        shares = weights / distributed.mean(weights.sum())  # gradients are averaged over processes, not added
        for number, (images, targets) in enumerate(micro_batches, start=1):
            averages = number == len(micro_batches) or self._parallel is self.model  # over processes, once a step
            with nullcontext() if averages else self._parallel.no_sync():
                with self.precision.autocast():
                    logits = self._parallel(to_input(images, device))
                part = self.criterion(logits, targets) * shares[number - 1]
                self.scaler.scale(part).backward()
            loss += part.detach()
        finite = loss.isfinite()
        if self.scaler.is_enabled():  # it checks the gradients itself, and skips steps while it finds a scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            finite = finite & torch.nn.utils.get_total_norm(gradients).isfinite()
            if self.optimizer.defaults["fused"]:  # its kernel decides, so that nothing waits for a GPU
                self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()
                self.optimizer.step()
            elif finite:
                self.optimizer.step()
        if before:  # a NaN in running statistics would stay
            for buffer, old in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
        return loss, finite

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
        """Go on from what `state` returned. ValueError when it is another model's or schedule's."""
        done = Progress(**state["progress"])
        steps = done.epoch * self.steps + done.step
        if done.epoch > self.schedule.epochs or done.step > self.steps or state["scheduler"]["last_epoch"] != steps:
            raise ValueError(f"epoch {done.epoch}, step {done.step}: not of this schedule")
        self.model.load_state_dict(state["model"])
        # The optimizer's own options stay: the run may have begun on another kind of device.
        groups = zip(self.optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"], strict=True)
        groups = [own | {"lr": kept["lr"]} for own, kept in groups]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty from a machine that trained without one
            self.scaler.load_state_dict(state["scaler"])
        self.progress, self._update = done, self._updating()
        torch.set_rng_state(state["random"]["torch"])
        if self.precision.device.type == "cuda" and len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
