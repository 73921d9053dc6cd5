"""The compact sequence of samples is the samples."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from utils.data.isic import Sample
from utils.data.samples import Samples

MANY = [
    Sample("ISIC_0000000", Path("a/ISIC_0000000.jpg"), Path("m/ISIC_0000000_segmentation.png"), 0),
    Sample("ISIC_0000011", Path("b c/ISIC_0000011.JPG"), None, 2),
    Sample("ISIC_0000012", Path("/näh/ISIC_0000012.png"), Path("m/ISIC_0000012_Segmentation.png"), None),
    Sample("ISIC_0000013", Path("top.jpg"), None, None),
]


def test_it_is_a_sequence_of_what_it_was_made_of():
    samples = Samples(MANY)
    assert list(samples) == MANY and len(samples) == 4
    assert samples[1] == MANY[1] and samples[-1] == MANY[-1] and samples[1:3] == tuple(MANY[1:3])
    assert samples == tuple(MANY) == samples and samples != MANY[:3] and samples != [*MANY[:3], MANY[0]]
    assert MANY[2] in samples and Samples([]) == () and not Samples([])
    assert list(pickle.loads(pickle.dumps(samples))) == MANY
    with pytest.raises(IndexError):
        samples[4]


def test_it_takes_little_memory():
    """In a process of its own: 100,000 samples in less than half of what the objects take.

    That includes 7.5 MB of Python's table of interned strings, which the paths have made grow and which stays so.
    """
    program = """

from pathlib import Path

from utils.data.isic import Sample
from utils.data.samples import Samples
def make():
    for n in range(100_000):
        name = f"ISIC_{n:07}"
        yield Sample(name, Path("images") / f"{name}.jpg", Path("masks") / f"{name}_segmentation.png", n % 3)
import tracemalloc
tracemalloc.start()
samples = Samples(make())
print(tracemalloc.get_traced_memory()[0])
objects = tuple(make())
print(tracemalloc.get_traced_memory()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    compact, both = map(int, done.stdout.split())
    assert compact < 15e6 < 2 * compact < both - compact
