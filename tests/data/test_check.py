"""The check of a folder: a sound one, one damaged in every way we know, and the real ones."""

import shutil

from tests.data.bad_folder import bring, cut, image, images, labels, lesion, mask, photograph, row, save
from utils.data.check import inspect_folder, main
from utils.data.isic import KNOWN_COPIES, SPLITS, find_files


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_a_sound_folder(root, capsys):
    assert main([str(root)]) == 0
    text = capsys.readouterr().out
    assert "train: 8 images, 8 masks, 8 pairs\n  classes: melanoma " in text
    assert "min 96x72, median 96x72, max 96x72; 1 distinct" in text
    assert "problems: none\ncopies across splits: none\n" in text and "without _segmentation" not in text
    assert text.endswith("training can start\n")


def test_every_damage_is_named(root, capsys):
    for number in range(10, 22):
        bring(root, photograph(number), f"ISIC_00000{number}")
    train, masks = images(root), mask(root).parent
    cut(train / "ISIC_0000010.jpg", last=20)
    cut(masks / "ISIC_0000011_segmentation.png", last=30)
    (masks / "ISIC_0000012_segmentation.png").unlink()
    save(masks / "ISIC_0000013_segmentation.png", lesion(0))
    save(masks / "ISIC_0000014_segmentation.png", lesion(255, 255))
    for number in (10, 15):
        save(masks / f"ISIC_00000{number}_segmentation.png", lesion(1))
    (masks / "ISIC_0000016_segmentation.png").unlink()
    save(masks / "ISIC_0000016.png", lesion(200, 40))
    save(masks / "ISIC_0000017_segmentation.png", lesion()[::2, ::2])
    (train / "ISIC_0000018.jpg").unlink()
    shutil.copy(train / "ISIC_0000019.jpg", images(root, "validation"))
    shutil.copy(image(root, "test"), train / "ISIC_0000020.jpg")
    shutil.copy(image(root), train / "ISIC_0000021.jpg")
    row(labels(root, "validation"), 2, "ISIC_9100000,1.0,1.0")
    row(labels(root), 3, "ISIC_0000999,0,0")

    assert main([str(root)]) == 1
    text = capsys.readouterr().out
    for words in (
        ("  ", "ISIC_0000010.jpg", "truncated"),
        ("  ", "ISIC_0000011_segmentation.png", "truncated"),
        ("train: mask missing for 1 images", "ISIC_0000012.jpg"),
        ("ISIC_0000013_segmentation.png", "mask is empty"),
        ("ISIC_0000014_segmentation.png", "mask is full"),
        ("ISIC_0000010_segmentation.png and 1 more: mask is not 0/255 (1 is read as lesion)",),
        ("ISIC_0000016.png", "not 0/255", "above 128"),
        ("ISIC_0000017_segmentation.png", "mask 48x36, image 96x72"),
        ("ISIC_0000018_segmentation.png", "mask without image"),
        ("1 ids are both in train and in validation: ISIC_0000019", "Training_Data", "Validation_Data"),
        ("ISIC_0000019.jpg", "same file", "not known, stops training"),
        ("train ", "ISIC_0000020.jpg", "test ", "ISIC_9200000.jpg", "same file; not known"),
        ("note", "the same file under 2 ids", "ISIC_0000021.jpg", "ISIC_9000000.jpg"),
        ("  ", "ISIC-2017_Validation_Part3_GroundTruth.csv", "row 2, ISIC_9100000", "both"),
        ("1 images of train have no label", "ISIC_9000001"),
        ("note", "Training_Part3", "2 labels have no image"),
        ("note", "train: 1 masks without _segmentation in their names, such as ISIC_0000016.png"),
        ("training cannot start: ", "ISIC_0000020.jpg", "1 training images are copies of images of other splits"),
    ):
        assert len(lines_with(text, *words)) == 1, (words, text)
    assert "copies across splits: 2\n" in text


def test_without_masks_it_is_for_classification(root):
    cut(image(root))
    cut(image(root, index=1))
    report = str(inspect_folder(root))
    assert lines_with(report, "training cannot start: ", "9000000.jpg: truncated") and report.endswith("(and 1 more)")
    for folder in root.glob("*Part1_GroundTruth"):
        shutil.rmtree(folder)
    assert inspect_folder(root).fault
    for index in range(2):
        save(image(root, index=index), photograph(index))
    report = inspect_folder(root)
    assert not report.fault and str(report).endswith("(classification only; segmentation: there are no masks)")
    labels(root).unlink()
    assert "\ntraining cannot start: " in (text := str(inspect_folder(root)))
    assert text.splitlines()[-1].endswith("(Data/README.md), or images/ and labels.csv")


def test_real_images_hold_the_known_copies_and_no_others(isic2017, tmp_path):
    """Of all known copies and every 25th other image."""
    known = {id_ for copy in KNOWN_COPIES for id_ in (copy[1], copy[3])}
    for split in SPLITS:
        files = find_files(isic2017, split)
        for index, (id_, path) in enumerate(files.images.items()):
            if index % 25 == 0 or id_ in known:
                for file in (path, *filter(None, [files.masks.get(id_)])):
                    (tmp_path / file.parent.name).mkdir(exist_ok=True)
                    (tmp_path / file.parent.name / file.name).symlink_to(file)
    report = inspect_folder(tmp_path)
    found = {(c.splits[0], c.ids[0], c.splits[1], c.ids[1]) for c in report.copies}
    # The other known ones are turned or reframed so strongly that thumbnails do not show it.
    assert set(KNOWN_COPIES[:10]) <= found < set(KNOWN_COPIES) and len(found) == 26
    assert not report.fault and report.problems == []


def test_real_originals(isic2017_fullsize):
    report = inspect_folder(isic2017_fullsize)
    assert not report.fault and (report.problems, report.copies) == ([], [])
    assert report.splits["train"].classes == {"melanoma": 10, "seborrheic_keratosis": 0, "nevus": 26}
    assert max(facts.frame.size for facts in report.splits["train"].images.values()) == (2816, 2112)
