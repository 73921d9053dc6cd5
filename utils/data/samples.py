"""Many samples in little memory: the objects of 100,000 take 45 MB, with their paths; these arrays take 6."""

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from utils.data.isic import Sample

AT_ONCE = 1024  # objects that are there while the arrays are made


class _Paths:
    """Paths as their folder, of which there are few, and their name; None stays None."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._folder, self._name = np.empty(0, np.int32), np.empty(0, np.bytes_)

    def extend(self, paths: Sequence[Path | None]) -> None:
        for folder in dict.fromkeys(path.parent for path in paths if path is not None):
            if folder not in self._folders:
                self._folders.append(folder)
        places = [-1 if path is None else self._folders.index(path.parent) for path in paths]
        names = [b"" if path is None else os.fsencode(path.name) for path in paths]
        self._folder = np.append(self._folder, np.array(places, np.int32))
        self._name = np.append(self._name, np.array(names, np.bytes_))

    def __getitem__(self, index: int) -> Path | None:
        folder = self._folder[index]
        return None if folder < 0 else self._folders[folder] / os.fsdecode(self._name[index])


class Samples(Sequence[Sample]):
    """An unchangeable sequence of samples, which are made when they are asked for."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._ids, self._labels = np.empty(0, np.bytes_), np.empty(0, np.int8)
        self._images, self._masks = _Paths(), _Paths()
        samples = iter(samples)
        while some := list(islice(samples, AT_ONCE)):
            self._ids = np.append(self._ids, np.array([sample.id.encode() for sample in some], np.bytes_))
            labels = [-1 if sample.label is None else sample.label for sample in some]
            self._labels = np.append(self._labels, np.array(labels, np.int8))
            self._images.extend([sample.image for sample in some])
            self._masks.extend([sample.mask for sample in some])

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
