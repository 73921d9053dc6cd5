#!/usr/bin/env python
"""Run rows of the results tables for several seeds, unattended, and keep what is needed to believe them.

    python reproduce.py seg-b1 cls-b1 cls-b2 --seeds 0 1 2
    python reproduce.py --jobs 2                              every row, two at a time
    python reproduce.py cls-2-3 --seeds 0 -- --size 112 112   what follows -- goes to seg_main.py or cls_main.py

A name is a row (seg-2) or a network (arl18, which leaves the encoder of seg-5). Each run is a process of its own, with
its output in model/<row>/run<seed>.log; its small files are copied to results/<row>/seed<seed>/. The same command goes
on where it was stopped and passes over what is in results/. A run that fails is named at the end, and the others go on.
--jobs runs are under way at a time, on each GPU where there are some: one small row alone leaves a GPU idle. seg-5
starts from arl18.pth: where it is not there, arl18 is trained first. A signal that asks to stop goes to the runs under
way, which write their checkpoints.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cls_main
import seg_main
from nets.pretrained import PRETRAINED
from utils import UserError
from utils.command_line import NETS, at_least
from utils.config import EXPERIMENTS, MODEL, ROOT, Config
from utils.logger import log, run_script

SCRIPTS = {"segmentation": seg_main, "classification": cls_main}


@dataclass(frozen=True)
class Job:
    """One run: its config, its folder, the command that makes it, and where its results go."""

    config: Config
    folder: Path
    command: tuple[str, ...]
    results: Path

    @property
    def name(self) -> str:
        return f"{self.config.name} seed {self.config.seed}"

    @property
    def output(self) -> Path:
        """What the run prints."""
        return self.folder.with_suffix(".log")


def make_job(name: str, seed: int, flags: Sequence[str], output: Path, results: Path) -> Job:
    """The run of a row or network with a seed. UserError for a name that is neither, or flags that do not fit it."""
    if name in EXPERIMENTS:
        task, chosen = EXPERIMENTS[name].task, ["--experiment", name]
    else:
        tasks, chosen = [task for task in NETS if name in NETS[task]], ["-n", name]
        if len(tasks) > 1:
            rows = [row.name for row in EXPERIMENTS.values() if row.net == NETS[row.task].get(name)]
            raise UserError(f"{name} is a network of both tasks: name a row of it ({', '.join(rows)})")
        task = tasks[0] if tasks else None
    if task is None:
        networks = ", ".join(dict.fromkeys(net for nets in NETS.values() for net in nets))
        raise UserError(f"{name!r} is neither a row ({', '.join(EXPERIMENTS)}) nor a network ({networks})")
    script = SCRIPTS[task]
    arguments = [*chosen, "-i", str(seed), "--seed", str(seed), "--output", str(output), *flags]
    config = script.parse(arguments)
    if (config.id, config.seed, config.output, config.resume) != (seed, seed, output, True):
        raise UserError("-i, --seed, --output and -c may not follow --: --seeds and --output before it set them")
    from utils.data.own import named  # with NumPy and OpenCV: after --help

    if config.data.exists() and Path.cwd() != ROOT:  # where the script will run
        arguments += ["--data", str(config.data.resolve())]
    run = named(config)
    return Job(config, run.folder, (Path(script.__file__).name, *arguments), results / run.name / f"seed{seed}")


def needs_arl18(job: Job, folders: Sequence[Path]) -> bool:
    """Whether a run starts from arl18.pth (cls_main.py leaves it in `--output`) and it is in none of the folders."""
    config, name = job.config, PRETRAINED["arl_unet"].files[0]
    starts_from_it = config.net == "arl_unet" and config.pretrained and not config.weights
    return starts_from_it and not any((folder / name).is_file() for folder in folders)


def differences(job: Job) -> str:
    """In what a job's existing results were made with other settings, in words; "" where they fit."""
    from utils.evaluation.runs import read_run  # with pandas, which takes seconds: after --help

    run = read_run(job.results)
    made = {**run.settings} | {name: run.metrics[name] for name in ("views", "flips") if name in run.metrics}
    made["weights"] = (made.get("weights") or {}).get("file")
    asked = job.config.settings() | {"views": job.config.views, "flips": job.config.flips}
    if job.config.weights:
        asked["weights"] = job.config.weights.name
    if asked["class_weights"] == "balanced":  # kept as numbers
        del asked["class_weights"]
    asked = json.loads(json.dumps(asked))
    differ = [name for name, value in asked.items() if name != "name" and name in made and made[name] != value]
    return ", ".join(f"{name} {made[name]} (asked for: {asked[name]})" for name in sorted(differ))


def split_off(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """The jobs that have no results yet, and what is wrong with the results of others."""
    waiting, wrong = [], []
    for job in jobs:
        if not (job.results / "metrics.json").is_file():
            waiting.append(job)
        elif differ := differences(job):
            wrong.append(
                f"{job.name}: {job.results} is of other settings, {differ}: move it away or choose --results DIR"
            )
        else:
            log.info("%s: there already (%s)", job.name, job.results)
    return waiting, wrong


@dataclass(frozen=True)
class Place:
    """Where a run is: a GPU, as CUDA_VISIBLE_DEVICES names it, and processor cores; None and () leave it free."""

    gpu: str | None
    cores: tuple[int, ...]


def start(job: Job, place: Place) -> subprocess.Popen:
    """The process that trains; what it prints goes to the job's log."""
    environment = os.environ | ({} if place.gpu is None else {"CUDA_VISIBLE_DEVICES": place.gpu})
    with job.output.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, *job.command], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to it once, from this process
        )  # fmt: skip
    if place.cores:
        os.sched_setaffinity(process.pid, place.cores)  # so many threads and loader processes it will have
    return process


class Runner:
    """Runs jobs, one on each place at a time."""

    def __init__(self, places: Sequence[str | None]) -> None:
        """places: the GPU of each, or None for one on the CPU. They share the processor's cores evenly."""
        self._count = len(places)
        self._free: queue.SimpleQueue[Place] = queue.SimpleQueue()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for number, gpu in enumerate(places):
            self._free.put(Place(gpu, tuple(cores[number % len(cores) :: len(places)]) if cores else ()))
        self._lock, self._stopping = threading.Lock(), False
        self._running: set[subprocess.Popen] = set()

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Each device takes the next job when it is free; returns what failed. A signal is passed on to the runs."""
        with ThreadPoolExecutor(self._count) as pool:  # whose end waits for the runs under way
            try:
                return [problem for problem in pool.map(self._on_a_device, jobs) if problem]
            except KeyboardInterrupt as request:
                with self._lock:
                    self._stopping = True
                    for process in self._running:
                        process.send_signal(getattr(request, "number", signal.SIGINT))
                log.info("waiting for the checkpoints of %d runs", len(self._running))
                raise

    def _on_a_device(self, job: Job) -> str | None:
        place = self._free.get()
        try:
            return self._run_job(job, place)
        except (UserError, OSError) as error:
            return f"{job.name}: {error}"
        finally:
            self._free.put(place)

    def _run_job(self, job: Job, place: Place) -> str | None:
        """Run to the end and keep the results; returns what went wrong, or None."""
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._stopping:
                return None
            log.info("%s: started, output in %s", job.name, job.output)
            process = start(job, place)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            last = (job.output.read_text(errors="replace").strip().splitlines() or [""])[-1]
            return f"{job.name}: exit code {code}, {last} (see {job.output})"
        from utils.model.run import copy_results  # with PyTorch: after --help

        copy_results(job.folder, job.results)
        log.info("%s: finished, %s", job.name, job.results)
        return None


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return listed.split(",")[:count] if listed else [str(index) for index in range(count)]


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    ours, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(EXPERIMENTS), help="rows or networks (every row)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2], help="of each (0 1 2)")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs at a time, on each GPU if any (1)")
    parser.add_argument("--output", type=Path, default=MODEL, help="where run folders go (model)")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where results go (results)")
    args = parser.parse_args(ours)
    args.output, args.results = args.output.resolve(), args.results.resolve()  # runs start in the repository's root
    # A row's first seed before any second one: a stopped list holds as many rows as it can.
    jobs = [make_job(name, seed, flags, args.output, args.results) for seed in args.seeds for name in args.names]
    waiting, failed = split_off(jobs)
    for problem in failed:
        log.warning("left out: %s", problem)
    runner = Runner((visible_gpus() or [None]) * args.jobs)
    if any(needs_arl18(job, (args.output, MODEL)) for job in waiting):
        first, wrong = split_off([make_job("arl18", args.seeds[0], flags, args.output, args.results)])
        failed += wrong + runner.run(first)
    failed += runner.run(waiting)
    log.info("%d of %d runs are in %s", len(jobs) - len(failed), len(jobs), args.results)
    if failed:
        raise UserError(f"{len(failed)} failed; the same command tries them again\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    run_script(main)
