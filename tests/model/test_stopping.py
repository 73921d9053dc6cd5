"""Runs that are stopped, and commands that are given again: nothing is lost, and the exit code tells what happened.

`tests.scripts.kill_training` kills runs without warning.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import nets
from tests.scripts.kill_training import differences
from tests.small import Classifier, Segmenter, exit_code, same, steady, train
from utils import UserError
from utils.config import Config, configure
from utils.data.synthetic import make_synthetic
from utils.model.run import Run
from utils.model.weights import load_file
from utils.signals import NAMES
from utils.tasks import train as train_task

ROOT = Path(__file__).resolve().parents[2]
SCORES = [0.1, 0.4, 0.3]
TRUTH = "ISIC-2017_Test_v2_Part1_GroundTruth"
# Says what step it is at, and waits for a word before the next one.
PROGRAM = """
import sys
import nets, seg_main
from tests.small import Segmenter
from utils.logger import run_script
nets.NETS["unet"] = "tests.small:Segmenter"
Segmenter.at = {step: lambda step=step: (print("step", step, flush=True), sys.stdin.readline()) for step in (5, 7)}
run_script(lambda: seg_main.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def signals_arrive():
    """Those that this process ignores, as it does under nohup and in the background, arrive all the same."""
    before = {name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in NAMES}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, undrawn):
    """Data without the truth of the test images, and small networks under two names of the table."""
    folder = tmp_path_factory.mktemp("stopping")
    make_synthetic(folder / "data", {"train": 12, "validation": 6, "test": 3}, (72, 64), seed=4)
    (folder / "data" / TRUTH).rename(folder / TRUTH)
    (folder / "data" / TRUTH.replace("Part1_GroundTruth", "Part3_GroundTruth.csv")).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nets.NETS, "unet", "tests.small:Segmenter")
        patch.setitem(nets.NETS, "resnet18", "tests.small:Classifier")
        yield folder


def config(folder: Path, task: str, output: str) -> Config:
    net = {"segmentation": "unet", "classification": "resnet18"}[task]
    return configure(
        task=task, net=net, pretrained=False, size=(32, 32), batch_size=4, epochs=3, lr=1e-2, device="cpu", amp="off",
        data=folder / "data", cache=folder / "cache", output=folder / output,
    )  # fmt: skip


def send(name: str):
    return lambda: os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(
    ("task", "net", "name"), [("segmentation", Segmenter, "SIGTERM"), ("classification", Classifier, "SIGINT")]
)
def test_the_command_repeated_after_a_stop_gives_the_same_run(folder, monkeypatch, capsys, task, net, name):
    """To the last bit: weights, moments, history and scores, which are those of the best epoch."""
    whole, cut = config(folder, task, "whole"), config(folder, task, "cut")
    run = train_task(whole)
    with monkeypatch.context() as patch:
        patch.setattr(net, "at", {5: send(name)})
        assert exit_code(lambda: train_task(cut)) == 128 + getattr(signal, name)
    line = f"stopped by {name} in epoch 2 after step 2; the same command (without -c 0) goes on from there\n"
    assert capsys.readouterr().err == line
    train_task(cut)
    assert differences(whole.folder, cut.folder) == []
    metrics, history = run.read_json("metrics.json"), run.history()
    best, score = history[metrics["best_epoch"] - 1], metrics["validation"]
    assert metrics["epochs"] == len(history) == 3 and metrics["test"] is None
    if net is Segmenter:
        assert zipfile.is_zipfile(run.path("test_masks.zip"))  # without the truth too
        assert best["val_jaccard"] == max(row["val_jaccard"] for row in history) == score["official"]["jaccard"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])  # the other two: above
def test_a_signal_in_an_epoch_is_followed_after_its_step_and_in_validation_at_once(cache, tmp_path, monkeypatch, name):
    whole, cut = Run(tmp_path / "whole", {}, resume=True), Run(tmp_path / "cut", {}, resume=True)
    train(whole, cache, SCORES)

    class AtOnce(Exception):
        def __new__(cls):
            send(name)()
            raise AssertionError("validation goes on")

    for at, scores in (({4: send(name)}, SCORES), ({}, [0.1, AtOnce, 0.3])):
        monkeypatch.setattr(Segmenter, "at", at)
        assert exit_code(lambda scores=scores: train(cut, cache, scores)) == 128 + getattr(signal, name)
        assert load_file(cut.path("last.pth"))["progress"]["step"] == (1 if at else 3)
    train(cut, cache, SCORES)
    assert same(*(load_file(run.path("last.pth"))["model"] for run in (whole, cut)))
    assert steady(whole.history()) == steady(cut.history())


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_step(cache, tmp_path, monkeypatch):
    def twice():
        send("SIGINT")()
        send("SIGINT")()
        raise AssertionError("the step goes on")

    monkeypatch.setattr(Segmenter, "at", {2: twice})
    run = Run(tmp_path / "run", {}, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(run, cache, SCORES)
    assert not run.path("last.pth").exists()


def test_signals_to_the_whole_group_spare_the_loader_processes(folder):
    """As a terminal that is closed sends them (here to a run under nohup, which goes on), or a scheduler."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py"), "-n", "unet", "-p", "0", "--size", "32", "32", "--workers"]
    command += ["1", "--batch-size", "4", "--epochs", "3", "--device", "cpu", "--amp", "off"]
    command += [word for name in ("data", "cache", "output") for word in (f"--{name}", str(folder / name))]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        ["nohup", *command], cwd=folder, env=variables, start_new_session=True, text=True, **pipes
    )
    reached = []
    for line in process.stdout:
        if line.startswith("step"):
            reached.append(line.split()[1])
            os.killpg(process.pid, signal.SIGHUP if len(reached) == 1 else signal.SIGTERM)
            process.stdin.write("go on\n")
            process.stdin.flush()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, reached) == (128 + signal.SIGTERM, ["5", "7"]), errors
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM in epoch 3 after step 1; ")
    assert len(errors.splitlines()) <= 2, errors  # nohup's own line


def test_a_finished_run_is_scored_again_when_the_truth_of_the_test_images_has_come(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    once = replace(config(folder, "segmentation", "truth"), data=tmp_path / "data")
    assert train_task(once).read_json("metrics.json")["test"] is None
    weights = (once.folder / "last.pth").read_bytes()
    shutil.copytree(folder / TRUTH, tmp_path / "data" / TRUTH)
    assert train_task(once).read_json("metrics.json")["test"]["images"] == 3
    assert (once.folder / "last.pth").read_bytes() == weights


def test_a_folder_moved_away_under_way_is_one_line(cache, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", {}, resume=True)
    monkeypatch.setattr(Segmenter, "at", {4: lambda: run.folder.rename(tmp_path / "elsewhere")})
    with pytest.raises(UserError, match=r"run is no longer there: history.csv could not be written"):
        train(run, cache, SCORES)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_and_open_files_stay_flat(cache, tmp_path, monkeypatch):
    """Over 20 epochs here, from the 6th on (LONG_EPOCHS=200 for more): 5 % of memory, and not one file more."""
    epochs, seen = int(os.environ.get("LONG_EPOCHS", "20")), []

    def count():
        (memory,) = re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())
        seen.append((int(memory), len(list(Path("/proc/self/fd").iterdir()))))

    monkeypatch.setattr(Segmenter, "at", {3 * epoch + 1: count for epoch in range(epochs)})
    train(Run(tmp_path / "run", {}, resume=True), cache, [0.1] * epochs, patience=999)
    start, end = seen[5], seen[-1]
    assert len(seen) == epochs and end[0] < 1.05 * start[0] and end[1] <= start[1], (start, end)
