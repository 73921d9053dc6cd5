"""Runs that are stopped, killed, or in each other's way: nothing is lost, and the exit code tells what happened."""

import errno
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

import seg_main
from tests.scripts.kill_training import differences
from utils import UserError
from utils.data.synthetic import make_synthetic
from utils.logger import run_script
from utils.model.checkpoints import save_checkpoint
from utils.model.run import Run, environment
from utils.model.weights import load_file
from utils.signals import NAMES

ROOT = Path(__file__).resolve().parents[2]
LONG_RUN = ROOT / "results" / "long_run.json"
COMMAND = ["-n", "mobilenet", "-p", "0", "--size", "32", "32", "--batch-size", "4", "--lr", "1e-3", "--epochs", "3"]
# Says when a step is done, and takes its time for it, so that a signal arrives within an epoch.
PROGRAM = """
import sys, time
import seg_main
from utils.logger import run_script
from utils.model.trainer import Trainer
step = Trainer.step
def slow(self, pieces):
    result = step(self, pieces)
    print("step", self.progress.epoch, self.progress.step, flush=True)
    time.sleep(0.15)
    return result
Trainer.step = slow
run_script(lambda: seg_main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    make_synthetic(folder / "data", {"train": 16, "validation": 3, "test": 3}, (72, 64), seed=4)
    (folder / "program.py").write_text(PROGRAM)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have: another number sums in another order
    seg_main.main(arguments(folder, "whole"))
    yield folder
    torch.set_num_threads(threads)


def arguments(folder: Path, output: str) -> list[str]:
    return [
        *COMMAND,
        "--data",
        str(folder / "data"),
        "--cache",
        str(folder / "cache"),
        "--output",
        str(folder / output),
    ]


def all_signals() -> None:
    """Those that the tests' own process ignores, as it does under nohup and in the background, arrive all the same."""
    for name in NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def begin(folder: Path, output: str, *before: str, workers: int = 0) -> subprocess.Popen:
    """The slow program, in its second epoch; the first of its process group."""
    command = [*before, sys.executable, "-u", str(folder / "program.py"), *arguments(folder, output)]
    command += ["--workers", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, preexec_fn=all_signals, start_new_session=True, **streams
    )
    for line in process.stdout:
        if line.startswith("step 1 1"):
            return process
    raise AssertionError(process.communicate())


def run_of(folder: Path, output: str) -> Path:
    (config,) = (folder / output).rglob("config.json")
    return config.parent


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
@pytest.mark.fault(
    "SIGTERM, SIGINT, SIGHUP or SIGUSR1 within an epoch",
    "a checkpoint after the step; exit code 128 + number; same end",
)
def test_a_signal_in_an_epoch_is_followed_after_the_step_and_nothing_is_lost(folder, name):
    process = begin(folder, name)
    number = getattr(signal, name)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = errors.strip().splitlines()
    assert len(last) == 1 and last[0].startswith(f"stopped by {name} in epoch 2 after step "), errors
    seg_main.main(arguments(folder, name))
    assert differences(run_of(folder, "whole"), run_of(folder, name)) == []
    assert "continued" in json.loads((run_of(folder, name) / "config.json").read_text())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.fault(
    "the same to the whole process group, with loader processes", "the same; no loader process dies of it"
)
def test_a_signal_to_the_group_spares_the_loader_processes(folder, name):
    """As a terminal that is closed, Ctrl-C, `torchrun` and job schedulers send it."""
    process = begin(folder, f"group-{name}", workers=2)
    number = getattr(signal, name)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert len(errors.splitlines()) == 1 and errors.startswith(f"stopped by {name} in epoch 2 after step "), errors
    seg_main.main(arguments(folder, f"group-{name}"))
    assert differences(run_of(folder, "whole"), run_of(folder, f"group-{name}")) == []


@pytest.mark.fault("SIGHUP to the process group under `nohup`, with loader processes", "the run goes on; same end")
def test_nohup_keeps_the_loader_processes_going(folder):
    process = begin(folder, "group-nohup", "nohup", workers=2)
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert differences(run_of(folder, "whole"), run_of(folder, "group-nohup")) == []


@pytest.mark.fault("whoever reads the output goes away (`| head`)", "the run goes on to its end")
def test_a_reader_that_goes_away_stops_nothing(folder):
    process = begin(folder, "head")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (run_of(folder, "head") / "metrics.json").is_file()
    assert differences(run_of(folder, "whole"), run_of(folder, "head")) == []


@pytest.mark.fault("a terminal that is closed", "a checkpoint after the step; exit code 129; same end")
def test_a_closed_terminal_is_a_hangup(folder):
    """A real one: its session's processes get SIGHUP, and writing to it fails from then on."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-u", str(folder / "program.py"), *arguments(folder, "terminal")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def own_terminal() -> None:
        all_signals()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = {"stdin": inner, "stdout": inner, "stderr": inner, "start_new_session": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=own_terminal, **streams)
    os.close(inner)
    shown = b""
    while b"step 1 1" not in shown:
        shown += os.read(outer, 4096)
    os.close(outer)
    assert process.wait(timeout=120) == 129
    seg_main.main(arguments(folder, "terminal"))
    assert differences(run_of(folder, "whole"), run_of(folder, "terminal")) == []


@pytest.mark.fault("SIGHUP under `nohup`", "the run goes on; same end")
def test_nohup_keeps_a_run_going(folder):
    process = begin(folder, "nohup", "nohup")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert differences(run_of(folder, "whole"), run_of(folder, "nohup")) == []


@pytest.mark.fault(
    "a second process in the same run folder, with or without `-c 0`",
    "refuses with a line; nothing is changed",
)
def test_a_second_process_in_the_same_folder_refuses(folder):
    process = begin(folder, "twice")
    process.send_signal(signal.SIGSTOP)  # so that it is not done before
    try:
        before = (run_of(folder, "twice") / "config.json").read_bytes()
        for more in ([], ["-c", "0"]):
            with pytest.raises(UserError, match="run0 is in use by another process; wait for it, stop it, or choose"):
                seg_main.main([*arguments(folder, "twice"), *more])
        assert (run_of(folder, "twice") / "config.json").read_bytes() == before
    finally:
        process.kill()
        process.communicate()
    seg_main.main(arguments(folder, "twice"))  # a killed process holds no lock
    assert differences(run_of(folder, "whole"), run_of(folder, "twice")) == []


def test_one_process_may_open_its_run_again(tmp_path):
    """As a notebook does, whose cell is run twice."""
    first = Run(tmp_path / "run0", {}, resume=True)
    with Run(tmp_path / "run0", {}, resume=True):
        pass
    first.close()


def small_disk(path: Path, megabytes: float) -> bool:
    """A tmpfs of that size at `path`; False where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.fault(
    "the disk is full while a checkpoint is written",
    "one line, exit code 2, the old checkpoint stays; same end once there is room",
)
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(folder):
    """On a tmpfs with room for the first checkpoints and not for the next (best.pth 26 MB, last.pth 79 MB)."""
    disk = folder / "disk"
    if not small_disk(disk, 200):
        pytest.skip("no tmpfs can be mounted here")
    try:
        program = (
            "import sys, seg_main\nfrom pathlib import Path\nfrom utils.logger import run_script\nimport utils.model.trainer\n"
            "save = utils.model.fit.save_checkpoint\n"
            "def save_and_fill(state, path):\n    save(state, path)\n"
            "    if path.name == 'last.pth' and state['progress']['epoch'] == 1:\n"
            f"        Path({str(disk / 'other')!r}).write_bytes(bytes(80_000_000))\n"
            "utils.model.fit.save_checkpoint = save_and_fill\n"
            "run_script(lambda: seg_main.main(sys.argv[1:]))\n"
        )
        (folder / "filling.py").write_text(program)
        command = [sys.executable, str(folder / "filling.py"), *arguments(folder, "disk")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device; make room" in done.stderr
        run = run_of(folder, "disk")
        assert not list(run.glob("*.partial"))
        (disk / "other").unlink()
        seg_main.main(arguments(folder, "disk"))
        assert differences(run_of(folder, "whole"), run) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault("the quota of the disk is used up", "one line, exit code 2, the old checkpoint stays")
def test_a_used_up_quota_is_one_line_and_the_old_checkpoint_stays(tmp_path, monkeypatch, capsys):
    path = tmp_path / "last.pth"
    save_checkpoint({"epoch": 1}, path)

    def used_up(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(os, "fsync", used_up)
    with pytest.raises(SystemExit) as end:
        run_script(lambda: save_checkpoint({"epoch": 2}, path))
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {path}: Disk quota exceeded; make room, and the same command (without -c 0) goes on"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"] and load_file(path) == {"epoch": 1}


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EACCES, "Permission denied; check its permissions, or choose another folder"),
        (errno.ENOENT, "No such file or directory; check the name"),
        (errno.EMFILE, "Too many open files; allow more open files (ulimit -n), or take fewer --workers"),
    ],
)
@pytest.mark.fault("the system refuses a file: permissions, name, too many open", "one line, exit code 2")
def test_what_the_system_refuses_is_one_line(capsys, number, way_out):
    def refused():
        raise OSError(number, os.strerror(number), "some/file")

    with pytest.raises(SystemExit) as end:
        run_script(refused)
    assert end.value.code == 2 and capsys.readouterr().err == f"error: some/file: {way_out}\n"


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 60)])
@pytest.mark.fault(
    "the computer's memory does not hold what a run needs", "one line that says what to try, exit code 2"
)
def test_a_lack_of_memory_is_one_line(capsys, ask):
    with pytest.raises(SystemExit) as end:
        run_script(ask)
    lines = capsys.readouterr().err.splitlines()
    assert (
        end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: out of memory; try a smaller --batch")
    )


@pytest.mark.fault("a terminal that knows ASCII only", "other characters are written as their codes")
def test_a_terminal_without_unicode_stops_nothing():
    program = "from utils.logger import log, run_script; run_script(lambda: log.info('336×224'))"
    variables = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(r"336\xd7224" + "\n")


def test_an_error_of_the_program_keeps_its_traceback():
    def wrong():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file descriptor"):
        run_script(wrong)


@pytest.mark.fault("the run folder is moved away under way", "one line, exit code 2")
def test_a_folder_deleted_under_way_is_one_line(folder):
    process = begin(folder, "deleted")
    run = run_of(folder, "deleted")
    run.rename(run.with_name("elsewhere"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and len(errors.splitlines()) == 1, errors
    assert "run0" in errors and "is no longer there" in errors


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root alone can take its own right to write away")
@pytest.mark.fault("a disk that cannot be written", "one line, exit code 2")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    if not small_disk(disk, 1):
        pytest.skip("no tmpfs can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match=r"run0 cannot be written \(Read-only file system\); choose --output DIR"):
            Run(disk / "run0", {}, resume=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault("the clock is set back", "nothing; same end")
def test_a_changed_clock_changes_nothing(folder, monkeypatch):
    """A day back in the middle of a run: times of the history come from a clock that only goes on."""
    now, real = [time.time()], time.time
    monkeypatch.setattr(time, "time", lambda: now[0] - 86400 + (real() - now[0]))
    seg_main.main(arguments(folder, "clock"))
    assert differences(run_of(folder, "whole"), run_of(folder, "clock")) == []
    rows = [line.split(",") for line in (run_of(folder, "clock") / "history.csv").read_text().splitlines()]
    assert all(float(row[rows[0].index("train_seconds")]) > 0 for row in rows[1:])


# Keeps count of its private memory in MB and its open files, epoch by epoch.
LONG = """
import json, os, sys
import seg_main
from utils.logger import run_script
from utils.model.run import Run
write = Run.write_history
seen = {}
def counting(self, rows):
    write(self, rows)
    memory = next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]
    seen[len(rows)] = (int(memory) / 1024, len(os.listdir("/proc/self/fd")))
Run.write_history = counting
run_script(lambda: seg_main.main(sys.argv[2:]))
json.dump(seen, open(sys.argv[1], "w"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_and_open_files_stay_flat(folder):
    """Over 20 epochs here, from the 6th on (LONG_EPOCHS=200 for more): 5 % of memory, and not one file more."""
    epochs = int(os.environ.get("LONG_EPOCHS", "20"))
    (folder / "long.py").write_text(LONG)
    command = arguments(folder, "long")
    command[command.index("--epochs") + 1] = str(epochs)
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(folder / "long.py"), str(folder / "long.json"), *command, "--patience", "999"]
    subprocess.run(program, cwd=folder, env=variables, stdout=subprocess.DEVNULL, check=True, timeout=900)
    seen = {int(epoch): values for epoch, values in json.loads((folder / "long.json").read_text()).items()}
    start, end = seen[epochs // 3], seen[epochs]
    if "LONG_EPOCHS" in os.environ:
        report = {"memory_mb_and_open_files": {epochs // 3: start, epochs: end}}
        report |= {"command": f"LONG_EPOCHS={epochs} python -m pytest -k stay_flat"}
        facts = {k: v for k, v in environment(torch.device("cpu")).items() if k != "command"}
        LONG_RUN.write_text(json.dumps(report | facts, indent=2) + "\n")
    assert end[0] < 1.05 * start[0] and end[1] <= start[1], (start, end)
