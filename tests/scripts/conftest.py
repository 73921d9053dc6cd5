"""What the tests of the scripts share: the smallest data that trains, and the shortest run on them.

Imports no PyTorch: the processes that a test starts may import its file, and this one with it.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def unscored(monkeypatch):
    """Training alone, for tests that look at nothing else."""
    import utils.tasks

    monkeypatch.setattr(utils.tasks, "evaluate", lambda *_: None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program: the system's, else the one that `playwright install chromium` has left."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        path = next(found, tools.chromium.executable_path)
    if not Path(path).exists():
        pytest.skip("no Chromium is installed")
    return path


@pytest.fixture
def page(chromium) -> Iterator[Any]:
    """An empty page of a browser without a past, 1200 pixels wide."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    options = ["--disable-dev-shm-usage"]  # containers often have a small one
    if hasattr(os, "getuid") and os.getuid() == 0:
        options.append("--no-sandbox")  # Chromium refuses to start for root otherwise
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()
