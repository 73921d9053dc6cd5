"""What is stored of a photograph, and said of it, depends on it alone: not on its neighbours, nor on their order."""

import numpy as np
import pytest
import torch
from PIL import Image

import nets
from tests.small import FLOAT32
from utils.config import configure
from utils.data.cache import ImageCache
from utils.data.isic import Sample
from utils.data.transforms import TEST_PATCHES
from utils.inference.classification import class_probabilities
from utils.inference.segmentation import predict_lesions
from utils.tasks import TASKS

SIZES = {"small": (40, 30), "wide": (150, 90), "tall": (96, 130), "large": (640, 480)}
TOGETHER = (("wide",), ("large", "tall", "wide", "small"))
SEED = 11


@pytest.fixture
def photographs(tmp_path) -> dict[str, Sample]:
    """Coarse noise, of different sizes."""
    rng, found = np.random.default_rng(4), {}
    for name, size in SIZES.items():
        path = tmp_path / f"{name}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
        found[name] = Sample(name, path, None, 0)
    return found


@pytest.mark.parametrize(("row", "changes"), [("cls-2-1", {}), ("cls-2-1", {"train_views": "frame"}), ("seg-5", {})])
def test_alone_as_among_others_in_any_order(row, changes, photographs, tmp_path):
    """To the bit on a CPU: training images and predictions. Old fault: all were stored as large as the largest."""
    config = configure(row, size=(64, 48), cache=tmp_path / "cache", flips=True, **changes)
    task, found = TASKS[config.task](config), []
    torch.manual_seed(0)
    model = nets.create_model(config.net).eval()

    def predictions(cache: ImageCache) -> list[np.ndarray]:
        if config.task == "segmentation":
            return [probability for _, probability in predict_lesions(model, cache, FLOAT32, 3, config.flips)]
        return [*class_probabilities(model, cache, FLOAT32, config.size, 3, TEST_PATCHES[config.views], config.flips)]

    for names in TOGETHER:
        caches = task.prepare({split: [photographs[name] for name in names] for split in ("train", "test")})
        index = names.index("wide")
        trained_on = caches["train"].image(index)
        drawn, _ = task.transforms()(trained_on, photographs["wide"], SEED)
        stored = trained_on if isinstance(trained_on, tuple) else (trained_on,)
        each = predictions(caches["test"])
        found.append([np.array(x).tobytes() for x in (*stored, drawn, each[index])])
        assert len({x.tobytes() for x in each}) == len(names)
    assert all(other == found[0] for other in found[1:])
