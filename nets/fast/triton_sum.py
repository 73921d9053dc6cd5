"""The sum of an ARL block on NVIDIA GPUs, `F + s + α · softmax(F) ⊙ s`, with its gradients: four Triton kernels.

Each program has LANES channels, side by side in memory, of one part of an image's positions: a small batch too keeps
every multiprocessor busy. Forward, one kernel finds each part's maximum and sum, and one reads F again and puts out the
sum; backward, one finds the products' sums that softmax's gradient needs, and one puts out the gradients. Parts are
added up in order: the same inputs give the same bits. Nothing is brought to the host, so that a CUDA graph can capture
it. Numbers are float32 and rounded once, as in arl.c.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2048  # values that a program works on at a time: 16 for each thread of its four warps
PROGRAMS = 1024  # wanted at once: 132 multiprocessors hold some eight each
MOST = tl.constexpr(32)  # parts of an image's positions, at most
LOWEST = tl.constexpr(-3.0e38)  # below all values, and -∞ - LOWEST is no NaN


class TritonSum(torch.autograd.Function):
    """As `attended_sum.attended_sum` with softmax over positions: F, s bfloat16, float16 or float32; channels last."""

    @staticmethod
    def forward(ctx, residual: Tensor, shortcut: Tensor, alpha: Tensor, relu: bool) -> Tensor:
        residual, shortcut = (x.contiguous(memory_format=torch.channels_last) for x in (residual, shortcut))
        out, grid = torch.empty_like(residual), _Grid(residual)
        parts = residual.new_empty((2, len(residual), grid.splits, residual.shape[1]), dtype=torch.float32)
        softmax = residual.new_empty((2, *residual.shape[:2]), dtype=torch.float32)  # its maximum, 1 / its sum
        grid.run(_maximum_and_sum, residual, *parts)
        grid.run(_sum, residual, shortcut, alpha, *parts, *softmax, out, RELU=relu)
        ctx.save_for_backward(residual, shortcut, alpha, softmax)
        ctx.relu = relu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        residual, shortcut, alpha, softmax = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_residual, of_shortcut, grid = torch.empty_like(residual), torch.empty_like(shortcut), _Grid(residual)
        parts = residual.new_empty((len(residual), grid.splits, residual.shape[1]), dtype=torch.float32)
        inputs = residual, shortcut, gradient, alpha, *softmax, parts
        grid.run(_products, *inputs, RELU=ctx.relu)
        grid.run(_gradients, *inputs, of_residual, of_shortcut, RELU=ctx.relu)
        return of_residual, of_shortcut, parts.sum(), None


class _Grid:
    """How programs share out [B, C, H, W]: (blocks of channels, parts of the positions, images)."""

    def __init__(self, x: Tensor) -> None:
        images, self.channels, self.positions = *x.shape[:2], x[0, 0].numel()
        self.lanes = min(128 // x.element_size(), max(16, triton.next_power_of_2(self.channels)))  # 128 bytes
        self.rows = TILE // self.lanes
        blocks = triton.cdiv(self.channels, self.lanes)
        wanted = triton.cdiv(PROGRAMS, images * blocks)
        self.splits = min(wanted, triton.cdiv(self.positions, 2 * self.rows), MOST.value)
        self.programs = blocks, self.splits, images

    def run(self, kernel: triton.JITFunction, *tensors: Tensor, **options: bool) -> None:
        kernel[self.programs](*tensors, self.positions, self.channels, self.splits, self.rows, self.lanes, **options)


@triton.jit
def _place(positions, channels, splits, ROWS: tl.constexpr, LANES: tl.constexpr):
    """This program's first and last position, its rows, channels, and where its tile starts."""
    of_split = tl.cdiv(positions, splits)
    first = tl.program_id(1) * of_split
    channel = tl.program_id(0) * LANES + tl.arange(0, LANES)
    row = tl.arange(0, ROWS)
    start = tl.program_id(2).to(tl.int64) * positions * channels + row[:, None] * channels + channel[None, :]
    return first, tl.minimum(first + of_split, positions), row, channel, start


@triton.jit
def _parts(channel, channels, splits):
    """Where this image's parts have their results, [MOST, LANES], and whether there are so many."""
    part, channel = tl.arange(0, MOST)[:, None], channel[None, :]
    return (tl.program_id(2) * splits + part) * channels + channel, (part < splits) & (channel < channels)


@triton.jit(do_not_specialize=("positions", "splits"))
def _maximum_and_sum(residual, highest, sums, positions, channels, splits, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Of each part: its maximum, and the sum of exp(F - maximum). Each thread has its own until the end."""
    first, last, row, channel, start = _place(positions, channels, splits, ROWS, LANES)
    high, total = tl.full((ROWS, LANES), LOWEST, tl.float32), tl.zeros((ROWS, LANES), tl.float32)
    for p in range(first, last, ROWS):
        inside = (p + row < last)[:, None] & (channel < channels)[None, :]
        f = tl.load(residual + start + p * channels, inside, float("-inf")).to(tl.float32)
        power = tl.exp(-tl.abs(f - high))  # one exponential: of the two, the other is 1
        total = tl.where(f > high, total * power + 1, total + power)
        high = tl.maximum(high, f)
    most = tl.max(high, 0)
    total = tl.sum(total * tl.exp(high - most[None, :]), 0)
    at = (tl.program_id(2) * splits + tl.program_id(1)) * channels + channel
    tl.store(highest + at, most, channel < channels)
    tl.store(sums + at, total, channel < channels)


@triton.jit(do_not_specialize=("positions", "splits"))
def _sum(
    residual, shortcut, alpha, highest, sums, high, inverse, out, positions, channels, splits,
    ROWS: tl.constexpr, LANES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    first, last, row, channel, start = _place(positions, channels, splits, ROWS, LANES)
    known, of_image = channel < channels, tl.program_id(2) * channels + channel
    parts, there = _parts(channel, channels, splits)
    each = tl.load(highest + parts, there, LOWEST)
    most = tl.max(each, 0)
    total = tl.sum(tl.load(sums + parts, there, 0.0) * tl.exp(each - most[None, :]), 0)
    if tl.program_id(1) == 0:
        tl.store(high + of_image, most, known)
        tl.store(inverse + of_image, 1 / total, known)
    scale = tl.load(alpha).to(tl.float32) / total
    for p in range(first, last, ROWS):
        inside, at = (p + row < last)[:, None] & known[None, :], start + p * channels
        f = tl.load(residual + at, inside, 0.0).to(tl.float32)
        s = tl.load(shortcut + at, inside, 0.0).to(tl.float32)
        y = f + s * (1 + scale[None, :] * tl.exp(f - most[None, :]))
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # NaN stays
        tl.store(out + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def _tile(residual, shortcut, gradient, at, inside, high, inverse, alpha, RELU: tl.constexpr):
    """s, softmax, and the gradient before the ReLU; outside the last two are 0."""
    f = tl.load(residual + at, inside, float("-inf")).to(tl.float32)
    s = tl.load(shortcut + at, inside, 0.0).to(tl.float32)
    g = tl.load(gradient + at, inside, 0.0).to(tl.float32)
    r = inverse[None, :] * tl.exp(f - high[None, :])
    if RELU:
        g = tl.where(f + s * (1 + alpha * r) <= 0, 0.0, g)
    return s, r, g


@triton.jit(do_not_specialize=("positions", "splits"))
def _products(
    residual, shortcut, gradient, alpha, high, inverse, sums, positions, channels, splits,
    ROWS: tl.constexpr, LANES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Of each part: the sum of gradient · s · softmax. All of them together are α's gradient."""
    first, last, row, channel, start = _place(positions, channels, splits, ROWS, LANES)
    known, of_image = channel < channels, tl.program_id(2) * channels + channel
    most, inverse = tl.load(high + of_image, known, 0.0), tl.load(inverse + of_image, known, 0.0)
    factor = tl.load(alpha).to(tl.float32)
    total = tl.zeros((ROWS, LANES), tl.float32)
    for p in range(first, last, ROWS):
        inside, at = (p + row < last)[:, None] & known[None, :], start + p * channels
        s, r, g = _tile(residual, shortcut, gradient, at, inside, most, inverse, factor, RELU)
        total += g * s * r
    at = (tl.program_id(2) * splits + tl.program_id(1)) * channels + channel
    tl.store(sums + at, tl.sum(total, 0), known)


@triton.jit(do_not_specialize=("positions", "splits"))
def _gradients(
    residual, shortcut, gradient, alpha, high, inverse, sums, of_residual, of_shortcut, positions, channels, splits,
    ROWS: tl.constexpr, LANES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    first, last, row, channel, start = _place(positions, channels, splits, ROWS, LANES)
    known, of_image = channel < channels, tl.program_id(2) * channels + channel
    most, inverse = tl.load(high + of_image, known, 0.0), tl.load(inverse + of_image, known, 0.0)
    factor = tl.load(alpha).to(tl.float32)
    parts, there = _parts(channel, channels, splits)
    total = tl.sum(tl.load(sums + parts, there, 0.0), 0)
    for p in range(first, last, ROWS):
        inside, at = (p + row < last)[:, None] & known[None, :], start + p * channels
        s, r, g = _tile(residual, shortcut, gradient, at, inside, most, inverse, factor, RELU)
        of_f = g + factor * r * (g * s - total[None, :])
        tl.store(of_residual + at, of_f.to(of_residual.dtype.element_ty), inside)
        tl.store(of_shortcut + at, (g + factor * r * g).to(of_shortcut.dtype.element_ty), inside)
