"""ARL-CNN 14/18/50: residual networks whose shortcut is re-weighted by attention that the block learns by itself.

Zhang, Xie, Xia, Shen, "Attention Residual Learning for Skin Lesion Classification", IEEE TMI 38(9), 2019,
doi 10.1109/TMI.2019.2893944.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nets import kernel
from nets.resnet import CLASSES, LAYOUTS, ResNet, resnet

ATTENTION = ("spatial", "channel", "none")
ALPHA = ("learn", "fixed", "0")
ALPHA_START = 0.001  # of the paper
AXES = {"spatial": 1, "channel": 2}  # of [B, H·W, C]
CHUNK = 2**19  # values that are worked on at a time: 2 MB in float32, of the order of a core's cache


class _FusedSum(torch.autograd.Function):
    """As `_AttendedSum` with softmax over positions, in bfloat16 on a CPU: compiled (arl.c)."""

    @staticmethod
    def forward(ctx, residual: Tensor, shortcut: Tensor, alpha: Tensor, relu: bool) -> Tensor:
        batch, channels, height, width = residual.shape
        residual, shortcut = (x.contiguous(memory_format=torch.channels_last) for x in (residual, shortcut))
        out = torch.empty_like(residual)
        highest, inverse = residual.new_empty((2, batch, channels), dtype=torch.float32)
        pointers = [x.data_ptr() for x in (residual, shortcut, out, highest, inverse)]
        kernel.load().attended_sum(*pointers, alpha.item(), relu, batch, height * width, channels)
        ctx.save_for_backward(residual, shortcut, alpha, highest, inverse)
        ctx.relu = relu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        residual, shortcut, alpha, highest, inverse = ctx.saved_tensors
        batch, channels, height, width = residual.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        inputs = [x.data_ptr() for x in (residual, shortcut, gradient, highest, inverse)]
        of_residual, of_shortcut, of_alpha = (torch.empty_like(x) for x in (residual, shortcut, highest))
        outputs = [x.data_ptr() for x in (of_residual, of_shortcut, of_alpha)]
        sizes = (batch, height * width, channels)
        kernel.load().attended_sum_gradients(*inputs, alpha.item(), ctx.relu, *outputs, *sizes)
        return of_residual, of_shortcut, of_alpha.sum(), None


def _fusable(residual: Tensor, shortcut: Tensor, over: str) -> bool:
    cpu = residual.device.type == "cpu" and residual.dtype == shortcut.dtype == torch.bfloat16
    fits = residual.shape == shortcut.shape and residual.shape[1] % kernel.LANES == 0 and residual.numel() > 0
    return cpu and fits and over == "spatial" and kernel.load() is not None


class _AttendedSum(torch.autograd.Function):
    """`F + s + α · softmax(F) ⊙ s`, its ReLU if wanted, and the gradients, a few images at a time on a CPU.

    As plain operations it makes a dozen passes through memory over float32 copies of whole batches, which cost a
    ResNet-50 step half as much again. Here the copies stay in the cache, and what is kept for the backward pass is the
    softmax in F's own dtype, and with a ReLU what it puts out, which the convolution after it keeps as well.
    """

    @staticmethod
    def forward(ctx, residual: Tensor, shortcut: Tensor, alpha: Tensor, axis: int, relu: bool) -> Tensor:
        out = torch.empty_like(residual)
        kept = torch.empty_like(_positions(residual))  # [B, H·W, C]
        for f, s, r, y in _chunks(_positions(residual), _positions(shortcut), kept, _positions(out)):
            torch.softmax(f, axis, out=r)  # in float32 inside
            f, s = _wide(f), _wide(s)
            y.copy_((_wide(r) * alpha).mul_(s).add_(s).add_(f))
            if relu:
                y.relu_()
        ctx.save_for_backward(kept, shortcut, alpha, out if relu else None)
        ctx.axis = axis
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With p = g ⊙ s ⊙ R and its sums P: F gets g + α (p − R P), s gets g + α g ⊙ R, α the sum of p.

        g is the gradient, 0 where the ReLU put out 0.
        """
        kept, shortcut, alpha, out = ctx.saved_tensors
        of_residual, of_shortcut = torch.empty_like(shortcut), torch.empty_like(shortcut)
        of_alpha = torch.zeros_like(alpha)
        put_out = shortcut if out is None else out  # not looked at without a ReLU
        sides = [_positions(each) for each in (gradient, put_out, shortcut, of_residual, of_shortcut)]
        for r, g, y, s, df, ds in _chunks(kept, *sides):
            if out is not None:
                g = g.masked_fill(y <= 0, 0)
            r, g, s = _wide(r), _wide(g), _wide(s)
            p = g * r
            ds.copy_((p * alpha).add_(g))
            p.mul_(s)
            sums = p.sum(ctx.axis, keepdim=True)
            of_alpha += sums.sum()
            df.copy_(p.addcmul_(r, sums, value=-1).mul_(alpha).add_(g))
        return of_residual, of_shortcut, of_alpha, None, None


def _positions(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, H·W, C], a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same few images of each of the tensors [B, …], in turn; all at once on a GPU."""
    first = tensors[0]
    images = max(1, CHUNK // max(1, first[0].numel())) if first.device.type == "cpu" else len(first)
    return zip(*(tensor.split(images) for tensor in tensors), strict=True)


class ARLAttention(nn.Module):
    """The sum of an ARL block, `F(x) + s + α · R(F(x)) ⊙ s`, and the ReLU after it where there is one.

    R is a softmax over the H×W positions of each channel ("spatial", the paper's), or over the channels of each
    position ("channel", what two public codes do). It has no weights but α, one scalar.

    The sum is made in float32 and rounded once, also under autocast: added to an F(x) + s that is rounded to
    bfloat16 already, a term of less than half its last bit would always be lost. The bfloat16 result still has an
    error of its own of up to 1/512, beside which the term is small while α is near its start.

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
        weights = _positions(_wide(residual)).softmax(dim=AXES[self.over])
        return weights.view(residual.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)

    def forward(self, residual: Tensor, shortcut: Tensor, relu: bool = False) -> Tensor:
        """F(x) and s, both [B, C, H, W] → their attended sum, of the same shape and dtype as F(x).

        With `relu` it is the sum's ReLU: a pass through memory less, forward and backward, than one after it.
        """
        if self.off:
            total = residual + shortcut
            return total.relu_() if relu else total
        if torch.compiler.is_compiling():  # which fuses by itself, and would unroll the chunks
            with torch.autocast(residual.device.type, enabled=False):
                total = (residual + (1 + self.alpha * self.weights(residual)) * shortcut).to(residual.dtype)
                return total.relu() if relu else total
        if _fusable(residual, shortcut, self.over):
            return _FusedSum.apply(residual, shortcut, self.alpha, relu)
        return _AttendedSum.apply(residual, shortcut, self.alpha, AXES[self.over], relu)

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
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return resnet(layout, num_classes, attention=attention_factory(attention, alpha))


def attention_factory(attention: str, alpha: str | float) -> Callable[[], ARLAttention] | None:
    """What builds the attention of each block; None for "none". Options and errors as for `arl`."""
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
    if str(alpha) not in ALPHA:
        raise ValueError(f"alpha must be one of {', '.join(ALPHA)}, got {alpha!r}")
    return None if attention == "none" else lambda: ARLAttention(attention, str(alpha))
