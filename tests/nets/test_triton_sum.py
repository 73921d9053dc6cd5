"""The Triton kernels of the ARL sum against float64: on a GPU, or by Triton's interpreter in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nets.arl import ARLAttention
from nets.fast import kernel

triton = pytest.importorskip("triton", reason="PyTorch brings no Triton here")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # must be there before Triton is imported
runs = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="test_in_the_interpreter runs it")
with_and_without_relu = pytest.mark.parametrize("relu", [False, True])


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the others run here")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (3 * values).to(DEVICE, dtype).to(memory_format=torch.channels_last)


def computed(values, relu: bool, alpha: float = 0.7) -> list[torch.Tensor]:
    """The sum and the gradients of F, s and α, from (F, s, gradient): by Triton, in float64 by PyTorch's operations."""
    from nets.fast.triton_sum import TritonSum

    f, s, g = values
    f, s, alpha = f.clone().requires_grad_(), s.clone().requires_grad_(), torch.tensor(alpha, device=DEVICE)
    alpha = alpha.to(torch.promote_types(f.dtype, torch.float32)).requires_grad_()
    if f.dtype == torch.float64:
        out = f + s + alpha * f.flatten(2).softmax(2).view(f.shape) * s
        out = out.relu() if relu else out
    else:
        out = TritonSum.apply(f, s, alpha, relu)
    out.backward(g)
    return [out.detach(), f.grad, s.grad, alpha.grad]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    """Also where none is; with loads of 16 bytes. The interpreter takes what the compiler refuses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nets.fast import triton_sum

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = [each for each in vars(triton_sum).values() if "residual" in getattr(each, "arg_names", ())]
    kernels = [kernel for kernel in kernels if "positions" in kernel.arg_names]
    assert len(kernels) == 4
    for function in kernels:
        names = function.arg_names
        constants = {"ROWS": 32, "LANES": 64, "RELU": True}
        constants = {name: value for name, value in constants.items() if name in names}
        types = dict.fromkeys(names, "*fp32") | dict.fromkeys(("positions", "channels", "splits"), "i32")
        types |= {name: "*bf16" for name in names if re.fullmatch("(of_)?(residual|shortcut)|gradient|out", name)}
        types |= dict.fromkeys(constants, "constexpr")
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if types[name][0] == "*"}
        aligned[(names.index("channels"),)] = [["tt.divisibility", 16]]
        source = ASTSource(function, types, constants, aligned)
        assert "ld.global.v4.b32" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="needs a machine where Triton cannot run")
def test_where_triton_cannot_run_pytorch_computes_the_sum(caplog):
    with caplog.at_level("INFO"):
        assert kernel.load_triton(torch.device("cpu")) is None
    assert "ARL blocks are computed by PyTorch, which is slower on a GPU: no Triton kernel (" in caplog.text


@runs
@with_and_without_relu
@pytest.mark.parametrize(
    "shape,dtype,rtol",
    [
        ((2, 5, 3, 7), torch.bfloat16, 2**-7),
        ((1, 40, 11, 13), torch.float32, 2e-6),
        ((1, 64, 1, 1), torch.float16, 2**-10),
    ],
)
def test_sum_and_gradients_are_those_of_float64(shape, dtype, rtol, relu):
    """One part of the positions or several, whole tiles or not, fewer channels than a block or several blocks.

    The interpreter cuts bfloat16 off where a GPU rounds it.
    """
    values = [random(shape, seed, dtype) for seed in range(3)]
    values[0][0, 0, 0, 0] = 30  # one position gets all the attention
    ours, exact = computed(values, relu), computed([value.double() for value in values], relu)
    decided = exact[0].abs() > 1e-6 if relu else torch.ones_like(exact[0], dtype=bool)  # else rounding decides
    for one, expected in zip(ours[:3], exact[:3], strict=True):
        assert one.dtype == dtype and one.is_contiguous(memory_format=torch.channels_last)
        decided = decided if relu and expected is not exact[0] else torch.ones_like(decided)
        torch.testing.assert_close(one.double()[decided], expected[decided], rtol=rtol, atol=2e-5)
    assert ours[3].dtype == torch.float32 and float(ours[3]) == pytest.approx(float(exact[3]), rel=1e-4, abs=1e-3)
    if not INTERPRETED:
        assert all(torch.equal(*pair) for pair in zip(ours, computed(values, relu), strict=True))


@runs
def test_what_is_given_may_lie_in_any_order_and_be_of_two_types():
    """F in bfloat16 and s in float32, contiguous; the gradient expanded from one number."""
    f, s = random((2, 24, 5, 6), 0, torch.bfloat16).contiguous(), random((2, 24, 5, 6), 1, torch.float32).contiguous()
    g = torch.ones((), dtype=torch.bfloat16, device=DEVICE).expand(f.shape)
    ours, exact = computed((f, s, g), True), computed((f.double(), s.double(), g.double()), True)
    assert [each.dtype for each in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), expected.double(), rtol=2**-7, atol=1e-3)


@runs
@with_and_without_relu
def test_no_value_that_is_not_finite_is_hidden(relu):
    """-∞ gets no attention and leaves the others alone; ∞ and NaN spread over the channel, and pass the ReLU."""
    f, s, g = (random((1, 20, 6, 5), seed, torch.float32) for seed in range(3))
    for channel, value in enumerate([float("-inf"), float("inf"), float("nan")]):
        f[0, channel, 2, 3] = value
    s[0, 4, 0, 0] = g[0, 5, 1, 1] = f[0, 6, 0, 0] = float("nan")
    ours, exact = computed((f, s, g), relu), computed((f.double(), s.double(), g.double()), relu)
    for one, expected in zip(ours[:3], exact[:3], strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_an_arl_block_on_a_gpu_is_captured_by_a_cuda_graph():
    """Nothing of it waits for the host; replayed on other values it gives those of a plain call."""
    attention = ARLAttention().to(DEVICE)
    assert kernel.load_triton(torch.device(DEVICE)) is not None
    values = [random((4, 64, 14, 14), seed, torch.bfloat16) for seed in range(4)]
    f = values[0].clone()
    attention(f, values[1], relu=True)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = attention(f, values[1], relu=True)
    f.copy_(values[2])
    graph.replay()
    assert torch.equal(out, attention(values[2], values[1], relu=True))
