"""Many samples in little memory: the objects of 100,000 take 45 MB, with their paths; these arrays take 6."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.data import Sample


class _Paths:
    """Paths as their folder, of which there are few, and their name; None stays None."""

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self._folders = list(dict.fromkeys(path.parent for path in paths if path is not None))
        place = {folder: number for number, folder in enumerate(self._folders)}
        self._folder = np.array([-1 if path is None else place[path.parent] for path in paths], dtype=np.int32)
        self._name = np.array([b"" if path is None else os.fsencode(path.name) for path in paths], dtype=np.bytes_)

    def __getitem__(self, index: int) -> Path | None:
        folder = self._folder[index]
        return None if folder < 0 else self._folders[folder] / os.fsdecode(self._name[index])


class Samples(Sequence[Sample]):
    """An unchangeable sequence of samples, which are made when they are asked for."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        samples = list(samples)
        self._ids = np.array([sample.id.encode() for sample in samples], dtype=np.bytes_)
        self._images = _Paths([sample.image for sample in samples])
        self._masks = _Paths([sample.mask for sample in samples])
        self._labels = np.array([-1 if sample.label is None else sample.label for sample in samples], dtype=np.int8)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index):
        """The sample at an index, or a tuple of those of a slice."""
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        label = int(self._labels[index])
        id_ = self._ids[index].decode()
        return Sample(id_, self._images[index], self._masks[index], None if label < 0 else label)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None
