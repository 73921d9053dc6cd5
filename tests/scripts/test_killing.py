"""Killed without warning, a run loses nothing: the harness of `tests.scripts.kill_training`, a few times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("task", ["seg", "cls"])
@pytest.mark.fault(
    "SIGKILL or SIGTERM at random moments, three in five just when something is written",
    "the last checkpoint is whole; same end",
)
def test_killed_at_random_moments_it_ends_as_if_left_alone(task):
    """In a process of its own: it forks, and this one has threads."""
    command = [sys.executable, "-m", "tests.scripts.kill_training", task, "--kills", "3", "--seed", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 3 and report["differences"] == [] and report["left_behind"] == [], report
