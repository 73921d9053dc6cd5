"""Kill real training at random moments, above all while checkpoints are written, and see that nothing is lost.

    python -m tests.scripts.kill_training seg --kills 100
    python -m tests.scripts.kill_training cls --kills 100

A small network trains on drawn images; the process is killed (SIGKILL, one in five with SIGTERM) and the same command
goes on, over and over. The final weights, moments, history and scores must be those of a run that was left alone, bit
for bit, and every checkpoint that a kill leaves must load. Prints a JSON report.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import cv2
import torch

import cls_main
import seg_main
from utils.data.synthetic import make_synthetic
from utils.logger import run_script
from utils.model.run import environment
from utils.model.weights import load_file

COMMANDS: dict[str, tuple[ModuleType, list[str]]] = {
    "seg": (seg_main, ["-n", "mobilenet", "--batch-size", "4"]),
    "cls": (cls_main, ["-n", "mobilenet", "--batch-size", "4", "--train-views", "frame"]),
}
LONGEST = 2.0  # seconds that a process may run before it is killed: two to four epochs
TERM = signal.SIGTERM


def start(script: ModuleType, command: list[str], log: Path) -> int:
    """A process that trains; returns its number. Forked, so that it need not import anything."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        run_script(lambda: script.main(command))
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def wait(pid: int, seconds: float | None) -> int | None:
    """The process's exit code (negative: the signal that ended it), or None when it still runs after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


def wait_for_write(pid: int, folder: Path, seconds: float) -> int | None:
    """As `wait`, but back as soon as something is being written in the folder."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(folder.glob("*.partial")):
            return None
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    return None


def history(run: Path) -> list[list[str]]:
    """Without the columns that a clock wrote."""
    rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    clock = [place for place, name in enumerate(rows[0]) if name in ("train_seconds", "images_per_second")]
    return [[value for place, value in enumerate(row) if place not in clock] for row in rows]


def differences(one: Path, two: Path) -> list[str]:
    """What two finished runs differ in."""
    found = []
    for name in ("last.pth", "best.pth"):
        a, b = (torch.load(run / name, weights_only=True) for run in (one, two))
        found += [f"{name}: {key}" for key in a["model"] if not torch.equal(a["model"][key], b["model"][key])]
        found += [f"{name}: progress {a['progress']} {b['progress']}"] * (a["progress"] != b["progress"])
    a, b = (torch.load(run / "last.pth", weights_only=True) for run in (one, two))
    for key, moments in a["optimizer"]["state"].items():
        found += [
            f"moments {key}" for name in moments if not torch.equal(moments[name], b["optimizer"]["state"][key][name])
        ]
    found += ["history.csv"] * (history(one) != history(two))
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    return found + ["metrics.json"] * (a != b)


def harness(task: str, kills: int, seed: int, folder: Path) -> dict:
    """Kill a training `kills` times, then let it end; returns what happened."""
    script, options = COMMANDS[task]
    cv2.setNumThreads(0)  # its threads, which a fork does not copy, may hold a lock at that moment
    make_synthetic(folder / "data", {"train": 16, "validation": 6, "test": 3}, (72, 64), seed=1)
    common = [*options, "-p", "0", "--size", "32", "32", "--lr", "1e-3", "--device", "cpu", "--patience", "1000"]
    common += ["--data", str(folder / "data"), "--cache", str(folder / "cache"), "--epochs", str(5 + 4 * kills)]
    log = folder / "log.txt"
    report = {
        "task": task,
        "kills": 0,
        "while_writing": 0,
        "mid_epoch_checkpoints": 0,
        "by_signal": {},
    }
    whole, cut = ([*common, "--output", str(folder / name)] for name in ("whole", "cut"))
    began = time.monotonic()
    if code := wait(start(script, whole, log), None):
        raise SystemExit(f"the run left alone ended with {code}: {log.read_text()[-2000:]}")
    report["seconds_left_alone"] = round(time.monotonic() - began, 1)
    (run,) = (path.parent for path in (folder / "whole").rglob("config.json"))
    other = folder / "cut" / run.relative_to(folder / "whole")
    generator = random.Random(seed)
    code = None
    while report["kills"] < kills and code != 0:
        pid = start(script, cut, log)
        number = TERM if generator.random() < 0.2 else signal.SIGKILL
        at_write = generator.random() < 0.6
        code = wait(pid, generator.uniform(0, LONGEST))
        if code is None and at_write:
            code = wait_for_write(pid, other, LONGEST)
        if code is None:
            time.sleep(generator.uniform(0, 0.03))
            report["while_writing"] += number == signal.SIGKILL and any(other.glob("*.partial"))
            os.kill(pid, number)
            code = wait(pid, None)
            report["kills"] += 1
        if code not in (0, -signal.SIGKILL, 128 + TERM, -TERM):  # -TERM: before the handlers were there
            raise SystemExit(f"ended with {code}: {log.read_text()[-2000:]}")
        report["by_signal"][str(code)] = report["by_signal"].get(str(code), 0) + 1
        if (other / "last.pth").is_file():
            report["mid_epoch_checkpoints"] += load_file(other / "last.pth")["progress"]["step"] > 0
    if code != 0 and (code := wait(start(script, cut, log), None)):
        raise SystemExit(f"the last process ended with {code}: {log.read_text()[-2000:]}")
    report["epochs"] = len(history(other)) - 1
    report["left_behind"] = [path.name for path in other.glob("*.partial")]
    report["differences"] = differences(run, other)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = harness(args.task, args.kills, args.seed, Path(folder))
    print(json.dumps(report | environment(torch.device("cpu")), indent=2))
    if report["differences"] or report["left_behind"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
