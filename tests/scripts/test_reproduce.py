"""Rows × seeds unattended: results as the tables read them, passing over, going on, failing apart."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import reproduce
from reproduce import Runner, main, make_job
from tests.conftest import ROOT
from tests.scripts.conftest import QUICK, flags
from utils import UserError
from utils.model.run import KEPT, portable


def arguments(folder: Path, data: Path, *names: str, seeds: tuple = ("3",), more: tuple = ()) -> list[str]:
    images, output, cache = (flags(data, folder)[start : start + 2] for start in (0, 2, 4))
    results = ["--results", str(folder / "results")]
    return [*names, "--seeds", *seeds, *output, *results, "--", *QUICK, *images, *cache, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data) -> Path:
    """What a list of two runs leaves, the first of which fails at its start."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "model/seg-4").mkdir(parents=True)
    (folder / "model/seg-4/run3").write_text("in the way")
    with pytest.raises(UserError, match=r"1 failed.*\n  seg-4 seed 3: exit code 2, error: .*run3 cannot be written"):
        main(arguments(folder, data, "seg-4", "cls-b1"))
    return folder


def test_what_a_list_leaves_is_what_the_tables_read(folder):

    from utils.evaluation.runs import find_runs
    from utils.evaluation.score import wrong_scores

    (run,) = find_runs(folder / "results")
    assert (run.experiment, run.seed, run.folder) == ("cls-b1", 3, folder / "results/cls-b1/seed3")
    files = {path.name for path in run.folder.iterdir()}
    assert files == {"config.json", *(name for name in KEPT if not name.endswith(".zip"))} - {"per_image.csv"}
    config = json.loads((run.folder / "config.json").read_text())
    assert config["data"] == "synthetic"
    assert config["command"].startswith("python cls_main.py --experiment cls-b1 -i 3 --seed 3 --output model -p 0 ")
    assert run.metrics["test"] and not list(wrong_scores(run))  # the truth of both splits is kept
    for path in (folder / "results").rglob("*.json"):
        assert str(folder) not in path.read_text(), path


def test_what_is_in_results_is_passed_over_and_of_other_settings_refused(folder, data):
    """A list for a GPU must not pass over rows because small runs of them are there."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    main(arguments(folder, data, "cls-b1"))
    for more, differs in (
        (("--epochs", "2"), r"epochs 1 \(asked for: 2\)"),
        (("--views", "9"), r"views 1 \(asked for: 9\)"),
    ):
        with pytest.raises(UserError, match=f"cls-b1 seed 3: .*seed3 is of other settings, {differs}"):
            main(arguments(folder, data, "cls-b1", more=more))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_list_that_is_stopped_stops_its_run_and_starts_no_other(tmp_path, data):
    """The run writes its checkpoint, from which the same command goes on."""
    command = arguments(tmp_path, data, "seg-b1", seeds=("11", "12"), more=("--epochs", "400", "--patience", "400"))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "reproduce.py"), *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    run, end = tmp_path / "model/seg-b1/run11", time.monotonic() + 240
    while not (run / "last.pth").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in errors, errors
    assert "stopped by SIGTERM in epoch" in run.with_suffix(".log").read_text()
    assert not run.with_name("run12.log").exists()


PRETEND = """
import json, os, pathlib, sys, time
start, run = time.monotonic(), pathlib.Path(sys.argv[1])
time.sleep(0.3)
run.mkdir()
facts = {"command": "", "data": "", "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "time": [start, time.monotonic()]}
(run / "config.json").write_text(json.dumps(facts))
sys.exit("out of luck" if run.name == "run2" else 0)
"""  # in place of a training: tells when it was where, and fails with seed 2


def test_each_place_takes_one_run_at_a_time_and_has_its_share_of_the_cores(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: given.append(cores), raising=False)
    jobs = [make_job("seg-1", seed, [], tmp_path, tmp_path / "results") for seed in range(5)]
    failed = Runner(["0", "1"]).run([replace(job, command=("-c", PRETEND, str(job.folder))) for job in jobs])
    assert failed == [f"seg-1 seed 2: exit code 1, out of luck (see {tmp_path / 'seg-1/run2.log'})"]
    assert len(given) == 5 and set(given) == {(0, 2, 4), (1, 3)}
    runs = [json.loads((tmp_path / f"seg-1/run{seed}/config.json").read_text()) for seed in range(5)]
    assert {run["gpu"] for run in runs} == {"0", "1"}
    for gpu in "01":
        times = sorted(run["time"] for run in runs if run["gpu"] == gpu)
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    kept = {path.parent.name for path in (tmp_path / "results").rglob("config.json")}
    assert kept == {f"seed{seed}" for seed in (0, 1, 3, 4)}


@pytest.mark.parametrize("flags", [["--seed", "3"], ["-i", "1"], ["--output", "x"], ["-c", "0"]])
def test_what_tells_runs_apart_may_not_be_among_the_flags(flags, tmp_path):
    with pytest.raises(UserError, match="may not follow --"):
        make_job("seg-4", 0, flags, tmp_path / "model", tmp_path / "results")


def test_arl18_is_trained_before_seg_5_where_it_is_not_there(tmp_path, monkeypatch):
    lists = []
    monkeypatch.setattr(Runner, "run", lambda self, jobs: lists.append([job.name for job in jobs]) or [])
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


def test_jobs_are_the_scripts_commands(tmp_path, monkeypatch):
    job = make_job("cls-2-4", 2, ["--lr", "1e-3"], tmp_path / "model", tmp_path / "results")
    assert job.command[:3] == ("cls_main.py", "--experiment", "cls-2-4")
    assert job.config.folder == tmp_path / "model/cls-2-4/run2" and (job.config.seed, job.config.lr) == (2, 1e-3)
    assert job.results == tmp_path / "results/cls-2-4/seed2" and job.name == "cls-2-4 seed 2"
    job = make_job("arl", 0, ["-p", "0"], tmp_path, tmp_path)
    assert (job.config.net, job.results) == ("arl_unet", tmp_path / "arl_unet-scratch/seed0")
    (tmp_path / "mine/images").mkdir(parents=True)
    (tmp_path / "mine/masks").mkdir()
    for fold, name in (([], "mine-seg-1/run2"), (["--fold", "2/5"], "mine-seg-1-5fold/run2")):  # as training calls it
        job = make_job("seg-1", 2, ["--data", str(tmp_path / "mine"), *fold], tmp_path, tmp_path / "results")
        assert job.folder == tmp_path / name and job.results == tmp_path / "results" / Path(name).parent / "seed2"
    monkeypatch.chdir(tmp_path)  # the script runs in the repository's root
    job = make_job("seg-1", 0, ["--data", "mine"], tmp_path, tmp_path)
    assert job.command[-2:] == ("--data", str(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"mobilenet is a network of both tasks: name a row of it \(cls-b1, seg-b1\)"):
        make_job("mobilenet", 0, [], tmp_path, tmp_path)
    with pytest.raises(UserError, match="'seg-9' is neither a row"):
        make_job("seg-9", 0, [], tmp_path, tmp_path)


def test_commands_are_kept_without_this_machines_folders():
    command = "python seg_main.py --experiment seg-1 --data /home/me/ISIC2017 --output '/home/me/my runs' -m 'a b'"
    assert portable(command) == "python seg_main.py --experiment seg-1 --data ISIC2017 --output 'my runs' -m 'a b'"
