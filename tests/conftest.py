"""Where the real photographs lie, for the tests that need them: beside the checkout, or where ISIC_SHARED says."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("ISIC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


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
