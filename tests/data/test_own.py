"""A folder of one's own: what its table says, how it is split, and what it is refused for."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import UserError
from utils.config import configure
from utils.data import check
from utils.data.isic import CLASSES, COPY_OF
from utils.data.own import drawn_splits, own_data, read_folder, read_table
from utils.data.splits import refuse_copies


def own_folder(root: Path, table: str, names: list[str], drawn: bool = True) -> Path:
    """Files under these names, each with a mask: empty, or noise of 40×40."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for name in names:
            (root / kind / f"{name}.png").touch()
    for name in names if drawn else ():
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray((pixels[..., 0] > 99).astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")
    if table:
        (root / "labels.csv").write_text(table)
    return root


def lesions(count: int) -> tuple[str, list[str]]:
    """A table of `count` lesions of classes a (most), b and c, every third photographed twice; and the names."""
    lines, names = ["image_id,label,group"], []
    for lesion in range(count):
        for view in range(1 + (lesion % 3 == 0)):
            names.append(f"lesion {lesion}.{view}")
            lines.append(f"{names[-1]}.png,{'aaaabbac'[lesion % 8]},L{lesion}")
    return "\n".join(lines), names


@pytest.mark.parametrize(
    ("table", "classes", "labels"),
    [
        ("image_id,label\nx,wart\ny,mole\n", ("mole", "wart"), [1, 0]),
        ("filename,age,dx\nx.JPG,50,b\ny.tiff,,a\n", ("a", "b"), [1, 0]),
        ("\ufeffimage_id;label\nx;wart\ny;mole\n", ("mole", "wart"), [1, 0]),
        ("image_id\twart\tmole\nx\t1\t0\ny\t0\t1\n", ("wart", "mole"), [0, 1]),
        ("image,wart,mole\nx,1.0,0.0\ny,0,1\n", ("wart", "mole"), [0, 1]),
        ("image_id,label\nx,nevus\ny,melanoma\nz,seborrheic_keratosis\n", CLASSES, [2, 0, 1]),
    ],
)
def test_classes_come_from_the_table(tmp_path, table, classes, labels):
    (tmp_path / "labels.csv").write_text(table)
    found = read_table(tmp_path / "labels.csv")
    assert found[0] == classes and [*found[1].items()] == [*zip("xyz", labels, strict=False)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("name,label\nx,a\n", "no column image_id or image or id or file or filename in"),
        ("image_id,malignant\nx,1\ny,0\n", "no column label or diagnosis or dx or class in .*malignant.*; call the"),
        ("image_id,site,kind\nx,arm,mole\n", "row 2, x: expected 1 .* names is called label or diagnosis"),
        ("image_id,label\nx,a\nx.png,b\n", "row 3, x: is there a second time"),
        ("image_id,label\nx,\ny,b\n", "row 2, x: label is empty"),
        ("image_id,label\nx,a\ny,a\n", "1 class in it"),
        ("image_id,a,b\nx,1,1\n", "row 2, x: expected 1 in one of a, b and 0 in the others"),
        ("image_id,a,b\nx,1,2\n", "row 2, x: expected 1 in one of a, b"),
        ("image_id,label,split\nx,a,dev\n", "row 2, x: split is 'dev', expected train, validation, test"),
        ("", "no column image_id"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_row(tmp_path, table, reason):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=f"labels.csv.*{reason}"):
        read_table(tmp_path / "labels.csv")


def splits_of(root: Path, **changes) -> dict[str, str]:
    folder = read_folder(root)
    return drawn_splits(folder, sorted(folder.images), configure(task="classification", data=root, **changes))


def test_groups_stay_together_and_classes_are_everywhere(tmp_path):
    root = own_folder(tmp_path / "mine", *lesions(80), drawn=False)
    folder, drawn = read_folder(root), splits_of(root)
    assert len({(folder.groups[id_], split) for id_, split in drawn.items()}) == 80
    for label in range(3):
        counts = Counter(drawn[id_] for id_, each in folder.labels.items() if each == label)
        assert counts["train"] > 3 * counts["validation"] > 0 and counts["test"] > 0
    assert Counter(splits_of(root, split=(0.5, 0.5, 0.0)).values()).keys() == {"train", "validation"}
    other = splits_of(root, split_seed=1)
    assert other != drawn and splits_of(root) == drawn


def test_images_added_later_stay_out_of_the_way(tmp_path):
    """Nearly all images stay in their split when one in eight is new."""
    small = splits_of(own_folder(tmp_path / "small", *lesions(70), drawn=False))
    large = splits_of(own_folder(tmp_path / "large", *lesions(80), drawn=False))
    assert np.mean([large[id_] == split for id_, split in small.items()]) > 0.9


def test_every_image_is_tested_by_one_fold_and_no_group_is_split(tmp_path):
    root = own_folder(tmp_path / "mine", *lesions(40))
    folds = [splits_of(root, fold=(k, 4)) for k in (1, 2, 3, 4)]
    for split in ("test", "validation"):
        assert Counter(id_ for fold in folds for id_ in fold if fold[id_] == split) == Counter(
            dict.fromkeys(folds[0], 1)
        )
    sizes = [Counter(fold.values())["test"] for fold in folds]
    assert max(sizes) - min(sizes) <= 6 and sum(sizes) == len(folds[0])
    groups = read_folder(root).groups
    assert all(len({(groups[id_], fold[id_]) for id_ in fold}) == 40 for fold in folds)


def test_known_copies_are_not_split(tmp_path):
    pairs = [*COPY_OF.items()][:8]
    root = own_folder(tmp_path / "mine", "", [id_ for pair in pairs for id_ in pair])
    drawn = splits_of(root, fold=(1, 4))
    assert all(drawn[one] == drawn[other] for one, other in pairs) and len(set(drawn.values())) == 3


def test_what_a_run_gets(tmp_path):
    table, names = lesions(40)
    root = own_folder(tmp_path / "mine", table, [*names, "unlabelled"])
    config, data = own_data(configure("cls-2-3", data=root), masks=False)
    assert config.name == "mine-cls-2-3" and config.classes == ("a", "b", "c") and config.split == (0.8, 0.1, 0.1)
    assert sum(map(len, data.values())) == len(names)
    config, data = own_data(configure("seg-1", data=root, fold=(2, 5)), masks=True)
    assert (config.name, config.id, config.classes) == ("mine-seg-1-5fold", 2, ())
    assert sum(map(len, data.values())) == len(names) + 1 and all(s.mask for each in data.values() for s in each)
    given = own_folder(tmp_path / "given", "image_id,split,label\nx,train,a\ny,validation,b\n", ["x", "y"])
    config, data = own_data(configure("seg-1", data=given), masks=True)
    assert config.split == "given" and [[s.id for s in data[split]] for split in data] == [["x"], ["y"], []]
    assert own_data(configure("seg-1", data=tmp_path), masks=True) is None


@pytest.mark.parametrize(
    ("table", "names", "changes", "reason"),
    [
        ("image_id,label\na,x\nb,y\nc,y\n", "abc", {}, "no validation image of x, too few for this split"),
        ("image_id,label\nc,x\nd,y\n", "ab", {}, "no image with a label"),
        ("image_id,label,split\na,x,train\nb,y,train\n", "ab", {}, "no validation image"),
        ("image_id,label,split\na,x,train\n", "ab", {}, "1 class in it"),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, table, names, changes, reason):
    root = own_folder(tmp_path / "mine", table, list(names))
    with pytest.raises(UserError, match=reason):
        own_data(configure("cls-2-3", data=root, **changes), masks=False)


def test_flags_for_own_folders_are_refused_for_the_challenges(tmp_path):
    with pytest.raises(UserError, match=r"--split and --fold are for folders with images/ and masks/ or labels\.csv"):
        own_data(configure("seg-1", data=tmp_path, fold=(1, 3)), masks=True)
    with pytest.raises(UserError, match=r"-i 2: the run of --fold 1/3 is run1, leave -i away"):
        own_data(configure("seg-1", data=own_folder(tmp_path / "mine", "", [*"abc"]), fold=(1, 3), id=2), masks=True)


def test_the_check_tells_what_it_sees(tmp_path, capsys):
    table, names = lesions(40)
    root = own_folder(tmp_path / "mine", table, names)
    (root / "masks" / f"{names[0]}.png").rename(root / "masks" / "stray_segmentation.png")
    assert check.main([str(root)]) == 0
    told = capsys.readouterr().out
    assert "classes: a" in told and "groups kept together" in told and told.rstrip().endswith("training can start")
    assert f"1 images have no mask and are left out: {names[0]}\n" in told
    assert "problems: 2\n" in told and "1 masks have no photograph in images/: stray\n" in told


def test_what_is_not_read_is_told(tmp_path, lines):
    """A HEIC and a folder, a label of no photograph, a class in two spellings, groups by another name."""
    table, names = lesions(40)
    root = own_folder(tmp_path / "mine", table.replace("group", "patient_id", 1), names)
    (root / "images" / f"{names[0]}.png").rename(root / "images" / "one.HEIC")
    (root / "images" / "more").mkdir()
    (root / "images" / ".hidden").touch()
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace(",a,", ",A,", 15))
    told = [
        "not read in images/: more/, one.HEIC; move photographs in folders up, save others as JPEG or PNG",
        f"1 labels have no photograph in images/: {names[0]}",
        "classes that differ only in case: A, a; write each in one way in labels.csv",
    ]
    report = check.inspect_folder(root)
    assert report.problems == [told[0], f"1 masks have no photograph in images/: {names[0]}", *told[1:]]
    assert "(no column group; not read: patient_id; rename one to group to keep" in report.notes[0]
    assert not lines
    own_data(configure("cls-2-3", data=root), masks=False)
    assert lines[:3] == [f"{root}: {line}" for line in told]
    for name in names[1:]:
        (root / "images" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"images: no photograph there .*; not read in images/: more/, one\.HEIC; move"):
        read_folder(root)


def test_a_copy_in_another_split_is_to_be_grouped(tmp_path):
    root = own_folder(tmp_path / "mine", *lesions(40))
    splits = splits_of(root)
    one, other = (next(id_ for id_ in splits if splits[id_] == split) for split in ("train", "test"))
    (root / "images" / f"{one}.png").write_bytes((root / "images" / f"{other}.png").read_bytes())
    report = check.inspect_folder(root)
    assert "copies of images of other splits" in report.classification_fault
    _, data = own_data(configure("cls-2-3", data=root), masks=False)
    with pytest.raises(UserError, match=r"give a photograph and its copy one group in labels\.csv"):
        refuse_copies(report.copies, data, grouped=True)
