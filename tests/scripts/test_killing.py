"""Killed while it writes, a run loses nothing: the harness of `tests.scripts.kill_training`, once."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT


def test_killed_it_ends_as_if_left_alone():
    """In a process of its own: it forks, and this one has threads."""
    command = [sys.executable, "-m", "tests.scripts.kill_training", "seg", "--kills", "1", "--seed", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 1 and report["differences"] == [] and report["left_behind"] == [], report
