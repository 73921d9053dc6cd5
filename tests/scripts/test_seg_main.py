"""The script as a user runs it, on a small embedded sample."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import seg_main
from tests.evaluation.test_segmentation_scores import official_command
from utils import UserError, command_line
from utils.config import EXPERIMENTS, experiments
from utils.data.synthetic import make_synthetic
from utils.model import weights

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--size", "32", "32", "--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_synthetic(
        tmp_path_factory.mktemp("data") / "sample", {"train": 8, "validation": 4, "test": 3}, (80, 64)
    )


@pytest.fixture
def folders(tmp_path, data) -> list[str]:
    return ["--data", str(data), "--output", str(tmp_path / "model"), "--cache", str(tmp_path / "cache")]


def script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "seg_main.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def test_a_run_from_start_to_scores(folders, data, tmp_path):
    """Everything a run promises to keep; and its scores are those that the challenge's own command gives its masks."""
    done = script("--experiment", "seg-4", "-p", "0", "-i", "7", "-m", "a note", *QUICK, *folders)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "model" / "seg-4" / "run7"
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert kept >= {"config.json", "history.csv", "metrics.json", "per_image.csv", "best.pth", "last.pth"}
    assert kept >= {"figures/history.png", "figures/validation.png", "figures/test.png", "test_masks.zip"}
    assert any("tensorboard/events" in name for name in kept)
    assert not any(name.endswith(".partial") for name in kept)
    assert str(run) in done.stdout.splitlines()[-1]

    metrics = json.loads((run / "metrics.json").read_text())
    names = {"accuracy", "sensitivity", "specificity", "jaccard", "threshold_jaccard", "dice"}
    for split, count in (("validation", 4), ("test", 3)):
        assert metrics[split]["official"].keys() == names
        assert metrics[split]["pooled"].keys() == {*names, "mean_of_background_and_lesion"}
        assert metrics[split]["images"] == count
    for split, name in (("validation", "Validation"), ("test", "Test_v2")):
        with zipfile.ZipFile(run / f"{split}_masks.zip") as archive:
            archive.extractall(tmp_path / split)
        scores = official_command(data / f"ISIC-2017_{name}_Part1_GroundTruth", tmp_path / split)
        assert scores == pytest.approx(metrics[split]["official"], abs=1e-12)
    with (run / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["validation"] * 4 + ["test"] * 3
    assert all(sum(int(row[name]) for name in ("tp", "fp", "fn", "tn")) == 80 * 64 for row in rows)
    with (run / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    config = json.loads((run / "config.json").read_text())
    assert config["message"] == "a note" and "--experiment seg-4 -p 0" in config["command"]
    assert config["settings"]["pretrained"] is False and config["settings"]["size"] == [32, 32]


def test_without_truth_for_the_test_images_there_are_masks_and_no_scores(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "ISIC-2017_Test_v2_Part1_GroundTruth")
    folders = ["--data", tmp_path / "data", "--output", tmp_path / "model", "--cache", tmp_path / "cache"]
    seg_main.main(["-n", "res", "-p", "0", *QUICK, *map(str, folders)])
    run = tmp_path / "model" / "res_unet-scratch" / "run0"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"] is None and metrics["validation"]["images"] == 4
    with zipfile.ZipFile(run / "test_masks.zip") as archive:
        names = archive.namelist()
        images = sorted((data / "ISIC-2017_Test_v2_Data").glob("*.jpg"))
        assert names == [f"{path.stem}_segmentation.png" for path in images]
        for name in names:
            with archive.open(name) as file, Image.open(file) as mask:
                assert mask.size == (80, 64) and mask.mode == "L" and {v for _, v in mask.getcolors()} <= {0, 255}


@pytest.mark.parametrize("net", seg_main.NETS)
def test_p_0_needs_no_file_for_any_network(net, folders, monkeypatch):
    """Old fault: -p 0 was ignored for the Res-UNet."""
    monkeypatch.setattr(command_line, "find_weights", lambda *_: pytest.fail("looked for pretrained weights"))
    seg_main.main(["-n", net, "-p", "0", *QUICK, *folders])


def test_pretrained_is_what_the_row_says_and_offline_is_one_line(folders, monkeypatch):
    offline = replace(weights.PRETRAINED["res_unet"], files=("none.pth",), url="http://127.0.0.1:9/")
    monkeypatch.setitem(weights.PRETRAINED, "res_unet", offline)
    with pytest.raises(UserError, match=r"none.pth could not be downloaded .*put it in .*model"):
        seg_main.main(["--experiment", "seg-4", *QUICK, *folders])


def test_the_same_command_continues_and_c_0_starts_afresh(folders, tmp_path, capsys):
    command = ["-n", "res", "-p", "0", *QUICK, *folders]
    for more in ([], [], ["-c", "0"]):
        seg_main.main([*command, *more])
    run = tmp_path / "model" / "res_unet-scratch" / "run0"
    assert (run / "metrics.json").is_file() and (run.with_name("run0.old1") / "metrics.json").is_file()
    assert json.loads((run.with_name("run0.old1") / "config.json").read_text()).keys() >= {"continued"}
    with pytest.raises(UserError, match=r"started with seed 0 \(now 3\)"):
        seg_main.main([*command, "--seed", "3"])


def test_the_command_repeated_after_a_stop_gives_the_same_run(folders, tmp_path, monkeypatch):
    """Stopped by Ctrl-C in its third epoch and repeated."""
    command = ["-n", "res", "-p", "0", *QUICK, "--epochs", "4", *folders]
    seg_main.main([*command, "-i", "1"])
    epochs = []

    def interrupted(*args, **options):
        epochs.append(args)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return score(*args, **options)

    score = seg_main.score
    monkeypatch.setattr(seg_main, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seg_main.main([*command, "-i", "2"])
    seg_main.main([*command, "-i", "2"])
    whole, continued = (tmp_path / "model" / "res_unet-scratch" / f"run{number}" for number in (1, 2))
    for name in ("per_image.csv", "metrics.json"):
        assert (whole / name).read_bytes() == (continued / name).read_bytes()
    a, b = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (whole, continued))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_an_id_in_two_splits_is_refused(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (image, *_) = sorted((data / "ISIC-2017_Training_Data").glob("*.jpg"))
    shutil.copy(image, tmp_path / "data" / "ISIC-2017_Test_v2_Data")
    with pytest.raises(UserError, match=f"1 ids are both in train and in test: {image.stem}"):
        seg_main.main(["-n", "res", "-p", "0", "--data", str(tmp_path / "data")])


@pytest.mark.parametrize(
    "arguments,name,net,pretrained",
    [
        (["-c=0", "-p=0"], "seg-2", "dense_unet", False),
        ([], "seg-3", "dense_unet", True),
        (["-n", "unet"], "seg-1", "unet", False),
        (["-n", "res"], "seg-4", "res_unet", True),
        (["-n", "arl"], "seg-5", "arl_unet", True),
        (["-n", "res", "-p", "0"], "res_unet-scratch", "res_unet", False),
        (["--experiment", "seg-4", "-p", "0"], "seg-4", "res_unet", False),
        (["--experiment", "seg-4", "-n", "arl", "-p", "0"], "arl_unet-scratch", "arl_unet", False),
        (["--experiment", "seg-5", "-n", "res", "-p", "1"], "res_unet-pretrained", "res_unet", True),
        (["-n", "unet", "--weights", "encoder.pth"], "unet-pretrained", "unet", True),
        (["-n", "arl", "--attention", "none"], "arl_unet-pretrained", "arl_unet", True),
    ],
)
def test_which_experiment_is_meant(arguments, name, net, pretrained):
    row = seg_main.choose(seg_main.parse(arguments))
    assert (row.name, row.net, row.pretrained) == (name, net, pretrained)
    assert (row.size, row.batch_size, row.epochs, row.lr, row.patience) == ((336, 224), 16, 150, 1e-4, 45)


def test_every_row_of_the_table_is_runnable_by_name():
    for name in experiments("segmentation"):
        row = EXPERIMENTS[name]
        assert seg_main.choose(seg_main.parse(["--experiment", name])) == row
        assert len(row.published) == (0 if name == "seg-b1" else 6)  # b: this project's own


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "."], "no train image with a mask; see python -m utils.data.check"),
        (["--device", "cuda:99"], "--device cuda:99: not available"),
        (["--weights", "none.pth"], "none.pth: no such file"),
        (["--weights", "none.pth", "-p", "0"], "--weights FILE starts from weights, -p 0 does not"),
        (["--experiment", "seg-4", "--alpha", "0"], "res_unet has no ARL block"),
        (["-n", "arl", "--attention", "none", "--alpha", "fixed"], "--attention none leaves no α"),
    ],
)
def test_a_mistake_stops_before_anything_is_made(arguments, message, tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*([] if "--data" in arguments else ["--data", str(data)]), *arguments]
    with pytest.raises(UserError, match=message) as caught:
        seg_main.main([*arguments, "--output", "model", "--cache", "cache"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--size", "31", "64"], "argument --size: 31 is below 32"),
        (["--epochs", "0"], "argument --epochs: 0 is below 1"),
        (["--seed", "4294967296"], "argument --seed: 4294967296 is not below 2^32"),
        (["--lr", "nan"], "argument --lr: nan is not a positive number"),
        (["--net", "vnet"], "invalid choice: 'vnet'"),
    ],
)
def test_values_that_are_out_of_range(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        seg_main.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_script_ends_with_one_line_and_exit_code_2(tmp_path):
    """From any folder, without a traceback."""
    done = script("--data", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: nowhere: no such folder")


def test_an_unreadable_file_is_named_before_training_starts(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = next((tmp_path / "data" / "ISIC-2017_Test_v2_Data").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    folders = ["--data", tmp_path / "data", "--output", tmp_path / "model", "--cache", tmp_path / "cache"]
    with pytest.raises(UserError, match=f"{path.name}: truncated"):
        seg_main.main(["-n", "res", "-p", "0", *QUICK, *map(str, folders)])
    assert not (tmp_path / "model").exists()
