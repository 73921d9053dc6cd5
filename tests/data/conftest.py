"""For the tests of bad inputs: a copy of the good folder, and what is logged."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.logger import log


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of the small good folder, to be damaged."""
    from tests.data.bad_folder import good_folder

    return shutil.copytree(good_folder(), tmp_path / "data")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged during the test."""
    found, handler, level = [], logging.Handler(), log.level
    handler.emit = lambda record: found.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)
