"""Kill real training at random moments, above all while checkpoints are written, and see that nothing is lost.

    python -m tests.scripts.kill_training seg --kills 100
    python -m tests.scripts.kill_training cls --kills 100

A small network trains on drawn images; the process is killed (SIGKILL, one in five with SIGTERM) and the same command
goes on, over and over. The final weights, moments, history and scores must be those of a run that was left alone, bit
for bit, and every checkpoint that a kill leaves must load. Prints a JSON report.
"""

import argparse
import csv
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch

import cls_main
import seg_main
from tests.small import steady
from utils.config import Config
from utils.data.synthetic import make_synthetic
from utils.logger import run_script
from utils.model.run import environment
from utils.model.weights import load_file
from utils.tasks import train

SCRIPTS = {"seg": seg_main, "cls": cls_main}
LONGEST = 2.0  # seconds that a process may run before it is killed: two to four epochs
TERM = signal.SIGTERM


def start(config: Config, log: Path) -> int:
    """A process that trains; returns its number. Forked, so that it need not import anything."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        run_script(lambda: train(config))
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def wait(pid: int, seconds: float = math.inf, written: Path | None = None) -> int | None:
    """The process's exit code (negative: the signal that ended it), or None when it still runs after `seconds`.

    written: a folder; also back, with None, as soon as something is being written there.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (written and any(written.glob("*.partial"))):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0 if written else 0.001)
    return None


def history(run: Path) -> list[dict[str, str]]:
    """Without the columns that a clock wrote."""
    with (run / "history.csv").open(newline="") as file:
        return steady(list(csv.DictReader(file)))


def differences(one: Path, two: Path) -> list[str]:
    """What two finished runs differ in."""
    found = []
    for name in ("last.pth", "best.pth"):
        a, b = (torch.load(run / name, weights_only=True) for run in (one, two))
        found += [f"{name}: {key}" for key in a["model"] if not torch.equal(a["model"][key], b["model"][key])]
        found += [f"{name}: progress {a['progress']} {b['progress']}"] * (a["progress"] != b["progress"])
    a, b = (torch.load(run / "last.pth", weights_only=True)["optimizer"]["state"] for run in (one, two))
    for key, moments in a.items():
        found += [f"moments {key}" for name in moments if not torch.equal(moments[name], b[key][name])]
    found += ["history.csv"] * (history(one) != history(two))
    tables = {path.name for path in (*one.glob("*.csv"), one / "metrics.json")} - {"history.csv"}
    return found + [name for name in sorted(tables) if (one / name).read_bytes() != (two / name).read_bytes()]


def start_and_kill(config: Config, log: Path, generator: random.Random) -> tuple[int, bool, bool]:
    """Start the run and kill it; returns its exit code, whether it was killed, and whether while it was writing."""
    pid = start(config, log)
    number = TERM if generator.random() < 0.2 else signal.SIGKILL
    at_write = generator.random() < 0.6
    code = wait(pid, generator.uniform(0, LONGEST))
    if code is None and at_write:
        code = wait(pid, LONGEST, config.folder)
    if code is not None:
        return code, False, False
    time.sleep(generator.uniform(0, 0.03))
    writing = number == signal.SIGKILL and any(config.folder.glob("*.partial"))
    os.kill(pid, number)
    return wait(pid), True, writing


def harness(task: str, kills: int, seed: int, folder: Path) -> dict:
    """Kill a training `kills` times, then let it end; returns what happened."""
    cv2.setNumThreads(0)  # its threads, which a fork does not copy, may hold a lock at that moment
    make_synthetic(folder / "data", {"train": 16, "validation": 6, "test": 3}, (72, 64), seed=1)
    flags = f"-n mobilenet -p 0 --size 32 32 --batch-size 4 --lr 1e-3 --device cpu --epochs {2 + 4 * kills}".split()
    flags += ["--patience", "1000", "--data", str(folder / "data"), "--cache", str(folder / "cache"), "--output"]
    whole, cut = (SCRIPTS[task].parse([*flags, str(folder / name)]) for name in ("whole", "cut"))
    log, generator = folder / "log.txt", random.Random(seed)
    report = {"task": task, "kills": 0, "while_writing": 0, "by_signal": {}}

    def ended(code: int | None, *expected: int) -> int:
        if code not in expected:
            raise SystemExit(f"ended with {code}: {log.read_text()[-2000:]}")
        return code

    ended(wait(start(whole, log)), 0)
    code = None
    while report["kills"] < kills and code != 0:
        code, killed, writing = start_and_kill(cut, log, generator)
        report["kills"] += killed
        report["while_writing"] += writing
        ended(code, 0, -signal.SIGKILL, 128 + TERM, -TERM)  # -TERM: before the handlers were there
        report["by_signal"][str(code)] = report["by_signal"].get(str(code), 0) + 1
        if (cut.folder / "last.pth").is_file():
            load_file(cut.folder / "last.pth")
    if code != 0:
        ended(wait(start(cut, log)), 0)
    report["left_behind"] = [path.name for path in cut.folder.glob("*.partial")]
    return report | {"differences": differences(whole.folder, cut.folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SCRIPTS)
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
