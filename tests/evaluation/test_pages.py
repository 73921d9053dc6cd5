"""`python -m utils.evaluation.tables`: what it writes, finds out of date, and does not believe."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_runs import classification_run, edit, example_results, segmentation_run
from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import read_split
from utils.data.synthetic import make_synthetic
from utils.evaluation.classification import official_truth, predictions_table
from utils.evaluation.classification import summarize as summarize_classes
from utils.evaluation.runs import find_runs
from utils.evaluation.segmentation import confusion_counts, per_image_table, summarize
from utils.evaluation.tables import main, ranked_rows, segmentation_table, wide_table
from utils.inference.segmentation import add_file, png

TASKS = ("segmentation", "classification")
MARKED = "# Title\n\n" + "".join(f"<!-- {task} -->\nold\n<!-- /{task} -->\n" for task in TASKS) + "\nThe end – π.\n"
KEY = "seg-4/seed0"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Beside the READMEs of two languages; test scores are known of one seed of seg-4, and of cls-2-4's three."""
    folder = example_results(tmp_path_factory.mktemp("project") / "results")
    for name in ("README.md", "README.zh.md"):
        (folder.parent / name).write_text(MARKED, encoding="utf-8")
    pooled = {"acc": 0.9, "se": 0.8, "sp": 0.9, "jsi2": 0.75, "dsc2": 0.85}
    of_masks = {"jaccard": 0.7, "jaccard_ci": [0.65, 0.75], "dice": 0.8, "tji": 0.6, "acc": 0.9, "se": 0.8, "sp": 0.95}
    of_class = {"auc": 0.8, "ci": [0.7, 0.9], "acc": 0.9, "se": 0.5, "sp": 0.9}
    scores = {KEY: {"segmentation": {**of_masks, "pooled": pooled}}}
    for seed, value in enumerate((0.81, 0.82, 0.86)):
        known = {"melanoma": of_class, "seborrheic_keratosis": of_class, "mean_auc": value}
        scores[f"cls-2-4/seed{seed}"] = {"classification": known}
    edit(folder / "seg-2/seed0/config.json", lambda config: config.update(device="NVIDIA H100 80GB HBM3"))
    for path in (folder / "seg-4").glob("*/config.json"):
        edit(path, lambda config: config["settings"].update(weights={"file": "resnet18-5c106cde.pth"}))
    (folder / "test_scores.json").write_text(json.dumps({"what": "", "runs": scores}))
    with pytest.raises(UserError, match=r"out of date: .*TABLES.md"):
        call(folder, "--check")
    assert not (folder / "TABLES.md").exists()
    call(folder)
    return folder


@pytest.fixture
def results(written, tmp_path) -> Path:
    return shutil.copytree(written.parent, tmp_path / "project") / "results"


def call(results: Path, *flags: str) -> None:
    main(["--results", str(results), *flags])


def lines_of(readme: Path, task: str) -> list[list[str]]:
    table = readme.read_text(encoding="utf-8").split(f"<!-- {task} -->\n")[1].split(f"<!-- /{task} -->")[0].strip()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_the_tables_of_a_readme(written):
    path = written.parent / "README.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n<!-- segmentation -->\n\n|") and text.endswith("\n\nThe end – π.\n")
    head, _, *rows = lines_of(path, "segmentation")
    assert head == ["row", "network", "starts from", "Jaccard, validation", "Jaccard, test", "trained in"]
    table = segmentation_table(find_runs(written), "validation").set_index("experiment")
    value = {name: str(table.loc[name, "jaccard"]) for name in table.index}
    assert [row[0] for row in rows] == sorted(value, key=lambda name: -table.loc[name, "jaccard"].mean)
    by_name = {row[0]: row[1:] for row in rows}
    mean, rest = value["seg-4"].split(" ", 1)
    assert by_name["seg-4"] == [
        "`res_unet` 336×224", "ImageNet", f"[{mean}](results/seg-4) {rest}", "–", "3 min, 1–2 cores",
    ]  # fmt: skip
    assert by_name["seg-2"][1:] == [
        "random weights", f"[{value['seg-2'][:4]}](results/seg-2/seed0){value['seg-2'][4:]}", "–",
        "3 min, NVIDIA H100 80GB HBM3; 8 of 150 epochs",
    ]  # fmt: skip
    of_classes = {row[0]: row for row in lines_of(path, "classification")}
    assert of_classes["cls-2-4"][4] == "[.830](results/cls-2-4) ± .026" and of_classes["arl18-scratch"][4] == "–"
    assert of_classes["arl18-scratch"][5] == "3 min, 1 core"
    chinese = {row[0]: row for row in lines_of(written.parent / "README.zh.md", "segmentation")}
    assert chinese["seg-2"][2] == "随机权重" and chinese["seg-2"][5] == "3 分钟，NVIDIA H100 80GB HBM3；8/150 轮"
    assert [row[3:5] for row in chinese.values()][2:] == [row[3:5] for row in rows]


def test_a_readme_shows_the_row_of_a_network_with_the_most_seeds(results):
    """Even where another one is better; TABLES.md shows all."""
    for seed in (0, 1, 2):  # of which the best is better than their mean, the worst worse
        folder = shutil.copytree(results / f"seg-4/seed{seed}", results / f"seg-4-small{seed}/seed0")
        edit(
            folder / "config.json", lambda config, seed=seed: config["settings"].update(seed=seed, size=[64, 8 + seed])
        )
    call(results)
    table = wide_table(ranked_rows(find_runs(results), "segmentation"), "segmentation").set_index("experiment")
    scores = {name: table.loc[name, "jaccard"].mean for name in table.index if name.startswith("seg-4")}
    shown = [row[0] for row in lines_of(results.parent / "README.md", "segmentation")]
    assert len(scores) == 4 and max(scores, key=scores.get) != "seg-4" and scores.keys() & set(shown) == {"seg-4"}
    text = (results / "TABLES.md").read_text(encoding="utf-8")
    assert all(f"| {name} " in text for name in scores)


def test_the_files_of_results(written):
    text = (written / "TABLES.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        *(f"## Segmentation: {of}" for of in
          ("mean over images, each at its mask's size", "all pixels pooled", "every run", "published by others")),
        *(f"## Classification: {of}" for of in
          ("melanoma (MEL)", "seborrheic keratosis (SK)", "every run", "published by others")),
    ]  # fmt: skip
    assert "[0](seg-4/seed0) [1](seg-4/seed1) [2](seg-4/seed2)" in text and ".700 [.650, .750]" in text
    melanoma = text.split("## Classification: melanoma (MEL)\n")[1].split("##")[0]
    assert "| mean AUC " in melanoma and "| test MEL AUC " in melanoma and "SK" not in melanoma
    rows, runs = (pd.read_csv(written / f"segmentation{kind}.csv") for kind in ("", "_runs"))
    assert list(rows["seeds"]) == [3, 1] or list(rows["seeds"]) == [1, 3]
    one = runs.set_index("run").loc[KEY]
    assert (one["test jaccard"], one["test jaccard low"], one["test pooled accuracy"]) == (0.7, 0.65, 0.9)
    assert runs.set_index("run")["test jaccard"].isna().sum() == 3 and rows["test jaccard"].isna().all()
    metrics = json.loads((written / KEY / "metrics.json").read_text())["validation"]
    assert one["jaccard"] == pytest.approx(metrics["official"]["jaccard"], rel=1e-6)
    assert one["jaccard low"] == pytest.approx(metrics["official_interval_95"]["jaccard"][0], rel=1e-6)


def test_scores_on_other_data_have_a_table_of_their_own(results):
    masks = {
        "images": 200,
        "official": {"jaccard": 0.8554, "dice": 0.9},
        "official_interval_95": {"jaccard": [0.8, 0.9], "dice": [0.85, 0.95]},
    }
    classes = {"images": 199, "melanoma": {"auc": 0.96}, "interval_95": {"melanoma": {"auc": [0.92, 0.99]}}}
    (results / KEY / "elsewhere_ph2.json").write_text(json.dumps({"masks": masks}))
    (results / "cls-2-4/seed1/elsewhere_ph2.json").write_text(json.dumps({"probabilities": classes}))
    call(results)
    *_, section = (results / "TABLES.md").read_text().split("## ")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert section.startswith("Trained on ISIC 2017, seen elsewhere")
    assert lines[0] == ["experiment", "seed", "data", "images", "jaccard", "dice", "MEL AUC"]
    assert ["cls-2-4", "1", "ph2", "199", "–", "–", ".960 [.920, .990]"] in lines
    assert ["seg-4", "0", "ph2", "200", ".855 [.800, .900]", ".900 [.850, .950]", "–"] in lines


def test_check_tells_what_is_out_of_date(results):
    before = {path: path.read_bytes() for folder in (results, results.parent) for path in folder.glob("*.*")}
    changes = {"README.zh.md": ("[.830]", "[.930]"), "results/classification_runs.csv": ("0.81", "0.91")}
    changes["results/TABLES.md"] = (".700", ".800")
    for name, (old, new) in changes.items():
        path = results.parent / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match="out of date: ") as error:
        call(results, "--check")
    assert all(name in str(error.value) for name in changes) and "README.md" not in str(error.value)
    call(results)
    assert before == {path: path.read_bytes() for path in before}  # bytes depend on nothing but the runs


@pytest.mark.parametrize(
    ("run", "change", "told"),
    [
        (KEY, lambda m: m["validation"]["official"].update(jaccard=0.9), "validation official jaccard is 0.9"),
        (KEY, lambda m: m["test"]["pooled"].update(dice=0.9), "test pooled dice is 0.9"),
        (KEY, lambda m: m["test"]["official_interval_95"].update(dice=[0.1, 1]), "official_interval_95 dice 0"),
        (KEY, lambda m: m["validation"].update(images=26), "26"),
        ("cls-2-4/seed1", lambda m: m["validation"]["melanoma"].update(auc=None), "validation melanoma auc is None"),
        ("arl18-scratch/seed4", lambda m: m["validation"].update(confusion_matrix=[[77]]), "confusion_matrix 0 0"),
    ],
)  # fmt: skip
def test_forged_scores_are_found(written, tmp_path, run, change, told):
    edit(shutil.copytree(written / run, tmp_path / run) / "metrics.json", change)
    with pytest.raises(UserError, match=run) as error:
        call(tmp_path)
    assert told in str(error.value)


@pytest.mark.parametrize("forged", [False, True])
def test_with_data_masks_and_labels_are_the_challenges(tmp_path, forged):
    """What a run keeps may be forged together with its scores; the data's own files tell."""
    data = make_synthetic(tmp_path / "data", {"train": 1, "validation": 8, "test": 1}, (48, 40), seed=1)
    samples, counts = read_split(data, "validation"), {}
    segmentation, classification = (tmp_path / f"results/{name}/seed0" for name in ("seg-4", "cls-2-4"))
    segmentation_run(segmentation, splits=("test",))
    with zipfile.ZipFile(segmentation / "validation_masks.zip", "w") as archive:
        for sample in samples:
            truth = read_mask(sample.mask).astype(bool)
            mask = np.roll(truth, 3, axis=1)
            add_file(archive, f"{sample.id}_segmentation.png", png(255 * mask))
            counts[sample.id] = confusion_counts(truth if forged else mask, truth)
    per_image_table(counts).assign(split="validation").to_csv(segmentation / "per_image.csv", index=False)
    edit(segmentation / "metrics.json", lambda metrics: metrics.update(validation=summarize(counts), test=None))
    classification_run(classification, truth=())
    ids, labels = [sample.id for sample in samples], np.array([sample.label for sample in samples])
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), len(ids))
    told = probabilities.argmax(axis=1) if forged else labels
    predictions_table(ids, probabilities).to_csv(classification / "validation_predictions.csv", index=False)
    truth = official_truth(dict(zip(ids, told.tolist(), strict=True)))
    truth.to_csv(classification / "validation_truth_official.csv", index=False)
    edit(
        classification / "metrics.json",
        lambda metrics: metrics.update(validation=summarize_classes(probabilities, told)),
    )
    call(tmp_path / "results")
    if not forged:
        return call(tmp_path / "results", "--data", str(data), "--check")
    for run in (segmentation, classification):
        with pytest.raises(UserError, match=f"{run.parent.name}/seed0/metrics.json: validation .* predictions give"):
            call(run.parent, "--data", str(data), "--check")


@pytest.mark.parametrize("text", [MARKED.replace("<!-- /segmentation -->", ""), 2 * MARKED])
def test_missing_markers_are_named(tmp_path, text):
    segmentation_run(tmp_path / "results/seg-4/seed0")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"README.md: expected <!-- segmentation --> once and") as error:
        call(tmp_path / "results")
    assert "\n" not in str(error.value) and (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="none: no finished runs"):
        call(tmp_path / "none")
