"""The sum of an ARL block and its gradients: by hand, in float64, in chunks, in few bits, compiled and not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nets
from nets.arl import AXES, ARLAttention
from nets.fast import attended_sum, kernel

both = pytest.mark.parametrize("over", AXES)
with_and_without_relu = pytest.mark.parametrize("relu", [False, True])
compiled = pytest.mark.skipif(kernel.load(torch.float32) is None, reason="arl.c cannot be compiled here")
BF16, F32 = torch.bfloat16, torch.float32


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x with its numbers in another order in memory."""
    if layout == "transposed":
        return x.mT.contiguous().mT
    return x.to(memory_format=torch.channels_last) if layout == "channels last" else x


def attention_of(alpha: float, over: str = "spatial") -> ARLAttention:
    attention = ARLAttention(over)
    nn.init.constant_(attention.alpha, alpha)
    return attention


def attended(attention: ARLAttention, relu: bool, *values: torch.Tensor) -> list[torch.Tensor]:
    """The sum of F and s, and from the gradient g of it those of F, s and α; (F, s, g) are the values."""
    f, s, g = values
    f, s = f.clone().requires_grad_(), s.clone().requires_grad_()
    attention.alpha.grad = None
    out = attention(f, s, relu=relu)
    out.backward(g)
    return [out.detach(), f.grad, s.grad, attention.alpha.grad]


def formula(f: torch.Tensor, s: torch.Tensor, alpha: torch.Tensor, over: str, relu: bool) -> torch.Tensor:
    """By PyTorch's operations, with PyTorch's gradients."""
    weights = f.flatten(2).softmax(2).view(f.shape) if over == "spatial" else f.softmax(1)
    total = f + s + alpha * weights * s
    return total.relu() if relu else total


def test_by_hand():
    """F(x) + s + α · softmax over positions (or channels) of F(x), times s, as on a pocket calculator."""
    residual = torch.log(torch.tensor([[[[1.0, 3.0]], [[1.0, 1.0]]]]))  # [1, 2, 1, 2]
    shortcut = torch.tensor([[[[4.0, 8.0]], [[2.0, 6.0]]]])
    for over, weights in (("spatial", [[0.25, 0.75], [0.5, 0.5]]), ("channel", [[0.5, 0.75], [0.5, 0.25]])):
        weights = torch.tensor(weights).view(1, 2, 1, 2)
        assert float(ARLAttention(over).alpha.detach()) == pytest.approx(0.001)
        attention = attention_of(0.5, over)
        assert torch.allclose(attention.weights(residual), weights, rtol=1e-6)
        expected = residual + shortcut + 0.5 * weights * shortcut
        assert torch.allclose(attention(residual, shortcut), expected, rtol=1e-6)


@both
@with_and_without_relu
@pytest.mark.parametrize("layout", ["channels last", "contiguous", "transposed"])
def test_the_gradients_are_those_of_the_formula(over, relu, layout, monkeypatch):
    """In float64; images are worked on two at a time, and one is left."""
    monkeypatch.setattr(attended_sum, "CHUNK", 50)
    f, s, g = (random(5, 4, 2, 3, seed=seed, dtype=torch.float64) for seed in range(3))
    attention = attention_of(0.7, over).double()
    ours = attended(attention, relu, laid_out(f, layout), s, laid_out(g, layout))
    x, y, alpha = (each.detach().clone().requires_grad_() for each in (f, s, attention.alpha))
    out = formula(x, y, alpha, over, relu)
    out.backward(g)
    for mine, expected in zip(ours, (out.detach(), x.grad, y.grad, alpha.grad), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-9)
    fixed = attended(ARLAttention(over, "fixed").double(), relu, f, s, g)
    assert fixed[3] is None and fixed[1].isfinite().all()


@both
@with_and_without_relu
def test_what_torch_compile_traces_is_the_same(over, relu):
    f, s = random(2, 4, 3, 5, dtype=torch.float64), random(2, 4, 3, 5, seed=1, dtype=torch.float64)
    attention = attention_of(0.7, over).double()
    traced = torch.compile(attention, backend="eager", fullgraph=True)
    assert torch.allclose(traced(f, s, relu=relu), attention(f, s, relu=relu), rtol=1e-12)


@both
def test_bfloat16_does_not_lose_terms_below_its_precision(over):
    """Added to a sum that is rounded already, terms below 1/512 of it are lost: 1 % of their mean is left here.

    Rounded once, ties (frequent where F and s are bfloat16 themselves) all go the term's way: up to twice the mean.
    """
    residual, shortcut = random(2, 32, 64, 64).bfloat16(), random(2, 32, 64, 64, seed=1).sigmoid().add(1).bfloat16()
    attention = attention_of(2.0 if over == "spatial" else 0.02, over)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        change = attention(residual, shortcut).double() - (residual + shortcut).double()
        term = attention.alpha * attention.weights(residual).double() * shortcut
    assert (term < 2**-9).double().mean() > 0.5
    assert 0.5 < change.mean() / term.mean() < 2.5


@with_and_without_relu
@pytest.mark.parametrize("shape,layout", [
    ((3, 64, 3, 5), "channels last"), ((1, 96, 1, 1), "contiguous"), ((5, 128, 14, 14), "transposed"),
])  # fmt: skip
@pytest.mark.parametrize(
    "over,arl_kernel,dtype,rtol,atol,of_alpha",
    [
        pytest.param("spatial", "1", BF16, 2**-8, 1e-5, 0.01, marks=compiled),
        pytest.param("spatial", "1", F32, 2e-6, 1e-5, 0.01, marks=compiled),
        *((over, "0", BF16, 2**-6, 0.02, 1) for over in AXES),
    ],
)
def test_few_bits_are_near_float64(shape, layout, relu, over, arl_kernel, dtype, rtol, atol, of_alpha, monkeypatch):
    """Outputs and gradients, compiled (float32 arithmetic, rounded once) and by PyTorch's operations; always alike."""
    monkeypatch.setenv("ARL_KERNEL", arl_kernel)
    f, s, g = (laid_out(3 * random(*shape, seed=seed).to(dtype), layout) for seed in range(3))
    f[0, 0, 0, 0] = 80  # one position gets all the attention
    attention = attention_of(0.7, over)
    exact = attended(attention, relu, f.double(), s.double(), g.double())
    ours = attended(attention, relu, f, s, g)
    # A sum that is rounded to 0, or is exactly 0 in one type only, has another gradient behind its ReLU.
    decided = formula(f.double(), s.double(), attention.alpha.detach().double(), over, relu=False).abs() > 1e-6
    assert decided.double().mean() > 0.98
    for one, expected in zip(ours[:3], exact[:3], strict=True):
        assert one.dtype == dtype
        assert torch.allclose(one.double()[decided], expected[decided], rtol=rtol, atol=atol)
    assert ours[3].dtype == torch.float32
    assert float(ours[3]) == pytest.approx(float(exact[3]), rel=1e-3, abs=of_alpha)  # a sum over thousands of values
    again = attended(attention, relu, f, s, g)
    assert all(torch.equal(*pair) for pair in zip(ours, again, strict=True))


@compiled
@with_and_without_relu
@pytest.mark.parametrize("dtype", kernel.TYPES)
def test_the_compiled_sum_hides_no_value_that_is_not_finite(dtype, relu, monkeypatch):
    """-∞ gets no attention and leaves the others alone; ∞ and NaN spread over the channel, and pass the ReLU."""
    f, s, g = (random(2, 64, 6, 5, seed=seed).to(dtype) for seed in range(3))
    for channel, value in enumerate([float("-inf"), float("inf"), float("nan")]):
        f[0, channel, 2, 3] = value
    s[1, 4, 0, 0] = g[1, 5, 1, 1] = float("nan")
    f[1, 6, 0, 0] = float("nan")  # the first that is looked at
    fused = attended(attention_of(0.7), relu, f, s, g)
    monkeypatch.setenv("ARL_KERNEL", "0")
    plain = attended(attention_of(0.7), relu, f, s, g)
    for one, other in zip(fused, plain, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=2**-6, atol=0.02, equal_nan=True)
    assert float(fused[0][0, 0, 2, 3]) == (0 if relu else float("-inf"))
    assert fused[0].isnan().sum() == 3 * 30 + 1


def loaded(*tries: tuple[str, dict[str, str]]) -> tuple[list[bool], str]:
    """Whether a new process can load the compiled functions, by number type and environment, and what it logs."""
    script = (
        "import json, logging, os, sys, torch; logging.basicConfig(level=20); from nets.fast import kernel\n"
        "for dtype, variables in json.loads(sys.argv[1]):\n"
        "    os.environ.update(variables); print(int(bool(kernel.load(getattr(torch, dtype)))))"
    )
    command = [sys.executable, "-c", script, json.dumps(tries)]
    root = Path(nets.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [line == "1" for line in done.stdout.split()], done.stderr


def test_without_a_compiler_pytorch_computes_the_sum(tmp_path):
    """And with one that fails; one line says so."""
    (tmp_path / "cc").write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    folder = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    there, log = loaded(
        ("bfloat16", folder | {"PATH": str(tmp_path / "nowhere")}), ("float32", {"PATH": str(tmp_path)})
    )
    assert there == [False, False] and "no C compiler (cc): ARL blocks are computed by PyTorch" in log
    assert "no compiled arl.c (no such processor)" in log


@compiled
def test_the_sum_is_compiled_into_the_cache_and_not_loaded_from_where_others_may_write(tmp_path):
    mine, open_to_all = ({"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("mine", "open"))
    (tmp_path / "open/arl-kernel").mkdir(parents=True)
    (tmp_path / "open/arl-kernel").chmod(0o777)
    there, log = loaded(("float32", mine), ("bfloat16", open_to_all))
    assert there == [True, False] and len(list((tmp_path / "mine/arl-kernel").glob("*.so"))) == 1
    assert "arl-kernel is another user's, or others may write in it: choose another by XDG_CACHE" in log
