"""Which files are taken for photographs, and that no two of them share a name in the output."""

from pathlib import Path

import pytest

from utils.inference.photographs import find_photographs


@pytest.mark.parametrize(
    ("files", "given", "recursive", "names"),
    [
        (["a/x.jpg"], ["a/x.jpg"], False, {"a/x.jpg": "x"}),
        (["a/x.jpg", "a/b/y.PNG"], ["a"], False, {"a/x.jpg": "x"}),
        (["a/x.jpg", "a/b/y.PNG"], ["a"], True, {"a/x.jpg": "x", "a/b/y.PNG": "b/y"}),
        (["a/x.jpg", "a/b/x.jpg"], ["a"], True, {"a/x.jpg": "x", "a/b/x.jpg": "b/x"}),
        (["a/x.jpg"], ["a", "a/x.jpg"], False, {"a/x.jpg": "x"}),  # given twice
        (["a/x.jpg", "a/x.png"], ["a"], False, {"a/x.jpg": "x.jpg", "a/x.png": "x.png"}),
        (["a/x.jpg", "a/X.JPG"], ["a"], False, {"a/X.JPG": "X-1", "a/x.jpg": "x-2"}),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a", "b"], False, {
            "a/x.jpg": "a/x.jpg", "b/x.jpg": "b/x.jpg", "b/y.jpg": "y"}),
        (["1/a/x.jpg", "2/a/x.jpg"], ["1/a", "2/a"], False, {
            "1/a/x.jpg": "x-1", "2/a/x.jpg": "x-2"}),
        (["a/x.jpg", "a/x.png", "a/x.jpg.bmp"], ["a"], False, {
            "a/x.jpg": "a/x.jpg", "a/x.png": "x.png", "a/x.jpg.bmp": "x.jpg"}),
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
    found, skipped = find_photographs([tmp_path], tmp_path / "out")
    assert {each.file.name for each in found} == {name for name, reason in kinds.items() if not reason}
    assert sorted(skipped) == sorted(f"{name} ({reason})" for name, reason in kinds.items() if reason)
    alone, _ = find_photographs([tmp_path / "notes.txt"], tmp_path / "out")  # asked for by name: looked at
    assert [each.name for each in alone] == ["notes"]


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
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").touch()
    taken = {"x": str(tmp_path / "a/x.jpg")}
    first, second = (find_photographs([tmp_path / each], tmp_path / "out", taken=taken)[0] for each in "ab")
    assert [first[0].name, second[0].name] == ["x", "x.jpg"]
