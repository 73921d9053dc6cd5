"""A folder of one's own from training to scores."""

import json
import shutil

import pandas as pd
import pytest

import cls_main
import seg_main
from tests.data.test_own import lesions, own_folder
from tests.evaluation.test_runs import edit
from utils import UserError
from utils.data.own import read_folder
from utils.evaluation import score, tables
from utils.evaluation.runs import read_run
from utils.evaluation.statistics import bootstrap_interval
from utils.inference import ensemble, release
from utils.inference.trained import chosen_runs


@pytest.mark.parametrize("script", [seg_main, cls_main])
def test_folds_are_put_together(tmp_path, undrawn, script):
    """Three trainings on a folder of one's own, each tested on a third of it."""
    table, names = lesions(24)
    table = table.replace(",L6", ",NA")  # a name like any other
    root = own_folder(tmp_path / "O'Brien/mine", table, names)
    flags = ["-p", "0", "--size", "32", "32", "--epochs", "1", "--batch-size", "4", "--data", str(root)]
    flags += ["-n", "mobilenet", "--output", str(tmp_path / "model"), "--cache", str(tmp_path / "cache")]
    for fold in (1, 2, 3):
        made = script.main([*flags, "--fold", f"{fold}/3"])
        assert made.folder.name == f"run{fold}" and made.folder.parent.name.startswith("mine-mobilenet")
    score.main([str(made.folder.parent), str(root), "--json", str(tmp_path / "scores.json")])
    found = json.loads((tmp_path / "scores.json").read_text())["masks" if script is seg_main else "probabilities"]
    assert found["images"] == len(names)
    if script is seg_main:
        values = pd.read_csv(made.path("per_image.csv")).query("split == 'test'").set_index("image_id")["jaccard"]
        told = made.read_json("metrics.json")["test"]["official_interval_95"]["jaccard"]
    else:
        both = [
            pd.read_csv(made.path(f"test_{kind}_official.csv")).set_index("image") for kind in ("predictions", "truth")
        ]
        values = (both[0].idxmax(axis=1) == both[1].idxmax(axis=1)).astype(float)
        told = made.read_json("metrics.json")["test"]["interval_95"]["accuracy"]
    groups = read_folder(root).groups
    assert told == pytest.approx(bootstrap_interval(values, [groups[id_] for id_ in values.index]))
    assert told != pytest.approx(bootstrap_interval(values))
    for seed in (0, 1):  # the same run twice, together as good as once
        shutil.copytree(made.folder, tmp_path / f"results/mine/seed{seed}")
        config = tmp_path / f"results/mine/seed{seed}/config.json"
        edit(config, lambda content, s=seed: content["settings"].update(seed=s))
    ensemble.main(["mine", "--results", str(tmp_path / "results")])
    one, both = read_run(made.folder), read_run(tmp_path / "results/mine-ensemble/seed0")
    path = ["official", "jaccard"] if script is seg_main else ["mean_auc"]
    assert both.score("test", path) == pytest.approx(one.score("test", path), abs=0.01)  # probabilities have 8 bits
    assert not [*score.wrong_scores(one), *score.wrong_scores(both), *score.wrong_scores(both, tmp_path)]
    tables.main(["--results", str(tmp_path / "results")])  # which pass over other classes than ISIC 2017's
    assert ("mine" in (tmp_path / "results/TABLES.md").read_text()) == (script is seg_main)
    released = tmp_path / "results/mine-mobilenet/seed0"
    release.main([str(made.folder), str(released), "--cache", str(tmp_path / "cache")])
    card = (released / "README.md").read_text()
    assert "trained on | mine, " in card and ("probabilities of a, b, c" in card) == (script is cls_main)
    assert chosen_runs("mine-mobilenet", tmp_path / "results")[0].folder == released
    with pytest.raises(UserError, match="best: no folder, and no row with released weights"):
        chosen_runs("best", tmp_path / "results")  # of which runs on other images are not
    if script is cls_main:
        assert {"a", "b", "c", "mean_auc"} <= found.keys() and made.read_json("metrics.json")["test"]["images"] < 20
        settings = made.read_json("config.json")["settings"]
        assert settings["classes"] == ["a", "b", "c"] and settings["fold"] == [3, 3]
    shutil.copytree(made.folder, tmp_path / "model" / "again")
    with pytest.raises(UserError, match=r"give (the )?folds of one split"):
        score.main([str(tmp_path / "model"), str(root)])
