"""The run folder: what it keeps, and that it destroys nothing."""

import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from utils import UserError
from utils.data.isic import Sample
from utils.files import MAX_DEPTH, written_whole
from utils.logger import run_script
from utils.model.run import Run, digest, environment

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
    "text",
    [
        *("epoch,lr\n1,\n", "epoch,lr\n1,0.1\n3,0.1\n", "lr\n0.1\n", "epoch,lr\n1\n", "epoch,lr\nx,1\n"),
        *(f"epoch,lr\n{epoch},0.1\n" for epoch in ("inf", "nan", "1e400", "1.5", "-1", "9" * 400)),
    ],
)
def test_a_damaged_history_is_named(tmp_path, text):
    run = started(tmp_path / "run0")
    run.path("history.csv").write_text(text)
    with pytest.raises(UserError, match=r"history.csv: damaged \(.+\); start afresh with -c 0"):
        run.history()


def test_epochs_of_another_version_keep_their_columns(tmp_path):
    run = started(tmp_path / "run0")
    rows = [{"epoch": 1, "old": 0.5, "lr": 0.1}, {"epoch": 2, "lr": 0.2, "new": 0.25}]
    run.write_history(rows)
    first, second = run.history()
    assert [{k: v for k, v in row.items() if v == v} for row in (first, second)] == rows
    assert first.keys() == second.keys() == {"epoch", "old", "lr", "new"}


DAMAGED = {
    "prepared": [["v3-aa"], None, "v3-aa", 3],
    "continued": [3, None, {}, "x", [3], [{}, None]],
    "settings": [{"weights": 3}, {"weights": ["a"]}],
}


@pytest.mark.fault("a config.json, of a run that goes on, with something else in it", "one line, exit code 2")
@pytest.mark.parametrize(("name", "value"), [(name, value) for name in DAMAGED for value in DAMAGED[name]])
def test_a_config_with_something_else_in_it_is_refused(tmp_path, name, value):
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    run.path("config.json").write_text(json.dumps(run.read_json("config.json") | {name: value}))
    with pytest.raises(
        UserError, match=r"config.json: weights, prepared or continued is damaged; start afresh with -c"
    ):
        Run(tmp_path / "run0", SETTINGS, {"prepared": {"train": "v3-aa"}}, resume=True)


def test_a_run_that_goes_on_without_the_compiled_function_says_so(tmp_path, caplog):
    for kernel in (True, False):
        with caplog.at_level("WARNING", "isic2017"):
            Run(tmp_path / "run0", SETTINGS, {"arl_kernel": kernel}, resume=True).path("last.pth").touch()
    assert "goes on with other arl_kernel: not to the same bits" in caplog.text


@pytest.mark.parametrize("versions", [3, None, ["torch"], {"torch": {}}])
def test_odd_versions_are_other_versions(tmp_path, versions, caplog):
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    run.write_json("config.json", run.read_json("config.json") | {"versions": versions})
    with caplog.at_level("WARNING", "isic2017"):
        started(tmp_path / "run0")
    assert "goes on with other versions: not to the same bits" in caplog.text


@pytest.mark.fault("a config.json, of a run that goes on, nested without end", "one line, exit code 2")
@pytest.mark.parametrize("depth", [MAX_DEPTH, 500, 100_000])
def test_a_config_nested_without_end_is_refused(tmp_path, depth):
    run = started(tmp_path / "run0")
    run.path("last.pth").touch()
    run.path("config.json").write_text('{"settings": {}, "message": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError, match=r"config.json cannot be read \(nested too deeply\); start afresh with -c 0"):
        started(tmp_path / "run0")


def test_brackets_in_a_note_nest_nothing(tmp_path):
    note = "[{" * MAX_DEPTH + '"\\"['
    for _ in range(2):
        Run(tmp_path / "run0", SETTINGS, {"message": note}, resume=True).path("last.pth").touch()
    assert Run(tmp_path / "run0", SETTINGS, {}, resume=True).read_json("config.json")["message"] == note


def test_a_folder_whose_name_is_not_utf8_is_a_folder(tmp_path):
    run = started(Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9/run0")))
    assert run.read_json("config.json")["settings"]["net"] == "res_unet"


def test_a_run_of_a_version_that_did_not_tell_is_not_said_to_differ(tmp_path, caplog):
    for facts in ({}, {"arl_kernel": True}):
        Run(tmp_path / "run0", SETTINGS, facts, resume=True).path("last.pth").touch()
    assert caplog.text == ""


def test_settings_of_several_lines_are_told_in_one(tmp_path):
    started(tmp_path / "run0", SETTINGS | {"net": "two\nlines"}).path("last.pth").touch()
    with pytest.raises(UserError, match=r"net two lines \(now res_unet\)") as error:
        started(tmp_path / "run0")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2Jrun", "\x00"])
def test_a_folder_whose_name_breaks_the_line_is_refused(tmp_path, name):
    with pytest.raises(
        UserError, match="a line break or control character in a name; choose another --output"
    ) as error:
        started(tmp_path / name / "run0")
    assert str(error.value).isprintable() and not any(tmp_path.iterdir())


@pytest.mark.fault("a second process in the same run folder, under another name of it (a link)", "refuses with a line")
@pytest.mark.parametrize(
    "name", ["real/run0", "link", "linked/run0", "linked/../real/run0", "link2", "real/run1", "away"]
)
def test_a_folder_in_use_is_so_under_all_its_names(tmp_path, name):
    (tmp_path / "real/run0").mkdir(parents=True)
    for link, target in (("link", "real/run0"), ("linked", "real"), ("link2", "link"), ("away", "real/run1")):
        (tmp_path / link).symlink_to(target)
    place = "run1" if name in ("real/run1", "away") else "run0"
    with FileLock(tmp_path / f"real/.{place}.lock"), pytest.raises(UserError, match="is in use by another process"):
        started(tmp_path / name)
    if name != "away":
        started(tmp_path / name).close()


def test_a_run_in_place_of_a_link_that_was_moved_aside_is_in_use(tmp_path):
    with started(tmp_path / "real"):
        pass
    place = tmp_path / "place"
    place.mkdir()
    (place / "run0").symlink_to("../real")
    (tmp_path / "linked").symlink_to("place")
    with started(tmp_path / "linked/run0", resume=False):
        assert (place / "run0.old1").is_symlink() and not (place / "run0").is_symlink()
        with pytest.raises(Timeout), FileLock(place / ".run0.lock", timeout=0):
            pass
    with FileLock(place / ".run0.lock", timeout=0), FileLock(tmp_path / ".real.lock", timeout=0):
        pass  # both are given back


def test_one_lock_is_given_back_when_the_other_is_taken(tmp_path):
    (tmp_path / "run0").symlink_to("real")
    with FileLock(tmp_path / ".real.lock"), pytest.raises(UserError, match="in use"):
        started(tmp_path / "run0")
    with FileLock(tmp_path / ".run0.lock", timeout=0):
        pass


@pytest.mark.fault("the disk is full while TensorBoard's events are written", "one line, exit code 2")
def test_a_disk_full_of_events_is_one_line(tmp_path, capsys):
    run = started(tmp_path / "run0")
    run.write_events({"epoch": 1, "train_loss": 0.5}, 1)
    (events,) = run.path("tensorboard").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size + 10, before[1]))
        with pytest.raises(SystemExit) as end:
            run_script(lambda: run.write_events({"epoch": 2, "train_loss": 0.25}, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.close()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {events}: File too large; make room, and the same command (without -c 0) goes on\n"
    )


@pytest.mark.fault("tensorboard/ of a run is deleted under way", "it is made again")
def test_events_survive_their_folder(tmp_path, capsys):
    run = started(tmp_path / "run0")
    run.write_events({"epoch": 1, "train_loss": 0.5}, 1)
    run.path("tensorboard").rename(tmp_path / "elsewhere")
    run.write_events({"epoch": 2, "train_loss": 0.25}, 2)
    run.close()
    assert len(list(run.path("tensorboard").iterdir())) == 1 and capsys.readouterr().err == ""


def test_tensorboard_reads_the_events(tmp_path):
    """Of a run that was killed after its third epoch was written here and before its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, losses in ((1, [0.5, 0.25, 99.0]), (3, [0.125])):
        with started(tmp_path / "run0") as run:
            for epoch, loss in enumerate(losses, start=first):
                run.write_events({"epoch": epoch, "train_loss": loss, "val_score": float("nan")}, epoch)
        run.path("tensorboard").rename(tmp_path / f"events{first}")  # a second one of this process and second
    (tmp_path / "all").mkdir()
    for number, path in enumerate(sorted(tmp_path.glob("events*/*"))):
        path.rename(tmp_path / f"all/events.out.tfevents.{number}")
    read = EventAccumulator(str(tmp_path / "all")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train_loss")] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert read.Tags()["scalars"] == ["train_loss", "val_score"]


@pytest.mark.fault("a disk that cannot flush a folder (some network file systems)", "nothing; the run goes on")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_stops_nothing(tmp_path, monkeypatch, number):
    flush = os.fsync

    def refuse_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with written_whole(tmp_path / "file") as file:
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.fault("a disk that fails under a file", "one line that names the file, exit code 2")
def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write():
        with written_whole(tmp_path / "file"):
            pass

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SystemExit):
        run_script(write)
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: Input/output error; check the disk\n"


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
