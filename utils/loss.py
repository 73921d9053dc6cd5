"""Losses on logits with class indices as target: segmentation ([B, C, H, W] and [B, H, W]) and, but for Dice,
classification ([B, C] and [B]).

All compute in at least float32, whatever the autocast state and the logits' dtype, on the logits' device, and
return a scalar. The softmax is theirs: no activation goes before them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import UserError

LOSSES = ("dice_ce", "focal", "dice_focal", "ce")


class _Loss(nn.Module):
    """Checks and casts once; subclasses say what to compute."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits: float [B, C, ...], target: class indices [B, ...], of any integer dtype. Returns a scalar.

        ValueError when the shapes do not fit or the target is not of integers. An index outside 0…C-1 is an
        IndexError or RuntimeError of torch on the CPU, a device-side assertion on CUDA.
        """
        if logits.ndim < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
            expected = "logits [B, C, ...] and target [B, ...]"
            raise ValueError(f"expected {expected}, got {tuple(logits.shape)} and {tuple(target.shape)}")
        if target.is_floating_point():
            raise ValueError(f"target must hold class indices (integers), got {target.dtype}")
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits.to(torch.promote_types(logits.dtype, torch.float32)), target.long())

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class _WeightedLoss(_Loss):
    """Keeps its own copy of the class weights; nothing writes to it after construction."""

    def __init__(self, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.float32).detach().clone()
            if weight.ndim != 1 or not bool(((weight > 0) & weight.isfinite()).all()):
                raise UserError(f"class weights {weight.tolist()}: expected one positive number a class")
        self.register_buffer("weight", weight)

    def weight_for(self, logits: Tensor) -> Tensor | None:
        """The weights [C] in the logits' dtype; UserError when their number is not the number of classes."""
        if self.weight is None:
            return None
        given, classes = len(self.weight), logits.shape[1]
        if given != classes:
            raise UserError(f"{given} class weights for {classes} classes: give one weight for each class")
        return self.weight.to(logits.dtype)

    def batch_weight(self, target: Tensor) -> Tensor:
        """What the loss is a mean over, float32 []: by shares of it, losses of micro-batches add up to the batch's."""
        if self.weight is None:
            return target.new_full((), target.numel(), dtype=torch.float32)
        return self.weight[target.long()].sum()


class CrossEntropyLoss(_WeightedLoss):
    """Weighted cross-entropy: Σ w_t · -log p_t / Σ w_t over all targets t, as in torch."""

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        # torch would skip targets of -100; an index that is no class is a fault here, as in the other losses.
        return F.cross_entropy(logits, target, self.weight_for(logits), ignore_index=-(2**63))


class FocalLoss(_WeightedLoss):
    """Focal loss (Lin et al. 2017, arXiv:1708.02002), softmax form: Σ w_t · -(1 - p_t)^γ log p_t / Σ w_t.

    gamma ≥ 0; 0 gives the weighted cross-entropy. weight: a positive number for each class (the α) or None.
    Divided by the sum of the weights, not of the modulated ones, so easy batches have a small loss.
    """

    def __init__(self, gamma: float = 2.0, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(weight)
        if not 0 <= gamma < math.inf:
            raise UserError(f"focal gamma {gamma}: expected a number of 0 or more")
        self.gamma = gamma

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)  # [B, ...]
        # At p = 1, (1 - p)^γ has an infinite derivative for γ < 1 that would meet log p = 0 as NaN, so the base
        # stays above zero.
        miss = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(miss**self.gamma) * log_p
        weight = self.weight_for(logits)
        if weight is None:
            return loss.mean()
        weight = weight[target]
        return (weight * loss).sum() / weight.sum()


class DiceLoss(_Loss):
    """1 - soft Dice of the softmax probabilities, averaged over images and classes: Milletari et al. 2016
    (arXiv:1606.04797), but with plain sums in the denominator where they have sums of squares.

    Dice = (2 Σ p·g + smooth) / (Σ p + Σ g + smooth), sums over one image's pixels, g = 1 where the target
    is that class. logits [B, C, H, W], C ≥ 2. The background (class 0) is left out unless include_background.
    Empty mask (Σ g = 0): Dice = smooth / (Σ p + smooth), so predicting nothing there costs nothing, and all
    predicted probability costs; smooth > 0 keeps this defined.
    """

    def __init__(self, smooth: float = 1.0, include_background: bool = False) -> None:
        super().__init__()
        if not 0 < smooth < math.inf:
            raise ValueError(f"smooth must be positive (Dice is 0/0 on empty masks without it), got {smooth}")
        self.smooth = smooth
        self.first_class = 0 if include_background else 1

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim != 4 or logits.shape[1] < 2:
            raise ValueError(f"Dice needs logits [B, C, H, W] with C of 2 or more, got {tuple(logits.shape)}")
        probability = logits.softmax(dim=1)  # [B, C, H, W]
        truth = torch.zeros_like(probability).scatter_(1, target.unsqueeze(1), 1.0)
        overlap = (probability * truth).sum(dim=(2, 3))  # [B, C]
        total = (probability + truth).sum(dim=(2, 3))
        dice = (2 * overlap + self.smooth) / (total + self.smooth)
        return 1 - dice[:, self.first_class :].mean()


class DiceWith(_Loss):
    """Dice + another loss, 1:1; class weights and gamma act on the other one."""

    def __init__(self, other: _Loss) -> None:
        super().__init__()
        self.dice, self.other = DiceLoss(), other

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.dice.compute(logits, target) + self.other.compute(logits, target)


def create_loss(name: str, *, class_weights: Sequence[float] | Tensor | None = None, gamma: float = 2.0) -> nn.Module:
    """The loss called name, one of `LOSSES`; gamma is used by the focal ones.

    UserError for an unknown name, weights that are not positive numbers, or a negative gamma; at the
    first batch when there are not as many weights as classes.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}: choose one of {', '.join(LOSSES)}")
    other = FocalLoss(gamma, class_weights) if name.endswith("focal") else CrossEntropyLoss(class_weights)
    return DiceWith(other) if name.startswith("dice") else other


def loss_of(criterion: nn.Module, probabilities: np.ndarray, target: np.ndarray) -> float:
    """The loss of probabilities [B, C, ...] in place of logits, as after a softmax; those below 1e-7 count as that.

    target: class indices [B, ...].
    """
    logits = torch.tensor(probabilities).clamp_min(1e-7).log()
    return float(criterion(logits, torch.tensor(target)))
