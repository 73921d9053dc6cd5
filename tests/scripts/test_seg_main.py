"""seg_main.py as a user runs it, on a few drawn images, and what both scripts have in common."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from isic_challenge_scoring.segmentation import SegmentationScore

import cls_main
import predict
import seg_main
from tests.conftest import ROOT
from tests.scripts.conftest import QUICK, flags
from utils import UserError
from utils.config import EXPERIMENTS, Experiment, experiments
from utils.model.build import build_model

SCRIPTS = {"segmentation": seg_main, "classification": cls_main}
RES = ["-n", "res", *QUICK]
TEST = "ISIC-2017_Test_v2_Data"


def script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "seg_main.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:isic_challenge_scoring")
def test_a_run_from_start_to_scores(folders, data, tmp_path, caplog):
    """Everything a run promises to keep; its scores are those that the challenge gives its masks; and what is next."""
    done = script("--experiment", "seg-b1", "-i", "7", "-m", "a note", *QUICK, *folders)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "model" / "seg-b1" / "run7"
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert kept >= {"config.json", "history.csv", "metrics.json", "per_image.csv", "best.pth", "last.pth"}
    assert kept >= {"figures/history.png", "figures/validation.png", "figures/test.png", "test_masks.zip"}
    assert any("tensorboard/events" in name for name in kept)
    assert not any(name.endswith(".partial") for name in kept)
    assert str(run) in done.stdout
    python, program, *arguments = shlex.split(done.stdout.splitlines()[-1])
    assert (ROOT / python, program) == (Path(sys.executable), "predict.py")
    with caplog.at_level("INFO"):
        predict.main([*arguments, "--output", str(tmp_path / "predictions")])
    assert caplog.messages[-1] == "3 of 3 predicted"

    metrics = json.loads((run / "metrics.json").read_text())
    for split, name, count in (("validation", "Validation", 6), ("test", "Test_v2", 3)):
        assert metrics[split]["images"] == count
        assert metrics[split]["pooled"].keys() == {*metrics[split]["official"], "mean_of_background_and_lesion"}
        with zipfile.ZipFile(run / f"{split}_masks.zip") as archive:
            archive.extractall(tmp_path / split)
        official = SegmentationScore.from_dir(data / f"ISIC-2017_{name}_Part1_GroundTruth", tmp_path / split)
        assert metrics[split]["official"] == pytest.approx(official.macro_average.to_dict(), abs=1e-12)
    table = pd.read_csv(run / "per_image.csv")
    assert list(table["split"]) == ["validation"] * 6 + ["test"] * 3
    assert (table[["tp", "fp", "fn", "tn"]].sum(axis=1) == 80 * 64).all()
    assert list(pd.read_csv(run / "history.csv")["epoch"]) == [1]
    config = json.loads((run / "config.json").read_text())
    assert config["message"] == "a note" and "seg_main.py --experiment seg-b1 -i 7" in config["command"]
    assert config["settings"]["pretrained"] is False and config["settings"]["size"] == [32, 32]


def test_the_same_command_continues_and_c_0_starts_afresh(folders, unscored):
    first, again, afresh = (seg_main.main([*RES, *folders, *more]) for more in ([], [], ["-c", "0"]))
    assert first.folder == again.folder == afresh.folder
    old = first.folder.with_name("run0.old1")
    assert len(json.loads((old / "config.json").read_text())["continued"]) == 1
    assert (old / "last.pth").is_file() and "continued" not in afresh.read_json("config.json")
    with pytest.raises(UserError, match=r"started with seed 0 \(now 3\)"):
        seg_main.main([*RES, *folders, "--seed", "3"])


@pytest.mark.parametrize(("task", "net"), [("segmentation", "res"), ("classification", "mobilenet")])
def test_p_0_needs_no_file(task, net, tmp_path):
    """Old fault: -p 0 was ignored for the Res-UNet."""
    config = SCRIPTS[task].parse(["-n", net, "-p", "0", "--output", str(tmp_path)])
    _, weights = build_model(config)
    assert weights is None and not config.pretrained and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "name", "net", "pretrained"),
    [
        (["-c=0", "-p=0"], "seg-2", "dense_unet", False),
        ([], "seg-3", "dense_unet", True),
        (["-n", "res"], "seg-4", "res_unet", True),
        (["-n", "res", "-p", "0"], "res_unet-scratch", "res_unet", False),
        (["--experiment", "seg-4", "-p", "0"], "seg-4", "res_unet", False),
        (["--experiment", "seg-4", "-n", "arl", "-p", "0"], "arl_unet-scratch", "arl_unet", False),
        (["-n", "unet", "--weights", "encoder.pth"], "unet-pretrained", "unet", True),
        (["-n", "arl", "--attention", "none"], "arl_unet-pretrained", "arl_unet", True),
        (["-n", "timm/a.b"], "timm_unet-a.b-pretrained", "timm_unet/a.b", True),
    ],
)
def test_which_experiment_is_meant(arguments, name, net, pretrained):
    config = seg_main.parse(arguments)
    assert (config.name, config.net, config.pretrained) == (name, net, pretrained)
    assert (config.size, config.batch_size, config.lr) == ((336, 224), 16, 1e-4)
    assert (config.epochs, config.patience) == (150, 45)
    assert (config.id, config.seed, config.resume) == (0, 0, "-c=0" not in arguments)


@pytest.mark.parametrize("task", SCRIPTS)
def test_every_row_of_the_table_is_runnable_by_name(task):
    for name in experiments(task):
        config = SCRIPTS[task].parse(["--experiment", name])
        assert Experiment(**{each.name: getattr(config, each.name) for each in fields(Experiment)}) == EXPERIMENTS[name]


@pytest.mark.parametrize("task", SCRIPTS)
def test_every_flag_is_a_field_of_the_config(task):
    folders = "--data d --output o --cache c --weights w --keep-copies"
    settings = "--epochs 2 --batch-size 8 --lr .1 --patience 7 --seed 5 --flips"
    computation = "--workers 2 --device cpu --amp bf16 --accumulate 4 --deterministic --sync-batchnorm --graphs off"
    config = SCRIPTS[task].parse(f"-i 3 -c 0 -m note {folders} {settings} {computation} --on-nan skip".split())
    expected = {
        "id": 3, "resume": False, "message": "note", "data": Path("d"), "output": Path("o"), "cache": Path("c"),
        "weights": Path("w"), "keep_copies": True, "epochs": 2, "batch_size": 8, "lr": 0.1, "patience": 7, "seed": 5,
        "flips": True, "workers": 2, "device": "cpu", "amp": "bf16", "accumulate": 4,
        "deterministic": True, "sync_batchnorm": True, "on_nan": "skip", "graphs": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert SCRIPTS[task].parse([]).graphs
    small = experiments(task)[-1]  # whose scores average flips
    assert [SCRIPTS[task].parse(["--experiment", small, *no]).flips for no in ([], ["--no-flips"])] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "."], "no train image with a mask; . holds nothing; expected ISIC-2017_Training_Data"),
        (["--device", "cuda:99"], "--device cuda:99: not available"),
        (["--weights", "none.pth"], "none.pth: no such file"),
        (["--weights", "none.pth", "-p", "0"], "--weights FILE starts from weights, -p 0 does not"),
        (["--experiment", "seg-4", "--alpha", "0"], "res_unet has no ARL block"),
        (["-n", "arl", "--attention", "none", "--alpha", "fixed"], "--attention none leaves no α"),
        (["-n", "timm/lcnet_05"], "no network named 'lcnet_05'; close to it: lcnet_0"),
        (["-n", "timm/lcnet_050", "--alpha", "0"], "timm_unet/lcnet_050 has no ARL block"),
    ],
)
def test_a_mistake_stops_before_anything_is_made(arguments, message, tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        seg_main.main(["--output", "model", "--cache", "cache", "--data", str(data), *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_unfit_images_are_named_before_training_starts(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = next((tmp_path / "data" / TEST).glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{path.name}: truncated"):
        seg_main.main([*RES, *flags(tmp_path / "data", tmp_path)])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (seg_main, ["--size", "31", "64"], "argument --size: 31 is below 32"),
        (seg_main, ["--epochs", "0"], "argument --epochs: 0 is below 1"),
        (seg_main, ["--seed", "4294967296"], "argument --seed: 4294967296 is not below 2^32"),
        (seg_main, ["--lr", "nan"], "argument --lr: nan is not a positive number"),
        (seg_main, ["--net", "arl50"], "arl50 is for classification: python cls_main.py -n arl50"),
        (cls_main, ["--experiment", "seg-1"], "seg-1 is for segmentation: python seg_main.py --experiment seg-1"),
        (cls_main, ["--class-weights", "1", "2", "0"], "argument --class-weights: 0 is not a positive number"),
        (cls_main, ["--class-weights", "1", "2", "balanced"], "argument --class-weights: could not convert"),
        (cls_main, ["--views", "center9"], "argument --views: invalid choice"),
        (cls_main, ["--loss", "dice_ce"], "argument --loss: invalid choice: 'dice_ce'"),
    ],
)
def test_values_that_are_out_of_range(script, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.parse(arguments)
    assert message in capsys.readouterr().err


def test_the_script_ends_with_one_line_and_exit_code_2(tmp_path):
    """From any folder, without a traceback."""
    done = script("-n", "res", "--alpha", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --attention and --alpha are for ARL networks, res_unet has no ARL block\n"
