"""ARL-CNN 14/18/50: residual networks whose shortcut is re-weighted by attention that the block learns by itself.

Zhang, Xie, Xia, Shen, "Attention Residual Learning for Skin Lesion Classification", IEEE TMI 38(9), 2019,
doi 10.1109/TMI.2019.2893944.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from nets import ALPHA, ATTENTION
from nets.fast.attended_sum import CHANNELS, POSITIONS, attended_sum, softmax
from nets.resnet import CLASSES, ResNet, resnet

ALPHA_START = 0.001  # of the paper
AXES = {"spatial": POSITIONS, "channel": CHANNELS}  # of the softmax


class ARLAttention(nn.Module):
    """The sum of an ARL block, `F(x) + s + α · R(F(x)) ⊙ s`, and the ReLU after it where there is one.

    R is a softmax over the H×W positions of each channel ("spatial", the paper's), or over the channels of each
    position ("channel", what two public codes do). It has no weights but α, one scalar.

    The sum is computed in float32 and rounded once, also under autocast: a small term that is added to an already
    rounded bfloat16 sum would be lost. Even so the output's own rounding, up to 1/512 of it, exceeds the term while α
    is near 0.001.

    Args:
        over: "spatial" or "channel".
        alpha: "learn" (a parameter that starts at 0.001), "fixed" (stays at 0.001) or "0" (the term vanishes and
            the block is a plain residual block, bit for bit).
    """

    def __init__(self, over: str = "spatial", alpha: str = "learn") -> None:
        super().__init__()
        self.over = over
        self.off = alpha == "0"
        start = torch.tensor(0.0 if self.off else ALPHA_START)
        if alpha == "learn":
            self.alpha = nn.Parameter(start)
        else:
            self.register_buffer("alpha", start)

    def weights(self, residual: Tensor) -> Tensor:
        """R(F(x)): residual [B, C, H, W] → attention of the same shape in [0, 1], float32 or wider.

        Sums to 1 over H×W for each channel ("spatial") or over C at each position ("channel").
        """
        return softmax(residual, AXES[self.over])

    def forward(self, residual: Tensor, shortcut: Tensor, relu: bool = False) -> Tensor:
        """F(x) and s, both [B, C, H, W] → their attended sum, of the same shape and dtype as F(x).

        With `relu` it is the sum's ReLU: a pass through memory less, forward and backward, than one after it.
        """
        if self.off:
            total = residual + shortcut
            return total.relu_() if relu else total
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():  # would unroll the chunks
            with torch.autocast(residual.device.type, enabled=False):
                total = (residual + (1 + self.alpha * self.weights(residual)) * shortcut).to(residual.dtype)
                return total.relu() if relu else total
        return attended_sum(residual, shortcut, self.alpha, AXES[self.over], relu)

    def extra_repr(self) -> str:
        return f"over={self.over}, alpha={self.alpha.item():g}"


def arl(
    layout: str,
    num_classes: int | None = CLASSES,
    attention: str = "spatial",
    alpha: str | float = "learn",
) -> ResNet:
    """ARL-CNN: a ResNet with an `ARLAttention` in every block.

    Args:
        layout: "14" (bottlenecks 1, 1, 1, 1), "18" (basic blocks 2, 2, 2, 2) or "50" (bottlenecks 3, 4, 6, 3).
        num_classes: outputs; None builds an encoder.
        attention: softmax over "spatial" positions, over "channel"s, or "none" (a plain ResNet).
        alpha: "learn", "fixed" or 0; see `ARLAttention`.

    Raises:
        ValueError: an attention or alpha that is not offered.
    """
    return resnet(layout, num_classes, attention=attention_factory(attention, alpha))


arl14, arl18, arl50 = (partial(arl, layout) for layout in ("14", "18", "50"))


def attention_factory(attention: str, alpha: str | float) -> Callable[[], ARLAttention] | None:
    """What builds the attention of each block; None for "none". Options and errors as for `arl`."""
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
    if str(alpha) not in ALPHA:
        raise ValueError(f"alpha must be one of {', '.join(ALPHA)}, got {alpha!r}")
    return None if attention == "none" else lambda: ARLAttention(attention, str(alpha))
