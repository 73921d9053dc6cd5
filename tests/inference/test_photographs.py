"""Which files are taken for photographs, and that no two of them share a name in the output."""

from pathlib import Path

import pytest

from utils import UserError
from utils.data.images import image_size
from utils.inference.photographs import find_photographs


@pytest.mark.parametrize(
    ("files", "given", "recursive", "names"),
    [
        (["a/x.jpg"], ["a/x.jpg"], False, {"a/x.jpg": "x"}),
        (["a/x.jpg", "a/b/y.PNG"], ["a"], False, {"a/x.jpg": "x"}),
        (["a/x.jpg", "a/b/y.PNG"], ["a"], True, {"a/x.jpg": "x", "a/b/y.PNG": "b/y"}),
        (["a/x.jpg", "a/b/x.jpg"], ["a"], True, {"a/x.jpg": "x", "a/b/x.jpg": "b/x"}),
        (["a/x.jpg"], ["a", "a/x.jpg"], False, {"a/x.jpg": "x"}),  # given twice
        (["a/x.jpg", "a/x.png"], ["a"], False, {"a/x.jpg": "x", "a/x.png": "x-2"}),
        (["a/x.jpg", "a/X.JPG"], ["a"], False, {"a/X.JPG": "X", "a/x.jpg": "x-2"}),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a", "b"], False, {
            "a/x.jpg": "x", "b/x.jpg": "x-2", "b/y.jpg": "y"}),
        (["a/x-2.jpg", "a/x.jpg", "a/x.png"], ["a"], False, {
            "a/x-2.jpg": "x-2", "a/x.jpg": "x", "a/x.png": "x-3"}),
        (["a/x.jpg", "a/out/x_overlay.jpg", "a/out/z.jpg"], ["a"], True, {"a/x.jpg": "x"}),  # "a/out": the output
    ],
)  # fmt: skip
def test_names(files, given, recursive, names, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found, _ = find_photographs([tmp_path / each for each in given], tmp_path / "a/out", recursive)
    assert {each.file: each.name for each in found} == {tmp_path / file: name for file, name in names.items()}


def test_what_is_passed_over_is_told(tmp_path):
    kinds = {
        "photo.jpg": "", "photo.tiff": "", "photo.WEBP": "", "photo.heic": "",  # its reader says why it is not read
        "notes.txt": "no image", "._photo.jpg": "hidden", ".DS_Store": "hidden", "video": "no image",
        "photo_segmentation.png": "an output", "photo_overlay.jpg": "an output",
    }  # fmt: skip
    for name in kinds:
        (tmp_path / name).touch()
    kinds["circle.jpg"] = ""  # likewise
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    found, skipped = find_photographs([tmp_path], tmp_path / "out")
    assert {each.file.name for each in found} == {name for name, reason in kinds.items() if not reason}
    for file in (tmp_path / "photo.jpg", tmp_path / "circle.jpg"):
        with pytest.raises(UserError, match=f"^{file}: [^\n]+$"):
            image_size(file)
    assert sorted(skipped) == sorted(f"{name} ({reason})" for name, reason in kinds.items() if reason)
    alone, _ = find_photographs([tmp_path / "notes.txt"], tmp_path / "out")  # asked for by name: looked at
    assert [each.name for each in alone] == ["notes"]


def test_a_folder_without_photographs_is_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "below").mkdir()
    for folder, skips in ((tmp_path, "; skipped: notes.txt (no image)"), (tmp_path / "below", "")):
        with pytest.raises(UserError) as error:
            find_photographs([folder], tmp_path / "out")
        formats = ".jpg, .jpeg, .png, .tif, .tiff, .bmp, .webp"
        assert str(error.value) == f"{folder}: no photograph there ({formats}){skips}"


@pytest.mark.parametrize(("output", "names"), [("out", "x y"), (".", "out/z x y"), ("..", "out/z x y")])
def test_only_an_output_folder_below_is_left_out(output, names, tmp_path, monkeypatch):
    """However it is written: "out" is relative, the photographs' folder is not."""
    for name in ("out/z.jpg", "x.jpg", "y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found, _ = find_photographs([tmp_path], Path(output), recursive=True)
    assert " ".join(sorted(each.name for each in found)) == names


def test_names_of_earlier_outputs_stay_theirs(tmp_path):
    """Also of photographs beside others that come before them, or given by another folder."""
    for name in ("a/x.bmp", "a/x.jpg", "b/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    taken = {str(tmp_path / "a/x.jpg"): "x"}
    names = [
        [each.name for each in find_photographs([tmp_path / given], tmp_path / "out", True, taken)[0]]
        for given in ("a", "b", ".")
    ]
    assert names == [["x-2", "x"], ["x-2"], ["a/x", "x", "b/x"]]
