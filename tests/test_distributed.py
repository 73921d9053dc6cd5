"""Two processes on the CPU, as torchrun starts them: the same run as one process, and one that speaks for both."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import nets
from tests.small import CLOCK, Classifier, Segmenter
from utils.config import configure
from utils.data.synthetic import make_synthetic
from utils.model.weights import load_file
from utils.tasks import train

ROOT = Path(__file__).resolve().parents[1]
SEG = {"task": "segmentation", "net": "unet", "batch_size": 4}
CLS = {"task": "classification", "net": "resnet18", "batch_size": 8, "loss": "ce", "train_views": "frame"}
WEIGHTED = CLS | {"class_weights": (2.5, 2.5, 0.5)}
# What two processes do, one run after the other, by the name of its output folder.
TOGETHER = {
    "shared": SEG | {"accumulate": 2},
    "stopped": SEG,
    "weighted": WEIGHTED,
    "normed": CLS | {"net": "resnet14", "epochs": 1},
}
# Each process tells of each run how it ended, and the running statistics that its network was scored with.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from tests.small import Segmenter, exit_code
from tests.test_distributed import NETS, TOGETHER, Normed, config, nets, train
nets.NETS.update(NETS)
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
told = {}
for name, port in zip(TOGETHER, sys.argv[1:], strict=True):
    os.environ["MASTER_PORT"] = port  # a meeting place of its own for every run
    killed = name == "stopped" and os.environ["RANK"] == "1"
    Segmenter.at = {6: lambda: os.kill(os.getpid(), signal.SIGTERM)} if killed else {}
    Normed.seen.clear()
    code = exit_code(lambda: train(config(Path(), name, **TOGETHER[name])))
    told[name] = {"code": code, "statistics": sorted(Normed.seen)}
Path(f"told{os.environ['RANK']}.json").write_text(json.dumps(told))
"""


def plain_segmenter() -> Segmenter:
    """Without batch norm and dropout every image counts by itself: sharing a batch changes nothing but rounding."""
    return Segmenter(plain=True)


def plain_classifier() -> Classifier:
    return Classifier(plain=True)


class Normed(Classifier):
    seen: ClassVar[set[float]] = set()

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.seen.add(sum(float(buffer.double().sum()) for buffer in self.buffers()))
        return super().forward(images)


NETS = {"unet": "plain_segmenter", "resnet18": "plain_classifier", "resnet14": "Normed"}
NETS = {name: f"tests.test_distributed:{build}" for name, build in NETS.items()}


def config(folder: Path, output: str, **changes: Any):
    """By SGD: AdamW's first steps would make whole steps of what is only rounding."""
    common = {"pretrained": False, "size": (32, 32), "epochs": 3, "lr": 1e-2, "optimizer": "sgd", "device": "cpu"}
    folders = {"data": folder / "data", "cache": folder / "cache", "output": folder / output}
    return configure(**common | folders | changes, amp="off", workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, undrawn):
    folder = tmp_path_factory.mktemp("distributed")
    make_synthetic(folder / "data", {"train": 16, "validation": 5, "test": 1}, (72, 64), seed=2)
    shutil.rmtree(folder / "data/ISIC-2017_Test_v2_Part1_GroundTruth")  # without scores there are fewer figures
    (folder / "data/ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    with pytest.MonkeyPatch.context() as patch:
        for name, net in NETS.items():
            patch.setitem(nets.NETS, name, net)
        yield folder


@pytest.fixture(scope="module")
def together(folder):
    """What each of the two processes told, and what both together printed."""
    (folder / "program.py").write_text(PROGRAM)
    with ExitStack() as open_ports:
        sockets = [open_ports.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in TOGETHER]
        ports = [str(each.getsockname()[1]) for each in sockets]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(folder / "program.py"), *ports]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, cwd=folder, env=variables, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (*(json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)), done.stdout, done.stderr)


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    return train(config(folder, "alone", **SEG)).folder


def agree(one: Path, two: Path) -> None:
    """Weights, losses and scores, to float32's rounding."""
    a, b = (load_file(run / "last.pth")["model"] for run in (one, two))
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in a)
    a, b = (pd.read_csv(run / "history.csv").drop(columns=CLOCK) for run in (one, two))
    assert len(a) == 3 and np.allclose(a, b, atol=1e-3)
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert a["validation"]["images"] == b["validation"]["images"] == 5  # odd: none counted twice


def test_two_processes_are_one_with_their_batches_together(folder, together, alone):
    """With gradients accumulated as well."""
    one, two, output, _ = together
    assert one["shared"]["code"] == two["shared"]["code"] == 0
    shared = config(folder, "shared", **SEG).folder
    agree(alone, shared)
    facts = json.loads((shared / "config.json").read_text())
    assert (facts["processes"], facts["accumulate"]) == (2, 2)
    assert (
        output.count(f"run folder: {shared.relative_to(folder)}") == 1 and "2 processes" in output
    )  # one of them speaks


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_with_another_number(folder, together, alone):
    one, two, _, errors = together
    assert one["stopped"]["code"] == two["stopped"]["code"] == 128 + signal.SIGTERM
    assert "stopped by SIGTERM in epoch 2 after step 2; the same command" in errors
    agree(alone, train(config(folder, "stopped", **SEG)).folder)


def test_class_weights_count_over_all_processes(folder, together):
    """The classes of one process's images are not those of the other's: weighted means are over the whole batch."""
    agree(train(config(folder, "weighted-alone", **WEIGHTED)).folder, config(folder, "weighted", **WEIGHTED).folder)


def test_both_score_with_the_running_statistics_that_are_saved(folder, together):
    """Batch norm's, which are each process's own until the end of an epoch. Every image gets its prediction."""
    one, two, *_ = together
    assert len(one["normed"]["statistics"]) == 1 and one["normed"] == two["normed"]
    (run,) = (folder / "normed").glob("*/run0")
    buffers = dict(Normed().named_buffers())
    saved = [tensor for name, tensor in load_file(run / "best.pth")["model"].items() if name in buffers]
    assert one["normed"]["statistics"] == [sum(float(tensor.double().sum()) for tensor in saved)]
    table = pd.read_csv(run / "validation_predictions.csv")
    assert table["image_id"].nunique() == len(table) == 5
