"""Twelve drawn images, prepared once for the tests of training."""

import pytest

from utils.data.cache import ImageCache, prepare
from utils.data.isic import read_split
from utils.data.synthetic import make_synthetic


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> ImageCache:
    folder = tmp_path_factory.mktemp("drawn")
    make_synthetic(folder / "data", {"train": 12, "validation": 1, "test": 1}, (72, 64), seed=1)
    return prepare(read_split(folder / "data", "train"), (48, 48), folder / "cache")
