"""What several test files need: real photographs, beside the checkout or where ISIC_SHARED says; drawn ones; a copy."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.isic import Sample

ROOT = Path(__file__).resolve().parents[1]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs by "&" ignore Ctrl-C
SHARED = Path(os.environ.get("ISIC_SHARED", ROOT.parent / "shared"))


def _folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"real photographs not found: {name} (set ISIC_SHARED to the folder that holds it)")
    return SHARED / name


@pytest.fixture(scope="session")
def isic2017() -> Path:
    """All 2,750 images of the challenge at 256×256; masks and labels of train and validation."""
    return _folder("isic2017")


@pytest.fixture(scope="session")
def isic2017_fullsize() -> Path:
    """42 originals (36 train, 6 validation) with their original masks."""
    return _folder("isic2017_fullsize")


@pytest.fixture(scope="module", autouse=True)
def remove_shared_folders(request, tmp_path_factory) -> Iterator[None]:
    """What the tests of one file share goes with the last of them, unless one failed; pytest itself clears tmp_path."""
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(base.iterdir())
    yield
    if request.session.testsfailed == failed:
        for path in set(base.iterdir()) - before:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that scripts and notebooks need, in a folder where they may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("nets", "utils"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("*.py")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def undrawn():
    """Without the figures, which take most of a small run's time; one test of each script looks at them."""
    from utils.tasks import TASKS

    with pytest.MonkeyPatch.context() as patch:
        for task in TASKS.values():
            patch.setattr(task, "figures", lambda *_: iter(()))
        yield


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """Ten dark photographs of 96×64 with a bright square at a different place in each, and its mask."""
    found = []
    for index in range(10):
        image = np.random.default_rng(index).integers(0, 60, (64, 96, 3), dtype=np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        mask[10 : 40 + index, 20 + index : 60] = 255
        image[mask > 0] += 150
        sample = Sample(f"ISIC_{index:07}", tmp_path / f"{index}.png", tmp_path / f"{index}_m.png", None)
        Image.fromarray(image).save(sample.image)
        Image.fromarray(mask).save(sample.mask)
        found.append(sample)
    return found
