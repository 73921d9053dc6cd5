"""Any bytes are read or refused in one line that names the file, and under any name."""

import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from tests.data.bad_folder import HEADER, lesion, photograph
from utils import UserError
from utils.data import check
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import read_labels, read_metadata

FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
CELLS = st.one_of(
    st.sampled_from(["ISIC_0000001", "isic_0000002 ", "ISIC_3", "0", "1", "0.0", "1.0", "", "nan", "inf", "-0", "1e0",
                     "0_1", "١", '"', '"a,b"', "unknown", "male", "55", "1955", "image_id", "\ufeff", "\0", "\r"]),
    st.text(max_size=6),
)  # fmt: skip
HEADERS = (HEADER.strip(), "melanoma,image_id,seborrheic_keratosis", "image_id,age_approximate,sex", "image_id")
TABLES = st.builds(
    lambda header, rows, end: "".join(line + end for line in (header, *map(",".join, rows))).encode("utf-8", "replace"),
    st.sampled_from(HEADERS), st.lists(st.lists(CELLS, max_size=4), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip


def attempt(function: Callable[..., Any], *arguments: Any, name: str) -> Any:
    """What it returns; None after a UserError, which must be one line and name the file."""
    try:
        return function(*arguments)
    except UserError as error:
        assert name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return None


@FUZZ
@given(content=st.one_of(TABLES, st.binary(max_size=300), st.binary(max_size=100).map(HEADER.encode().__add__)))
def test_tables(tmp_path, content):
    name = "ISIC-2017_Training_Data_metadata.csv"
    (tmp_path / name).write_bytes(content)
    for id_, label in (attempt(read_labels, tmp_path / name, name=name) or {}).items():
        assert re.fullmatch("ISIC_[0-9]+", id_) and label in (0, 1, 2)
    for id_, person in (attempt(read_metadata, tmp_path, "train", name=name) or {}).items():
        assert re.fullmatch("ISIC_[0-9]+", id_) and person.sex in ("female", "male", None)
        assert person.age is None or 0 <= person.age < 200


def encoded(kind: str, array: np.ndarray | Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def sound_images() -> list[bytes]:
    picture, exif = photograph(5), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return [
        encoded("JPEG", picture),
        encoded("JPEG", picture, progressive=True, exif=exif),
        encoded("JPEG", Image.fromarray(picture).convert("CMYK")),
        encoded("PNG", picture, exif=exif),
        encoded("PNG", Image.fromarray(picture).quantize(16), transparency=bytes(range(16))),
        encoded("PNG", (picture[..., 0].astype(np.uint16) << 8)),
        encoded("PNG", lesion()),
    ]


def damaged(content: bytes, flips: list[tuple[float, int]], keep: float, reach: int) -> bytes:
    """Bytes changed within the first `reach` (of PNG chunks the checksums are made right), the first share kept."""
    content = bytearray(content)
    for position, value in flips:
        content[int(position * min(reach, len(content) - 1))] ^= value
    at = 8 if content[:4] == b"\x89PNG" else len(content)
    while at + 12 <= len(content) and (end := at + 8 + int.from_bytes(content[at : at + 4], "big")) + 4 <= len(content):
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content[: int(len(content) * keep)])


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6)
KEEP = st.one_of(st.just(1.0), st.floats(0, 1))


@FUZZ
@given(which=st.integers(0, 6), flips=FLIPS, keep=KEEP, reach=st.sampled_from([30, 200, 700, 10**6]))
def test_images(tmp_path, which, flips, keep, reach):
    path = tmp_path / "ISIC_0000001.jpg"
    path.write_bytes(damaged(sound_images()[which], flips, keep, reach))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.data.images.MAX_PIXELS", 2_000_000)  # so that no example takes long
        found = attempt(read_image, path, (32, 24), name=path.name)
        assert found is None or (found.shape, found.dtype) == ((24, 32, 3), np.uint8)
        whole = attempt(read_image, path, name=path.name)
        size = attempt(image_size, path, name=path.name)
        assert whole is None or (whole.shape == (size[1], size[0], 3) and whole.dtype == np.uint8)
        found = attempt(read_mask, path, name=path.name)
        assert found is None or (found.shape == size[::-1] and found.max() <= 1)


@pytest.fixture
def oddly_named(root) -> bytes:
    """The good folder under a name with spaces, letters of several alphabets and bytes that are no UTF-8."""
    name = os.fsencode(root.parent) + "/a b/données 数据/".encode() + b"caf\xe9"
    try:
        os.makedirs(os.path.dirname(name))  # noqa: PTH103, PTH120
        os.rename(root, name)  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes no such names")
    return name


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_inspection_prints_any_path(oddly_named, encoding, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, write_through=True))
    assert check.main([os.fsdecode(oddly_named)]) == 0
    assert printed.getvalue().endswith(b"training can start\n")
