"""The run folder: what it keeps, and that it destroys nothing."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from matplotlib.figure import Figure

from tests.small import CPU
from utils import UserError
from utils.data.isic import Sample
from utils.logger import log
from utils.model import run as run_module
from utils.model.run import Run, digest, environment

SETTINGS = {"net": "res_unet", "size": (128, 128), "lr": 1e-3}


def started(folder, settings=SETTINGS, resume=True, **facts) -> Run:
    return Run(folder, settings, facts, resume=resume)


def test_config_says_what_the_run_was_made_with(tmp_path):
    run = started(tmp_path / "run0", message="a note", **environment(CPU))
    config = run.read_json("config.json")
    assert config["settings"] == {"net": "res_unet", "size": [128, 128], "lr": 1e-3}
    assert config["message"] == "a note" and config["command"].startswith("python ")
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert {"git_commit", "device", "started", "platform"} <= config.keys()
    run.path("last.pth").touch()
    started(tmp_path / "run0", message="another")
    told = run.read_json("config.json")
    assert (told["message"], [entry["message"] for entry in told["continued"]]) == ("a note", ["another"])


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_is_that_of_this_repository_and_of_no_outer_one(tmp_path, monkeypatch):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)

    def git(folder, *arguments):
        as_somebody = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", folder, *as_somebody, *arguments], check=True, capture_output=True)

    def commit() -> str | None:
        return environment(CPU)["git_commit"]

    monkeypatch.setattr(run_module, "ROOT", inner)
    for folder in (tmp_path / "outer", inner):
        assert commit() is None
        git(folder, "init")
        (folder / "file").write_text("one")
        git(folder, "add", "file")
        git(folder, "commit", "-m", "first")
    assert len(commit()) == 40
    (inner / "file").write_text("two")
    assert commit().endswith("+changes")


def test_other_settings_are_refused_by_name(tmp_path):
    """But before the first checkpoint, when nothing has been done by them."""
    started(tmp_path / "run0", SETTINGS | {"net": "two\nlines"})
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    with pytest.raises(UserError, match=r"run0 was started with lr 0.001 \(now 0.01\): repeat those settings"):
        started(tmp_path / "run0", SETTINGS | {"lr": 1e-2})
    with pytest.raises(UserError, match=r"with net res_unet \(now two lines\)") as error:
        started(tmp_path / "run0", SETTINGS | {"net": "two\nlines"})
    assert str(error.value).isprintable() and run.read_json("config.json")["settings"]["lr"] == 1e-3


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


def test_other_pixels_are_refused_by_split_but_for_those_of_the_test(tmp_path):
    """Files that were exchanged under way: ids and labels are the same, what is trained on is not."""
    prepared = {"train": "v3-aa", "validation": "v3-bb"}
    started(tmp_path / "run0", prepared=prepared | {"test": "v3-cc"}).path("last.pth").touch()
    for other in ({}, {"test": "v3-ee"}):
        started(tmp_path / "run0", prepared=prepared | other)
    with pytest.raises(UserError, match=r"run0 was started with other train images or masks, or ones prepared in "):
        started(tmp_path / "run0", prepared=prepared | {"train": "v3-dd"})


def test_what_differs_of_the_machine_is_told(tmp_path, caplog):
    """Of a run of a version that did not tell nothing is said."""
    facts = ({}, {"arl_kernel": True}, {"arl_kernel": True}, {"arl_kernel": False, "precision": "cpu in float32"})
    for number, each in enumerate(facts):
        with caplog.at_level("WARNING", "isic2017"):
            started(tmp_path / "run0", **each).path("last.pth").touch()
        assert bool(caplog.messages) == (number == 3)
    assert "was begun with another ARL kernel: from here on its numbers may differ" in caplog.text


@pytest.mark.parametrize("names", [["config.json.partial"], []])
def test_what_a_kill_left_of_a_start_is_no_run_yet(tmp_path, names):
    (tmp_path / "run0").mkdir()
    for name in names:
        (tmp_path / "run0" / name).touch()
    run = started(tmp_path / "run0")
    assert run.read_json("config.json")["settings"] and not list(run.folder.glob("*.partial"))


@pytest.mark.parametrize("text", [None, '{"settings": {}', '{"settings": 3}'])
def test_a_damaged_config_is_named_and_the_run_can_be_moved_aside(tmp_path, text):
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    run.path("config.json").unlink() if text is None else run.path("config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: damaged, or of another version \(.+\); start afresh with -c 0"):
        started(tmp_path / "run0")
    started(tmp_path / "run0", resume=False)
    assert (tmp_path / "run0.old1/last.pth").is_file()


@pytest.mark.parametrize("text", ["epoch,lr\n1,\n", "epoch,lr\n1,0.1\n3,0.1\n", "lr\n0.1\n"])
def test_a_damaged_history_is_named(tmp_path, text):
    run = started(tmp_path / "run0")
    run.path("history.csv").write_text(text)
    with pytest.raises(UserError, match=r"history.csv: damaged, or of another version \(.+\); start afresh with -c 0"):
        run.history()


def test_a_history_is_kept_to_the_last_digit_with_the_columns_of_other_versions(tmp_path):
    run = started(tmp_path / "run0")
    assert run.history() == []
    rows = [{"epoch": 1, "old": 0.1 + 0.2, "lr": 0.1}, {"epoch": 2, "lr": 1e-9, "new": 0.25}]
    run.write_history(rows)
    first, second = run.history()
    assert [{k: v for k, v in row.items() if v == v} for row in (first, second)] == rows
    assert first.keys() == second.keys() == {"epoch", "old", "lr", "new"}
    run.save_figure(Figure(), "empty.png")
    assert run.path("figures/empty.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["real/run0", "link", "linked/run0"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_use_is_so_under_all_its_names(tmp_path, name, resume):
    """And nothing in it changes. Its own process may open it again, as a notebook does whose cell is run twice."""
    with started(tmp_path / "real/run0"):
        pass
    (tmp_path / "link").symlink_to("real/run0")
    (tmp_path / "linked").symlink_to("real")
    before = (tmp_path / "real/run0/config.json").read_bytes()
    with FileLock(tmp_path / "real/.run0.lock"):
        with pytest.raises(UserError, match="is in use by another process; wait for it, stop it, or choose another"):
            started(tmp_path / name, SETTINGS | {"lr": 1}, resume=resume)
        assert (tmp_path / "real/run0/config.json").read_bytes() == before and not list(tmp_path.rglob("*.old1"))
    with started(tmp_path / name), started(tmp_path / name):
        pass


def test_tensorboard_reads_the_events(tmp_path, monkeypatch):
    """Of a run that was killed after its third epoch was written here and before its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files are read in the order of their names, which within one second of one process end in a count: 10 is before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for first, losses in ((1, [0.5, 0.25, 99.0]), (3, [0.125])):
        with started(tmp_path / "run0") as run:
            for epoch, loss in enumerate(losses, start=first):
                row = {"epoch": epoch, "lr": 0.1, "train_loss": loss, "val_score": float("nan"), "train_seconds": 9}
                run.write_events(row, np.full((4, 6, 3), 7, np.uint8))
    read = EventAccumulator(str(run.path("tensorboard"))).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert read.Tags()["scalars"] == ["train/lr", "train/loss", "val/score", "speed/seconds"]
    shown = read.Images("val/outlines")[-1]
    assert (shown.step, shown.height, shown.width) == (3, 4, 6)
    parameters = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"res_unet" in parameters and b"lr" in parameters


def test_what_is_logged_is_kept_with_the_run(tmp_path, caplog):
    """Until it ends, and what ended it; a run that goes on adds to it."""
    caplog.set_level("INFO", "isic2017")
    with started(tmp_path / "run0") as run:
        log.info("epoch 1/2")
    with pytest.raises(UserError), started(tmp_path / "run0"):
        raise UserError("no room")
    log.info("afterwards")
    lines = [line.split(" ", 2)[2] for line in run.path("train.log").read_text().splitlines()]
    assert lines == ["epoch 1/2", "ended by UserError: no room"]


def test_a_broken_tensorboard_stops_nothing(tmp_path, monkeypatch, caplog):
    """Of whose import anything may come. Said once."""
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace(__version__=3))  # torch compares it: TypeError
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with caplog.at_level("WARNING", "isic2017"), started(tmp_path / "run0") as run:
        for epoch in (1, 2):
            run.write_events({"epoch": epoch, "train_loss": 0.5})
    assert len(caplog.messages) == 1 and "no TensorBoard events from epoch 1 on" in caplog.text
    assert not run.path("tensorboard").exists()


def test_digest_tells_other_images():
    a, b, c = (Sample(name, Path(name), None, None) for name in "abc")
    assert digest([b, a]) == digest([a, b]) != digest([a, c])
    assert digest([a, b]).startswith("2 images")
