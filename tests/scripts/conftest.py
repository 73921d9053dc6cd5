"""What the tests of the scripts share: the smallest data that trains, and the shortest run on them.

Imports no PyTorch: the processes that a test starts may import its file, and this one with it.
"""

from pathlib import Path

import pytest

QUICK = ["-p", "0", "--size", "32", "32", "--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]


def flags(data: Path, folder: Path) -> list[str]:
    """Flags that train on `data` and keep runs and prepared images in `folder`."""
    return ["--data", str(data), "--output", str(folder / "model"), "--cache", str(folder / "cache")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of 80×64 of all three classes, with masks and labels."""
    from utils.data.synthetic import make_synthetic

    counts = {"train": 12, "validation": 6, "test": 3}
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic", counts, (80, 64), seed=3)


@pytest.fixture
def folders(tmp_path, data) -> list[str]:
    return flags(data, tmp_path)


@pytest.fixture(scope="module")
def undrawn():
    """Without the figures, which take most of a small run's time; one test of each script looks at them."""
    from utils.tasks import TASKS

    with pytest.MonkeyPatch.context() as patch:
        for task in TASKS.values():
            patch.setattr(task, "figures", lambda *_: iter(()))
        yield


@pytest.fixture
def unscored(monkeypatch):
    """Training alone, for tests that look at nothing else."""
    import utils.tasks

    monkeypatch.setattr(utils.tasks, "evaluate", lambda *_: None)
