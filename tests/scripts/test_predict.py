"""Trained networks in use: photographs of one's own, and weights that are passed on."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score, roc_auc_score

import cls_main
import predict
import seg_main
from tests.scripts.conftest import QUICK, flags
from tests.small import FLOAT32
from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, read_split
from utils.evaluation.runs import read_run
from utils.evaluation.score import main as score
from utils.inference import release
from utils.inference.findings import NOTICE, Reader, examine, load
from utils.inference.trained import RELEASED, chosen_runs, has_weights
from utils.model.run import copy_results
from utils.visualize.report import Record, write_tables

TEST, LABELS = "ISIC-2017_Test_v2_Data", "ISIC-2017_Validation_Part3_GroundTruth.csv"


@pytest.fixture(scope="module")
def home(tmp_path_factory, data, undrawn) -> Path:
    """A finished run of each task, with the small files of its results beside it."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").symlink_to(data)
    for script, row in ((seg_main, "seg-b1"), (cls_main, "cls-b1")):
        run = script.main(["--experiment", row, *QUICK, *flags(home / "data", home)])
        copy_results(run.folder, home / "results" / row / "seed0")
    return home


def on(home: Path, tmp_path: Path, run: str, *images: Path, flags: tuple[str, ...] = ()) -> Path:
    predict.main([str(home / run), *map(str, images), "--output", str(tmp_path / "out"), *flags])
    return tmp_path / "out"


def rows(out: Path) -> list[dict[str, str]]:
    return pd.read_csv(out / "summary.csv", dtype=str, keep_default_na=False).to_dict("records")


def test_masks_are_those_of_the_run(home, tmp_path, caplog):
    """The same photographs under names of their own, one alone and others in a folder."""
    photographs = sorted((home / "data" / TEST).glob("*.jpg"))
    (tmp_path / "mine" / "below").mkdir(parents=True)
    for number, path in enumerate(photographs[1:]):
        shutil.copy(path, tmp_path / "mine" / f"Rücken {number}.JPG")
    (tmp_path / "mine" / "notes.txt").touch()
    shutil.copy(tmp_path / "mine" / "Rücken 0.JPG", tmp_path / "mine" / "Rücken_superpixels.png")
    (tmp_path / "mine" / "cut.jpg").write_bytes(photographs[0].read_bytes()[:-300])
    with caplog.at_level("INFO"):
        out = on(home, tmp_path, "model/seg-b1/run0", photographs[0], tmp_path / "mine")
    assert "mine: 1 folders in it are not looked into; --recursive does" in caplog.text
    assert caplog.messages[-1] == (
        f"{len(photographs)} of {len(photographs) + 3} predicted; skipped: cut.jpg (truncated or not an image), "
        "Rücken_superpixels.png (an output), notes.txt (no image)"
    )
    names = [photographs[0].stem, *(f"Rücken {number}" for number in range(len(photographs) - 1))]
    kinds = ("segmentation.png", "probability.png", "overlay.jpg")
    tables = {"record.jsonl", "summary.csv", "index.html"}
    assert {path.name for path in out.iterdir()} == {f"{name}_{kind}" for name in names for kind in kinds} | tables
    table = {Path(row["file"]).stem: row for row in rows(out)}
    assert table["cut"]["warnings"].startswith("not predicted: truncated") and table["cut"]["lesion_share"] == ""
    with zipfile.ZipFile(home / "model/seg-b1/run0/test_masks.zip") as archive:
        for name, path in zip(names, photographs, strict=True):
            with Image.open(archive.open(f"{path.stem}_segmentation.png")) as kept:
                truth = np.array(kept)
            with (
                Image.open(out / f"{name}_segmentation.png") as mask,
                Image.open(out / f"{name}_probability.png") as map_,
            ):
                assert np.array_equal(np.array(mask), truth)
                assert np.array_equal(np.array(map_) >= 128, truth > 0)
                assert map_.mode == "L" and mask.text == map_.text == {"Comment": NOTICE}
            edge = any(side.any() for side in (truth[0], truth[-1], truth[:, 0], truth[:, -1]))
            assert table[name]["lesion_share"] == f"{(truth > 0).mean():.4f}"
            assert table[name]["touches_border"] == ("yes" if edge else "no") and table[name]["use"] == NOTICE
            assert "trained on drawn images" in table[name]["warnings"]


def test_probabilities_are_those_of_the_run(home, tmp_path, monkeypatch):
    """From another folder, to the folder that it takes by itself."""
    monkeypatch.chdir(tmp_path)
    predict.main([str(home / "model/cls-b1/run0"), str(home / "data" / TEST)])
    out = tmp_path / "predictions"
    got = pd.read_csv(out / "predictions.csv")
    kept = pd.read_csv(home / "model/cls-b1/run0/test_predictions.csv")
    assert list(got["image_id"]) == list(kept["image_id"])
    assert np.allclose(got[list(CLASSES)], kept[list(CLASSES)], atol=1e-5)
    for row, (_, each) in zip(rows(out), kept.iterrows(), strict=True):
        assert [row[name] for name in CLASSES] == [f"{each[name]:.4f}" for name in CLASSES]
        assert row["class"] == max(CLASSES, key=each.get).replace("_", " ")
    page = (out / "index.html").read_text()
    assert page.count("<tr>") == 1 + len(kept) and NOTICE in page and not re.search("(src|href)=.?http", page)


def test_a_stopped_call_goes_on_and_a_changed_photograph_is_predicted_again(home, tmp_path, caplog):
    photographs = sorted((home / "data" / TEST).glob("*.jpg"))
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, path in enumerate(photographs):
        shutil.copy(path, mine / f"{number}.jpg")
    out = on(home, tmp_path, "model/seg-b1/run0", mine)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    header, first, second, *_ = (out / "record.jsonl").read_bytes().splitlines(keepends=True)
    (out / "record.jsonl").write_bytes(header + first + second[:50])  # as a kill leaves it
    (out / "0_overlay.jpg").unlink()  # of the finished one: stays away
    with caplog.at_level("INFO"):
        on(home, tmp_path, "model/seg-b1/run0", mine)
    assert caplog.messages[-1] == f"{len(photographs)} of {len(photographs)} predicted, 1 of them before"
    del whole["0_overlay.jpg"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole

    def row_of_0() -> dict[str, str]:
        (row,) = (row for row in rows(out) if Path(row["file"]).name == "0.jpg")
        return row

    (mine / "0.jpg").rename(tmp_path / "first.jpg")
    shutil.copy(photographs[1], mine / "0.jpg")
    shutil.copy(photographs[2], mine / "0.bmp")
    on(home, tmp_path, "model/seg-b1/run0", mine)
    assert (out / "0-2_segmentation.png").read_bytes() == whole["2_segmentation.png"]
    assert (out / "0_segmentation.png").read_bytes() == whole["1_segmentation.png"] and row_of_0()
    (tmp_path / "first.jpg").replace(mine / "0.jpg")
    on(home, tmp_path, "model/seg-b1/run0", mine)
    assert (out / "0_segmentation.png").read_bytes() == whole["0_segmentation.png"] and row_of_0()["lesion_share"]
    (mine / "0.jpg").write_bytes(photographs[0].read_bytes()[:-300])
    with pytest.raises(SystemExit):
        on(home, tmp_path, "model/seg-b1/run0", mine / "0.jpg")
    assert row_of_0()["warnings"].startswith("not predicted: truncated") and not row_of_0()["lesion_share"]
    with pytest.raises(UserError, match=r"out holds what seg-b1, seed 0 predicted: choose another --output, or move"):
        on(home, tmp_path, "model/cls-b1/run0", mine)


@pytest.mark.parametrize("row", ["seg-b1", "cls-b1"])
def test_only_unreadable_photographs_end_with_1_and_have_their_rows(row, home, tmp_path, caplog):
    (tmp_path / "a.txt").touch()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as end:
        on(home, tmp_path, f"model/{row}/run0", tmp_path / "a.txt")
    assert end.value.code == 1
    assert caplog.messages[-1] == "0 of 1 predicted; skipped: a.txt (truncated or not an image)"
    (told,) = rows(tmp_path / "out")
    assert told["file"] == str(tmp_path / "a.txt") and told["warnings"].startswith("not predicted: truncated")
    assert told["warnings"] in (tmp_path / "out" / "index.html").read_text()


def test_the_page_sorts_and_asks_for_nothing(page, tmp_path):
    """Of numbers the highest comes first, empty cells last; by keyboard. Names stay whole, deleted files away."""
    record = Record(tmp_path, {"row": "sha"})
    record.start([])
    for name, value in (("a", "0.0980"), ("<b>", "0.1200"), ("c", "0.1000"), ("deleted", "0.9000")):
        row = {"file": f"{name}/photographs/ISIC_0009995_downsampled.jpg", "melanoma": value, "warnings": ""}
        file = tmp_path / name
        file.touch()
        record.add({"file": str(file), "identity": [], "name": name, "row": row, "classes": {}, "pictures": []})
    file.unlink()
    write_tables(record, {"d.jpg": "no image"}, "row & row", NOTICE)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "index.html").as_uri())
    orders = []
    for key in ("melanoma", "melanoma", "file"):
        page.get_by_role("button", name=key).focus()
        page.keyboard.press("Enter")
        orders.append("".join(text[:2].strip("</.") for text in page.locator("td.file").all_inner_texts()))
    assert orders == ["bcad", "acbd", "bacd"]
    assert page.locator("td.warnings").last.inner_text() == "not predicted: no image" and len(asked) == 1
    page.set_viewport_size({"width": 500, "height": 500})
    lines = """cells => cells.map(cell => {
        const name = document.createRange();
        name.selectNode(cell.lastChild);
        return name.getClientRects().length;
    })"""
    assert page.locator("td.file").evaluate_all(lines) == [1] * 4


@pytest.mark.parametrize("row", ["seg-b1", "cls-b1"])
def test_weights_that_are_passed_on_score_as_their_card_says(row, home, tmp_path):
    run, results = home / "model" / row / "run0", home / "results" / row / "seed0"
    assert not has_weights(results)
    with pytest.raises(UserError, match=r"seed0: no weights \(best\.pth or weights\.safetensors\)"):
        on(home, tmp_path, f"results/{row}/seed0", home / "data" / TEST)
    with pytest.raises(UserError, match="home0: no training image there"):
        release.main([str(run), str(results), "--data", str(home)])
    assert not has_weights(results)
    release.main([str(run), str(results), "--data", str(home / "data"), "--cache", str(home / "cache")])
    assert (results / RELEASED).stat().st_size < 0.2 * (run / "last.pth").stat().st_size

    out = on(home, tmp_path, f"results/{row}/seed0", home / "data" / "ISIC-2017_Validation_Data")
    samples = read_split(home / "data", "validation")
    if row == "seg-b1":
        name = "jaccard"
        masks = [(read_mask(sample.mask), read_mask(out / f"{sample.id}_segmentation.png")) for sample in samples]
        value = np.mean([jaccard_score(truth.ravel(), mask.ravel()) for truth, mask in masks])
    else:
        name, got = "mean AUC", pd.read_csv(out / "predictions.csv")
        aucs = [roc_auc_score([sample.label == n for sample in samples], got[CLASSES[n]]) for n in (0, 1)]
        value = np.mean(aucs)
    truth = home / "data" / ("ISIC-2017_Validation_Part1_GroundTruth" if row == "seg-b1" else LABELS)
    score([str(out), str(truth), "--json", str(results / "elsewhere_mine.json")])
    release.main([str(run), str(results), "--data", str(home / "data"), "--cache", str(home / "cache")])
    card, _, elsewhere = (results / "README.md").read_text().partition("Elsewhere, on MINE")
    assert "ISIC Archive, CC-0" in card and f"{name} " in elsewhere
    assert f"python predict.py results/{row}/seed0 photo.jpg" in card and "Not a medical device" in card
    assert "starts from | random weights" in card and "12 images" in card
    (line,) = (line for line in card.splitlines() if line.strip().startswith(f"{name} "))
    assert float(line.removeprefix(f"  {name}").split()[0]) == pytest.approx(value, abs=1e-4)


def test_results_of_another_run_get_no_weights(home):
    folders = [str(home / "model/seg-b1/run0"), str(home / "results/cls-b1/seed0")]
    with pytest.raises(UserError, match=r"seed0 holds the results of another run than .*run0"):
        release.main(folders)


def test_mistakes_are_named_before_anything_is_written(home, tmp_path):
    run, out = home / "model/seg-b1/run0", tmp_path / "out"
    photograph = next((home / "data" / TEST).glob("*.jpg"))
    for arguments, reason in (
        ((home, photograph), "no finished run"),
        (
            ("seg-9", photograph),
            r"seg-9: no folder, and no row with released weights \(there are: .*cls-b1.*; or: best",
        ),
        ((run, tmp_path / "absent.jpg"), "absent.jpg: no such file"),
        ((run, photograph, "--uncertainty"), "--uncertainty compares the runs of a row: give the row's name"),
        (("best", photograph, "--uncertainty"), "best: --uncertainty compares"),
    ):
        with pytest.raises(UserError, match=reason):
            predict.main([*map(str, arguments), "--output", str(out)])
        assert not out.exists()
    for name in (f"{photograph.stem}_segmentation.png", "summary.csv"):
        out.mkdir()
        (out / name).touch()
        with pytest.raises(UserError, match=f"{name} is there already: move it away, or choose another --out"):
            predict.main([str(run), str(photograph), "--output", str(out)])
        shutil.rmtree(out)


def test_the_best_released_run_is_chosen(home, tmp_path):
    """Of a row, and of each task; runs without weights do not count."""
    for row, name in (("seg-b1", "jaccard"), ("cls-b1", "mean_auc")):
        for number, value in enumerate((0.3, 0.6, 0.9)):
            folder = tmp_path / row / f"seed{number}"
            folder.mkdir(parents=True)
            shutil.copy(home / "results" / row / "seed0" / "config.json", folder)
            metrics = json.loads((home / "results" / row / "seed0" / "metrics.json").read_text())
            scores = metrics["validation"]
            (scores["official"] if row == "seg-b1" else scores)[name] = value
            (folder / "metrics.json").write_text(json.dumps(metrics))
            if value < 0.9:
                (folder / RELEASED).touch()
    best = [tmp_path / row / "seed1" for row in ("seg-b1", "cls-b1")]
    assert [run.folder for run in chosen_runs("best", tmp_path)] == best
    assert [run.folder for run in chosen_runs("cls-b1", tmp_path)] == best[1:]
    every = [tmp_path / "cls-b1" / f"seed{number}" for number in (0, 1)]
    assert [run.folder for run in chosen_runs("cls-b1", tmp_path, ensemble=True)] == every
    (every[0] / RELEASED).unlink()
    with pytest.raises(UserError, match=r"cls-b1: one run of it has weights, and --uncertainty is how far two"):
        chosen_runs("cls-b1", tmp_path, ensemble=True)
    with pytest.raises(UserError, match=r"seg-4: no folder.*; train it .*\(python seg_main\.py --experiment seg-4\)"):
        chosen_runs("seg-4", tmp_path)


@pytest.mark.parametrize("row", ["seg-b1", "cls-b1"])
def test_several_networks_give_their_mean_and_how_far_they_differ(row, home):
    photograph = next((home / "data" / TEST).glob("*.jpg"))
    readers = [Reader(read_run(home / "model" / row / "run0"), FLOAT32) for _ in range(3)]
    for number, reader in enumerate(readers):
        for parameter in reader.model.parameters():
            parameter.requires_grad_(False).mul_(1 + number / 10)
    each = [examine([reader], load([reader], photograph)) for reader in readers]
    found = examine(readers, load(readers, photograph))
    if row == "seg-b1":
        lesions = np.stack([one.lesion for one in each])
        assert np.allclose(found.lesion, lesions.mean(0))
        spread = {"lesion": lesions.std(0, ddof=1)[found.lesion > 0.5].mean()}
    else:
        table = pd.DataFrame([one.classes for one in each])
        assert found.classes == pytest.approx(table.mean().to_dict()) and found.saliency.shape == each[0].saliency.shape
        spread = table.std().to_dict()
    assert found.spread == pytest.approx(spread) and min(spread.values()) > 1e-4 and not each[0].spread
    assert {f"{name}_spread": f"{value:.4f}" for name, value in spread.items()}.items() <= found.row().items()
