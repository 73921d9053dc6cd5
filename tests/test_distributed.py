"""Two processes on the CPU, as torchrun starts them: the same run as one process, and one that speaks for both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.data.synthetic import make_synthetic

ROOT = Path(__file__).resolve().parents[1]
# A network without batch norm: every image counts by itself, so that sharing a batch changes nothing but rounding.
PROGRAM = """
import sys
import torch
from torch import nn
import nets, cls_main, seg_main
from utils.logger import run_script

class Small(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 3, padding=1))
    def forward(self, x):
        return self.layers(x)

class SmallClassifier(Small):
    last_layers = ("layers.0",)
    def __init__(self, num_classes=3):
        super().__init__(num_classes)
    def forward(self, x):
        return super().forward(x).mean((2, 3))

nets.NETS["unet"], nets.NETS["resnet18"] = "__main__:Small", "__main__:SmallClassifier"
cls_main.plot_saliency = lambda *args: {}
run_script(lambda: {"seg": seg_main, "cls": cls_main}[sys.argv[1]].main(sys.argv[2:]))
"""


STOPS = """
import os, signal, utils.model.trainer
save = utils.model.fit.save_checkpoint
def save_and_kill(state, path):
    save(state, path)
    if path.name == "last.pth" and state["progress"]["epoch"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)
utils.model.fit.save_checkpoint = save_and_kill
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    make_synthetic(folder / "data", {"train": 16, "validation": 5, "test": 3}, (72, 64), seed=2)
    (folder / "program.py").write_text(PROGRAM)
    return folder


def run(
    data: Path, processes: int, *arguments: str, program: str = "program.py", check: bool = True
) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launch if processes > 1 else [sys.executable]), str(data / program), *arguments]
    command += ["--data", str(data / "data"), "--cache", str(data / "cache"), "--device", "cpu", "--amp", "off"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=data, env=environment, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


SEG = ("seg", "-n", "unet", "-p", "0", "--size", "32", "32", "--batch-size", "4", "--lr", "1e-3", "--epochs", "3")


def content(folder: Path) -> tuple[dict, list, dict, dict]:
    run = folder / "seg-1/run0"
    state = torch.load(run / "last.pth", weights_only=True)
    history = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    return (
        state["model"],
        history,
        json.loads((run / "metrics.json").read_text()),
        json.loads((run / "config.json").read_text()),
    )


@pytest.fixture(scope="module")
def alone(data):
    run(data, 1, *SEG, "--output", str(data / "one"))
    return content(data / "one")


def agree(a, b, tolerance: float) -> None:
    assert all(torch.allclose(tensor, b[0][name], atol=tolerance) for name, tensor in a[0].items())
    for one, two in zip(a[1][1:], b[1][1:], strict=True):
        for name, x, y in zip(a[1][0], one, two, strict=True):
            if name not in ("train_seconds", "images_per_second"):
                assert float(x) == pytest.approx(float(y), abs=10 * tolerance), name
    for name, value in a[2]["validation"]["official"].items():
        assert value == pytest.approx(b[2]["validation"]["official"][name], abs=10 * tolerance), name
    assert a[2]["validation"]["images"] == b[2]["validation"]["images"] == 5  # odd: none counted twice


def test_two_processes_are_one_with_their_batches_together(data, alone):
    """Weights, history and scores agree to float32's rounding, with gradients accumulated as well."""
    output = run(data, 2, *SEG, "--accumulate", "2", "--output", str(data / "two")).stdout
    two = content(data / "two")
    agree(alone, two, 1e-5)
    assert (two[3]["processes"], two[3]["accumulate"]) == (2, 2)
    assert output.count("epoch 2/3") == 1 and "2 processes" in output  # one of them speaks


@pytest.mark.fault(
    "SIGTERM to one of two processes of `torchrun`, then another number of processes",
    "the others stop too; same end, to float32's rounding (batch norm, of each process's images, left aside)",
)
def test_a_run_goes_on_with_another_number_of_processes(data, alone):
    """Stopped by a signal in the second epoch of three, which one of the two processes gets."""
    folder = data / "mixed"
    (data / "stopping.py").write_text(PROGRAM.replace("run_script(", STOPS + "run_script("))
    stopped = run(data, 2, *SEG, "--output", str(folder), program="stopping.py", check=False)
    assert stopped.returncode != 0 and "stopped by SIGTERM in epoch 2 after step 1" in stopped.stderr
    run(data, 1, *SEG, "--output", str(folder))
    agree(alone, content(folder), 1e-5)


def test_class_weights_count_over_all_processes(data):
    """The classes of one process's images are not those of the other's: weighted means are over the whole batch."""
    common = ["cls", "-n", "resnet18", "-p", "0", "--size", "32", "32", "--batch-size", "8", "--epochs", "4"]
    common += ["--class-weights", "2.5", "2.5", "0.5", "--loss", "ce", "--lr", "1e-2", "--views", "1"]
    found = []
    for processes in (1, 2):
        run(data, processes, *common, "--output", str(data / f"weighted{processes}"))
        (folder,) = (data / f"weighted{processes}").glob("*/run0")
        found.append((torch.load(folder / "last.pth", weights_only=True), folder / "history.csv"))
    (one, history), (two, other) = found
    assert all(torch.allclose(tensor, two["model"][name], atol=1e-4) for name, tensor in one["model"].items())
    losses = [[float(line.split(",")[2]) for line in path.read_text().splitlines()[1:]] for path in (history, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_classification_shares_its_images_out_too(data):
    """ResNet-14 with batch norm, whose statistics are each process's own: close, not the same."""
    common = ["cls", "-n", "resnet14", "-p", "0", "--size", "32", "32", "--batch-size", "8", "--epochs", "1"]
    common += ["--views", "1", "--lr", "1e-4"]
    tables = []
    for processes in (1, 2):
        run(data, processes, *common, "--output", str(data / f"cls{processes}"))
        (folder,) = (data / f"cls{processes}").glob("resnet14-scratch/run0")
        tables.append((folder / "validation_predictions.csv").read_text().splitlines())
    assert [line.split(",")[0] for line in tables[0]] == [line.split(",")[0] for line in tables[1]]
    assert len(tables[1]) == 6
    for one, two in zip(tables[0][1:], tables[1][1:], strict=True):
        assert [float(x) for x in one.split(",")[1:]] == pytest.approx([float(x) for x in two.split(",")[1:]], abs=0.1)


# Each process tells the running statistics that it validates with, in one piece: both write into one pipe.
STATISTICS = """
import os
score = cls_main.class_probabilities
def telling(model, *args):
    total = sum(float(buffer.double().sum()) for buffer in model.buffers())
    os.write(1, f"\\nstatistics {total!r}\\n".encode())
    return score(model, *args)
cls_main.class_probabilities = telling
"""


def test_all_processes_validate_with_the_statistics_that_are_saved(data):
    (data / "telling.py").write_text(PROGRAM.replace("run_script(", STATISTICS + "run_script("))
    command = ["cls", "-n", "resnet14", "-p", "0", "--size", "32", "32", "--batch-size", "8", "--epochs", "1"]
    output = run(data, 2, *command, "--output", str(data / "statistics"), program="telling.py").stdout
    told = [line.split()[1] for line in output.splitlines() if line.startswith("statistics")]
    assert len(told) > 2 and len(set(told)) == 1, told


def test_a_batch_that_cannot_be_shared_evenly_is_refused(data):
    done = run(data, 2, *SEG[:-4], "--batch-size", "5", "--output", str(data / "odd"), check=False)
    assert done.returncode != 0 and "a batch of 5 cannot be shared by 2 processes" in done.stderr
