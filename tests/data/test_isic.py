"""The data layer: what is found on disk, and that each file is read right or refused."""

from collections import Counter
from pathlib import Path

import pytest

from utils import UserError
from utils.data.isic import KNOWN_COPIES, Metadata, read_metadata, read_split

HEADER = "image_id,melanoma,seborrheic_keratosis\n"
PEOPLE = "image_id,age_approximate,sex\n"


def put(path: Path) -> Path:
    """A file of that name: images and masks are paired without being opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def ids(root: Path, split: str = "train", **options) -> list[str]:
    return [sample.id for sample in read_split(root, split, **options)]


@pytest.mark.parametrize("folder", ["Aug_Training_Data", "ISIC-2017_Training_Data", "isic-2017_training_data"])
@pytest.mark.parametrize("nested", [False, True])
def test_training_images_are_found_and_paired_by_id(tmp_path, folder, nested):
    inner = folder if nested else ""
    image = put(tmp_path / folder / inner / "ISIC_0000002.jpg")
    put(tmp_path / folder / inner / "ISIC_0000001.JPEG")
    truth = "ISIC-2017_Training_Part1_GroundTruth"
    mask = put(tmp_path / truth / (truth if nested else "") / "ISIC_0000002_Segmentation.png")
    (tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000002,1.0,0.0\n")
    first, second = read_split(tmp_path, "train")
    assert (first.id, first.mask, first.label) == ("ISIC_0000001", None, None)
    assert (second.id, second.image, second.mask, second.label) == ("ISIC_0000002", image, mask, 0)


def test_both_training_folders_make_a_union_and_the_first_wins(tmp_path):
    put(tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg")
    put(tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000002.jpg")
    wins = put(tmp_path / "Aug_Training_Data" / "ISIC_0000002.jpg")
    samples = read_split(tmp_path, "train")
    assert [sample.id for sample in samples] == ["ISIC_0000001", "ISIC_0000002"]
    assert samples[1].image == wins


@pytest.mark.parametrize("data", ["ISIC-2017_Test_Data", "ISIC-2017_Test_v2_Data"])
@pytest.mark.parametrize("truth", ["ISIC-2017_Test", "ISIC-2017_Test_v2"])
def test_either_name_of_the_test_split(tmp_path, data, truth):
    put(tmp_path / data / "ISIC_0000003.jpg")
    mask = put(tmp_path / f"{truth}_Part1_GroundTruth" / "ISIC_0000003_segmentation.png")
    (tmp_path / f"{truth}_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000003,0,1\n")
    (sample,) = read_split(tmp_path, "test")
    assert (sample.mask, sample.label) == (mask, 1)


def test_known_copies_are_left_out_of_training_only(tmp_path):
    for split, folder in (("train", "Training"), ("validation", "Validation"), ("test", "Test_v2")):
        for id_ in {pair[1] for pair in KNOWN_COPIES if pair[0] == split} | {"ISIC_0000001"}:
            put(tmp_path / f"ISIC-2017_{folder}_Data" / f"{id_}.jpg")
    assert ids(tmp_path) == ["ISIC_0000001"]
    left_out = set(ids(tmp_path, leave_out_copies=False)) - set(ids(tmp_path))
    assert left_out > {"ISIC_0012271", "ISIC_0012175", "ISIC_0012887", "ISIC_0013163", "ISIC_0012970"}
    assert len(left_out) == 31
    assert ids(tmp_path, "validation") == ["ISIC_0000001", "ISIC_0012221", "ISIC_0012222"]


@pytest.mark.parametrize(
    ("split", "path"),
    [
        ("train", "Aug_Training_Data/ISIC-2017_Training_Data_metadata.csv"),
        ("validation", "isic-2017_validation_data/isic-2017_validation_data_METADATA.CSV"),
        ("test", "ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data_metadata.csv"),
    ],
)
def test_metadata_are_found_beside_and_inside_the_image_folder(tmp_path, split, path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(PEOPLE + "ISIC_0000001,55,male\n")
    found = {name: read_metadata(tmp_path, name) for name in ("train", "validation", "test")}
    assert found.pop(split) == {"ISIC_0000001": Metadata(55.0, "male")}
    assert list(found.values()) == [{}, {}]


def test_metadata_tolerate_bom_line_ends_column_order_and_what_is_not_recorded(tmp_path):
    (tmp_path / "ISIC-2017_Test_v2_Data_metadata.csv").write_bytes(
        "\ufeffsex, age_approximate ,more, image_id\r\n female ,45.0,x, isic_0000001\r\nunknown,0,,ISIC_0000002\r\n"
        "Male,unknown,,ISIC_0000003\r\n,,,ISIC_0000004\r\n\r\n".encode()
    )
    assert read_metadata(tmp_path, "test") == {
        "ISIC_0000001": Metadata(45.0, "female"),
        "ISIC_0000002": Metadata(0.0, None),
        "ISIC_0000003": Metadata(None, "male"),
        "ISIC_0000004": Metadata(None, None),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,sex\nISIC_0000001,male\n", "no column age_approximate in"),
        (PEOPLE + "ISIC_1_downsampled,55,male\n", "row 2, ISIC_1_DOWNSAMPLED: image_id is 'ISIC_1_downsampled'"),
        (PEOPLE + "ISIC_0000001,55,male\nISIC_0000002,nan,male\n", "row 3, ISIC_0000002: age_approximate is 'nan'"),
        (PEOPLE + "ISIC_0000001,1955,male\n", "age_approximate is '1955'"),
        (PEOPLE + "ISIC_0000001,55,m\n", "row 2, ISIC_0000001: sex is 'm', expected female, male or unknown"),
    ],
)
def test_faulty_metadata_are_named(tmp_path, text, message):
    path = tmp_path / "ISIC-2017_Training_Data_metadata.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"ISIC-2017_Training_Data_metadata.csv: ") as error:
        read_metadata(tmp_path, "train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_metadata_of_the_real_folder(isic2017):
    """Counted in the files with cut, sort and uniq."""
    for split, images, females, males, without_age in (("train", 2000, 871, 900, 256), ("validation", 150, 59, 90, 1)):
        people = read_metadata(isic2017, split)
        assert people.keys() == {sample.id for sample in read_split(isic2017, split, leave_out_copies=False)}
        counted = {"female": females, "male": males, None: images - females - males}
        assert Counter(person.sex for person in people.values()) == counted
        assert sum(person.age is None for person in people.values()) == without_age
    assert people["ISIC_0015627"] == Metadata(15.0, "female")
    assert read_metadata(isic2017, "test") == {}
