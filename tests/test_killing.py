"""Killed without warning, a run loses nothing: the harness of `tests.kill_training`, a few times."""

import pytest

from tests.kill_training import harness


@pytest.mark.parametrize("task", ["seg", "cls"])
def test_killed_at_random_moments_it_ends_as_if_left_alone(task, tmp_path):
    """Few times here; `python -m tests.kill_training` does it as often as one likes."""
    report = harness(task, 4, seed=1, folder=tmp_path)
    assert report["kills"] >= 3, report
    assert report["differences"] == [] and report["left_behind"] == [], report
