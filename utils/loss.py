"""Losses on logits with class indices as target: segmentation ([B, C, H, W] and [B, H, W]) and, but for Dice,
classification ([B, C] and [B]).

All compute in at least float32, whatever the autocast state and the logits' dtype, on the logits' device, and
return a scalar. The softmax is theirs: no activation goes before them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA = 2  # of the focal loss
SMOOTH = 1.0  # of Dice, which is 0/0 on empty masks without it


class Loss(nn.Module):
    """The loss called name: "ce" or "focal"; "dice_ce" or "dice_focal" are Dice + one of these, 1:1.

    weight: a positive number for each class, or None; Dice takes none. It is a copy; nothing writes to it.
    """

    def __init__(self, name: str, weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.with_dice = name.startswith("dice")
        self.other = focal if name.endswith("focal") else cross_entropy
        self.register_buffer("weight", None if weight is None else torch.tensor(weight, dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits: float [B, C, ...], target: class indices [B, ...], of any integer dtype. Returns a scalar.

        ValueError when the shapes do not fit. An index outside 0…C-1 is an IndexError or RuntimeError of torch on the
        CPU, a device-side assertion on CUDA.
        """
        if target.shape != logits.shape[:1] + logits.shape[2:]:
            expected = "logits [B, C, ...] and target [B, ...]"
            raise ValueError(f"expected {expected}, got {tuple(logits.shape)} and {tuple(target.shape)}")
        logits, target = logits.to(torch.promote_types(logits.dtype, torch.float32)), target.long()
        loss = self.other(logits, target, None if self.weight is None else self.weight.to(logits.dtype))
        return dice(logits, target) + loss if self.with_dice else loss

    def batch_weight(self, target: Tensor) -> Tensor:
        """What the loss is a mean over, float32 []: by shares of it, losses of micro-batches add up to the batch's."""
        if self.weight is None:
            return target.new_full((), target.numel(), dtype=torch.float32)
        return self.weight[target.long()].sum()


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted cross-entropy: Σ w_t · -log p_t / Σ w_t over all targets t, as in torch."""
    # torch would skip targets of -100; an index that is no class is a fault here, as in the other losses.
    return F.cross_entropy(logits, target, weight, ignore_index=-(2**63))


def focal(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002), softmax form: Σ w_t · -(1 - p_t)^γ log p_t / Σ w_t, γ = 2.

    Divided by the sum of the weights, not of the modulated ones, so easy batches have a small loss.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)  # [B, ...]
    loss = -((1 - log_p.exp()) ** GAMMA) * log_p
    if weight is None:
        return loss.mean()
    weight = weight[target]
    return (weight * loss).sum() / weight.sum()


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the softmax probabilities, averaged over images and classes but the background (class 0).

    Milletari et al. 2016 (arXiv:1606.04797), but with plain sums in the denominator where they have sums of squares:
    Dice = (2 Σ p·g + 1) / (Σ p + Σ g + 1), sums over one image's pixels, g = 1 where the target is that class. Empty
    mask (Σ g = 0): Dice = 1 / (Σ p + 1), so predicting nothing there costs nothing, and all predicted probability
    costs. logits [B, C, H, W], C ≥ 2.
    """
    probability = logits.softmax(dim=1)  # [B, C, H, W]
    truth = torch.zeros_like(probability).scatter_(1, target.unsqueeze(1), 1.0)
    overlap = (probability * truth).sum(dim=(2, 3))  # [B, C]
    total = (probability + truth).sum(dim=(2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH))[:, 1:].mean()


def loss_of(criterion: nn.Module, probabilities: np.ndarray, target: np.ndarray) -> float:
    """The loss of probabilities [B, C, ...] in place of logits, as after a softmax; those below 1e-7 count as that.

    target: class indices [B, ...].
    """
    logits = torch.tensor(probabilities).clamp_min(1e-7).log()
    return float(criterion(logits, torch.tensor(target)))
