"""Rows × seeds unattended: results as the tables read them, passing over, going on, failing apart."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

import reproduce
import seg_main
from reproduce import KEPT, ROOT, Runner, main, make_job, portable
from utils import UserError
from utils.data.synthetic import make_synthetic
from utils.evaluation.runs import find_runs

FLAGS = ["-p", "0", "--size", "32", "32", "--epochs", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    make_synthetic(folder / "data", {"train": 12, "validation": 6, "test": 3}, (72, 64), seed=4)
    return folder


def arguments(folder, *names, seeds=("0",), more=()):
    where = ["--output", str(folder / "model"), "--results", str(folder / "results")]
    data = ["--data", str(folder / "data"), "--cache", str(folder / "cache")]
    return [*names, "--seeds", *seeds, *where, "--", *FLAGS, *data, *more]


def test_a_list_of_rows_runs_and_is_passed_over_the_second_time(folder, capfd):
    commands = [arguments(folder, "seg-4", "resnet14", seeds=("3",)), arguments(folder, "resnet14", seeds=("0", "3"))]
    for command in commands:
        main(command)
    runs = find_runs(folder / "results")
    found = {(run.experiment, run.seed, run.folder.parent.name, run.folder.name) for run in runs}
    names = ("seg-4", "resnet14-scratch")  # seg-4 from random weights is still that row, with a note
    expected = {(name, 3, name, "seed3") for name in names} | {("resnet14-scratch", 0, "resnet14-scratch", "seed0")}
    assert found == expected
    files = {path.name for path in (folder / "results/resnet14-scratch/seed3").iterdir()}
    assert files == {"config.json", *KEPT} - {"per_image.csv", "validation_masks.zip", "test_masks.zip"}
    assert json.loads((folder / "results/resnet14-scratch/seed0/config.json").read_text())["data"] == "data"
    for path in (folder / "results").rglob("*.json"):
        assert str(folder) not in path.read_text(), path
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    main(commands[0])
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}


def test_a_run_that_fails_is_named_and_the_others_go_on(folder):
    command = arguments(folder, "seg-4", "resnet14", seeds=("7",))
    folder.joinpath("model/seg-4").mkdir(parents=True, exist_ok=True)
    folder.joinpath("model/seg-4/run7").write_text("in the way")
    with pytest.raises(UserError, match=r"1 failed.*\n  seg-4 seed 7: exit code 2, error: .*run7 cannot be written"):
        main(command)
    assert not (folder / "results/seg-4/seed7/metrics.json").exists()
    assert (folder / "results/resnet14-scratch/seed7/metrics.json").exists()


def test_results_of_other_settings_are_no_results_of_this_command(folder):
    """A list for a GPU must not pass over rows because small runs of them are there."""
    with pytest.raises(UserError, match=r"seg-4 seed 3: .*seed3 is of other settings, epochs 1 \(asked for: 2\): move"):
        main(arguments(folder, "seg-4", seeds=("3",), more=["--epochs", "2"]))
    with pytest.raises(UserError, match=r"other settings, views 9 \(asked for: 1\): move"):
        main(arguments(folder, "resnet14", seeds=("3",), more=["--views", "1"]))


@pytest.mark.parametrize("flags", [["--seed", "3"], ["-i", "1"], ["--output", "x"], ["-c", "0"]])
def test_what_tells_runs_apart_may_not_be_among_the_flags(flags, tmp_path):
    with pytest.raises(UserError, match="may not follow --"):
        make_job("seg-4", 0, flags, tmp_path / "model", tmp_path / "results")


def test_arl18_is_trained_before_seg_5_where_it_is_not_there(tmp_path, monkeypatch):
    lists = []
    monkeypatch.setattr(reproduce.Runner, "run", lambda self, jobs: lists.append([job.name for job in jobs]) or [])
    monkeypatch.setattr(reproduce, "MODEL", tmp_path / "none")
    where = ["--output", str(tmp_path), "--results", str(tmp_path / "results")]
    main(["seg-4", "seg-5", "--seeds", "1", "2", *where])
    rows = ["seg-4 seed 1", "seg-5 seed 1", "seg-4 seed 2", "seg-5 seed 2"]
    assert lists == [["arl18-pretrained seed 1"], rows]
    lists.clear()
    main(["seg-5", "--seeds", "1", *where, "--", "-p", "0"])
    main(["seg-5", "--seeds", "1", *where, "--", "--weights", "mine.pth"])
    (tmp_path / "arl18.pth").touch()
    main(["seg-5", "--seeds", "1", *where])
    assert lists == 3 * [["seg-5 seed 1"]]


@pytest.mark.fault("SIGTERM to a list of runs", "the run under way writes its checkpoint, no other starts; same end")
def test_a_list_that_is_stopped_stops_its_run_and_goes_on(folder):
    command = [sys.executable, str(ROOT / "reproduce.py")]
    command += arguments(folder, "seg-4", seeds=("11", "12"), more=["--epochs", "400", "--patience", "400"])
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=default_sigterm)
    run = folder / "model/seg-4/run11"
    end = time.monotonic() + 120
    while not (run / "last.pth").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in errors, errors
    assert "stopped by SIGTERM in epoch" in (folder / "model/seg-4/run11.log").read_text()
    assert not (folder / "model/seg-4/run12.log").exists()


def default_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_jobs_are_the_scripts_commands(tmp_path):
    job = make_job("cls-2-4", 2, ["--lr", "1e-3"], tmp_path / "model", tmp_path / "results")
    assert job.script == "cls_main.py" and job.run == tmp_path / "model/cls-2-4/run2"
    assert job.results == tmp_path / "results/cls-2-4/seed2" and job.name == "cls-2-4 seed 2"
    row = seg_main.choose(seg_main.parse(list(make_job("arl", 0, ["-p", "0"], tmp_path, tmp_path).arguments)))
    assert row.net == "arl_unet"
    with pytest.raises(UserError, match="'seg-9' is neither a row"):
        make_job("seg-9", 0, [], tmp_path, tmp_path)


def test_commands_are_kept_without_this_machines_folders():
    command = "python seg_main.py --experiment seg-1 --data /home/me/ISIC2017 --output '/home/me/my runs' -m 'a b'"
    assert portable(command) == "python seg_main.py --experiment seg-1 --data ISIC2017 --output 'my runs' -m 'a b'"


def test_each_device_takes_one_run_at_a_time(tmp_path, monkeypatch):
    jobs = [make_job("seg-1", seed, [], tmp_path, tmp_path / "results") for seed in range(8)]
    busy, most, lock = {}, {}, threading.Lock()

    def run_job(_runner, job, device):
        with lock:
            busy[device] = busy.get(device, 0) + 1
            most[device] = max(most.get(device, 0), busy[device])
        time.sleep(0.02)
        with lock:
            busy[device] -= 1
        return job.name if job.name.endswith("3") else None

    monkeypatch.setattr(Runner, "run_job", run_job)
    assert Runner(["0", "1", "2"], None).run(jobs) == ["seg-1 seed 3"]
    assert most == {"0": 1, "1": 1, "2": 1}
