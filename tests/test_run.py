"""The run folder: what it keeps, and that it destroys nothing."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from utils import UserError
from utils.data import Sample
from utils.run import Run, digest, environment

SETTINGS = {"net": "res_unet", "size": (128, 128), "lr": 1e-3}


def started(folder, settings=SETTINGS, resume=True) -> Run:
    return Run(folder, settings, {"message": "a note", **environment(torch.device("cpu"))}, resume=resume)


def test_config_says_what_the_run_was_made_with(tmp_path):
    run = started(tmp_path / "run0")
    config = run.read_json("config.json")
    assert config["settings"] == {"net": "res_unet", "size": [128, 128], "lr": 1e-3}
    assert config["message"] == "a note" and config["command"].startswith("python ")
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert {"git_commit", "device", "started", "platform"} <= config.keys()
    run.path("last.pth").touch()
    started(tmp_path / "run0")
    assert [entry["message"] for entry in run.read_json("config.json")["continued"]] == ["a note"]


def test_other_settings_are_refused_by_name(tmp_path):
    started(tmp_path / "run0").path("last.pth").touch()
    with pytest.raises(UserError, match=r"run0 was started with lr 0.001 \(now 0.01\): repeat those settings"):
        started(tmp_path / "run0", SETTINGS | {"lr": 1e-2})


def test_other_settings_are_fine_before_the_first_checkpoint(tmp_path):
    started(tmp_path / "run0")
    run = started(tmp_path / "run0", SETTINGS | {"lr": 1e-2})
    assert run.read_json("config.json")["settings"]["lr"] == 1e-2


def test_starting_afresh_keeps_the_old_runs(tmp_path):
    for number in range(3):
        run = started(tmp_path / "run0", SETTINGS | {"lr": number}, resume=False)
        run.path("last.pth").write_text(str(number))
    kept = {path.name: (path / "last.pth").read_text() for path in tmp_path.glob("run*")}
    assert kept == {"run0": "2", "run0.old1": "0", "run0.old2": "1"}


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, resume):
    (tmp_path / "run0").mkdir()
    (tmp_path / "run0" / "thesis.doc").write_text("three years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        started(tmp_path / "run0", resume=resume)
    assert [path.name for path in (tmp_path / "run0").iterdir()] == ["thesis.doc"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/run0 cannot be written .*--output"):
        started(tmp_path / "file" / "run0")


def test_other_pixels_are_refused_by_split(tmp_path):
    """Files that were exchanged under way: ids and labels are the same, what is trained on is not."""

    def begin(**prepared):
        return Run(tmp_path / "run0", SETTINGS, {"prepared": prepared}, resume=True)

    begin(train="v3-aa", validation="v3-bb").path("last.pth").touch()
    begin(train="v3-aa", validation="v3-bb", test="v3-cc")  # which were not there at first
    with pytest.raises(UserError, match=r"run0 was started with other train images or masks: files were changed"):
        begin(train="v3-dd", validation="v3-bb")


@pytest.mark.parametrize("names", [["config.json.partial"], []])
def test_what_a_kill_left_of_a_start_is_no_run_yet(tmp_path, names):
    (tmp_path / "run0").mkdir()
    for name in names:
        (tmp_path / "run0" / name).touch()
    assert started(tmp_path / "run0").read_json("config.json")["settings"]


def test_a_run_without_its_config_can_be_moved_aside(tmp_path):
    started(tmp_path / "run0").path("last.pth").touch()
    (tmp_path / "run0/config.json").unlink()
    with pytest.raises(UserError, match=r"config.json cannot be read .*start afresh with -c 0"):
        started(tmp_path / "run0")
    started(tmp_path / "run0", resume=False)
    assert (tmp_path / "run0.old1/last.pth").is_file()


@pytest.mark.parametrize(
    "text", ["epoch,lr\n1,\n", "epoch,lr\n1,0.1\n3,0.1\n", "lr\n0.1\n", "epoch,lr\n1\n", "epoch,lr\nx,1\n"]
)
def test_a_damaged_history_is_named(tmp_path, text):
    run = started(tmp_path / "run0")
    run.path("history.csv").write_text(text)
    with pytest.raises(UserError, match=r"history.csv: damaged \(.+\); start afresh with -c 0"):
        run.history()


def test_history_and_events(tmp_path):
    run = started(tmp_path / "run0")
    assert run.history() == []
    rows = [{"epoch": 1, "train_loss": 0.1 + 0.2}, {"epoch": 2, "train_loss": 1e-9}]
    run.write_history(rows)
    assert run.history() == rows  # to the last digit
    run.write_events(rows[0], 1)
    run.close()
    assert len(list(run.path("tensorboard").glob("events.*"))) == 1
    run.save_figure(Figure(), "empty.png")
    assert run.path("figures/empty.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_config_is_named(tmp_path):
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    run.path("config.json").write_text(json.dumps(SETTINGS)[:-5])
    with pytest.raises(UserError, match=r"config.json cannot be read .*-c 0"):
        started(tmp_path / "run0")
    for text, message in (("[]", "cannot be read"), ("{}", "holds no settings"), ('{"settings": 3}', "no settings")):
        run.path("config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config.json .*{message}.*; start afresh with -c 0"):
            started(tmp_path / "run0")


def test_digest_tells_other_images():
    a, b, c = (Sample(name, Path(name), None, None) for name in "abc")
    assert digest([b, a]) == digest([a, b]) != digest([a, c])
    assert digest([a, b]).startswith("2 images")
