"""The sum of an ARL block, `F + s + α · softmax(F) ⊙ s`, with its gradients, in few passes through memory.

Plain PyTorch operations give the same (`nets.arl.ARLAttention` while `torch.compile` traces it); these are faster.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nets.fast import kernel

POSITIONS, CHANNELS = 1, 2  # axes of [B, H·W, C]
CHUNK = 2**19  # values that are worked on at a time: 2 MB in float32, of the order of a core's cache


def attended_sum(residual: Tensor, shortcut: Tensor, alpha: Tensor, axis: int, relu: bool) -> Tensor:
    """F, s [B, C, H, W] and α (one number) → `F + s + α · softmax(F) ⊙ s`, or its ReLU, of F's shape and dtype.

    axis: of the softmax, POSITIONS or CHANNELS. Computed in float32 or wider and rounded once.
    """
    residual, shortcut = _dense(residual), _dense(shortcut)
    if axis == POSITIONS and residual.shape == shortcut.shape and residual.numel() > 0:
        if _compiled_takes(residual, shortcut):
            return _FusedSum.apply(residual, shortcut, alpha, relu)
        if _triton_takes(residual) and (triton_sum := kernel.load_triton(residual.device)):
            return triton_sum.apply(residual, shortcut, alpha, relu)
    return _AttendedSum.apply(residual, shortcut, alpha, axis, relu)


def softmax(residual: Tensor, axis: int) -> Tensor:
    """The softmax alone: [B, C, H, W] → the same shape, in float32 or wider; by plain operations."""
    weights = _positions(_wide(residual)).softmax(dim=axis)
    return weights.view(residual.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


class _FusedSum(torch.autograd.Function):
    """As `_AttendedSum` with softmax over positions, in bfloat16 or float32 on a CPU: compiled (arl.c)."""

    @staticmethod
    def forward(ctx, residual: Tensor, shortcut: Tensor, alpha: Tensor, relu: bool) -> Tensor:
        batch, channels, height, width = residual.shape
        given = residual
        residual, shortcut = (x.contiguous(memory_format=torch.channels_last) for x in (residual, shortcut))
        out = torch.empty_like(residual)
        highest, inverse = residual.new_empty((2, batch, channels), dtype=torch.float32)
        pointers = [x.data_ptr() for x in (residual, shortcut, out, highest, inverse)]
        kernel.load(residual.dtype).attended_sum(*pointers, alpha.item(), relu, batch, height * width, channels)
        ctx.save_for_backward(residual, shortcut, alpha, highest, inverse)
        ctx.relu = relu
        return out if residual is given else out.contiguous()  # F's layout, by which later convolutions round

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
        kernel.load(residual.dtype).attended_sum_gradients(*inputs, alpha.item(), ctx.relu, *outputs, *sizes)
        return of_residual, of_shortcut, of_alpha.sum(), None


def _compiled_takes(residual: Tensor, shortcut: Tensor) -> bool:
    fits = residual.device.type == "cpu" and residual.dtype == shortcut.dtype and residual.shape[1] % kernel.LANES == 0
    return fits and kernel.load(residual.dtype) is not None


def _triton_takes(residual: Tensor) -> bool:
    return residual.device.type == "cuda" and torch.version.hip is None and residual.dtype != torch.float64


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


def _dense(x: Tensor) -> Tensor:
    """x, copied where its memory is in neither usual order: `_positions` would then be a copy, not a view."""
    channels_last = torch.channels_last
    usual = x.is_contiguous() or x.is_contiguous(memory_format=channels_last)
    return x if usual else x.contiguous(memory_format=channels_last)


def _positions(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, H·W, C], a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same few images of each of the tensors [B, …], in turn; all at once on a GPU."""
    first = tensors[0]
    images = max(1, CHUNK // max(1, first[0].numel())) if first.device.type == "cpu" else len(first)
    return zip(*(tensor.split(images) for tensor in tensors), strict=True)
