"""cls_main.py as a user runs it, on a few drawn images; what it shares with seg_main.py stands in test_seg_main.py."""

import numpy as np
import pandas as pd
import pytest
import torch

import cls_main
import nets
import seg_main
from tests.scripts.conftest import QUICK
from tests.small import FLOAT32
from utils import UserError
from utils.data.cache import ImageCache, prepare
from utils.data.isic import CLASSES, read_labels, read_split
from utils.data.transforms import FRAME, TEST_PATCHES, TRAIN_TRANSFORMS
from utils.evaluation.classification import TASKS, classification_scores
from utils.inference.classification import class_probabilities, labels_of
from utils.loss import Loss, loss_of
from utils.model.build import build_model
from utils.tasks.classification import Classification, balanced_weights

RARE = (2.5, 2.5, 0.5)


@pytest.fixture(scope="module")
def validation(data, tmp_path_factory) -> ImageCache:
    return prepare(read_split(data, "validation"), (80, 64), tmp_path_factory.mktemp("validation"), masks=False)


def network(path) -> torch.nn.Module:
    """ResNet-14 with the weights of a checkpoint."""
    model = nets.create_model("resnet14")
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model


def test_a_run_from_start_to_scores(folders, data):
    """Everything a run promises to keep; its scores are those of the probabilities that it wrote."""
    run = cls_main.main(["--experiment", "cls-2-4", "-i", "7", "-m", "a note", *QUICK, *folders])
    kept = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert kept >= {"config.json", "history.csv", "metrics.json", "best.pth", "last.pth", "figures/history.png"}
    for split in ("validation", "test"):
        assert kept >= {f"figures/{split}_{name}.png" for name in ("cam", "attention", "scores")}
        assert kept >= {f"{split}_predictions.csv", f"{split}_predictions_official.csv"}
    assert not any(name.endswith(".partial") for name in kept)

    metrics = run.read_json("metrics.json")
    assert (metrics["views"], metrics["flips"], metrics["best_epoch"]) == ("9", False, 1)
    for split, name, count in (("validation", "Validation", 6), ("test", "Test_v2", 3)):
        table = pd.read_csv(run.path(f"{split}_predictions.csv"))
        assert list(table) == ["image_id", *CLASSES] and len(table) == count
        truth = read_labels(data / f"ISIC-2017_{name}_Part3_GroundTruth.csv")
        scores = classification_scores(table[list(CLASSES)], np.array([truth[id_] for id_ in table["image_id"]]))
        assert metrics[split]["mean_auc"] == pytest.approx(scores["mean_auc"])
        assert metrics[split]["confusion_matrix"] == scores["confusion_matrix"]
        for task in TASKS:
            assert metrics[split][task]["at_0.5"] == pytest.approx(scores[task]["at_0.5"])
        low, high = metrics[split]["interval_95"]["mean_auc"]
        assert low <= metrics[split]["mean_auc"] <= high
    for name in ("predictions", "truth"):
        assert list(pd.read_csv(run.path(f"validation_{name}_official.csv"))) == ["image", *CLASSES]
    config = run.read_json("config.json")
    assert config["message"] == "a note"
    assert config["settings"]["class_weights"] == [2.5, 2.5, 0.5] and config["settings"]["loss"] == "ce"
    (row,) = run.history()
    assert [name for name in row if name.startswith("alpha_")] == [f"alpha_layer{n}.0" for n in (1, 2, 3, 4)]
    assert all(0 < abs(row[f"alpha_layer{n}.0"] - 0.001) < 0.1 for n in (1, 2, 3, 4))  # AdamW: lr a step


def test_the_best_weights_are_scored_not_the_last(folders, data, tmp_path, undrawn, monkeypatch):
    """The second of three epochs is said to be the best."""
    scores = iter([1.0, 1.5, 1.2])
    said = lambda model: (score := next(scores), {"val_mean_auc": score / 2})  # noqa: E731
    monkeypatch.setattr(Classification, "validation", lambda *_: said)
    run = cls_main.main(["-n", "resnet14", "--views", "1", "--amp", "off", *QUICK, "--epochs", "3", *folders])
    assert run.read_json("metrics.json")["best_epoch"] == 2
    cache = prepare(read_split(data, "test"), (80, 64), tmp_path, masks=False)
    written = pd.read_csv(run.path("test_predictions.csv"))[list(CLASSES)].to_numpy()
    scored, last = (
        class_probabilities(network(run.path(name)), cache, FLOAT32, (32, 32), 4, TEST_PATCHES["1"])
        for name in ("best.pth", "last.pth")
    )
    assert np.allclose(written, scored, atol=1e-6) and not np.allclose(written, last, atol=1e-4)


@pytest.mark.parametrize(("kind", "flips"), [("patches", False), ("frame", True)])
def test_epochs_are_compared_by_views_like_those_that_it_is_trained_on(kind, flips, validation):
    """Whatever `--views` says."""
    config = cls_main.parse([*QUICK, "--train-views", kind, "--views", "9"])
    torch.manual_seed(0)
    model = nets.create_model("resnet14")
    score, columns = Classification(config).validation(validation, FLOAT32)(model)
    patches = (FRAME,) if kind == "frame" else TRAIN_TRANSFORMS["patches"].selection
    probabilities = class_probabilities(model, validation, FLOAT32, (32, 32), 4, patches, flips)
    scores = classification_scores(probabilities, labels_of(validation.samples))
    assert score == sum(scores[task]["auc"] for task in TASKS)
    assert columns.items() >= {f"val_{task}_auc": scores[task]["auc"] for task in TASKS}.items()
    assert columns["val_loss"] == loss_of(Loss("focal"), probabilities, labels_of(validation.samples))


def test_a_finished_run_is_scored_anew_with_other_views(folders, undrawn):
    """A run on frames is scored by frames unless another view is asked for; it stays a run on frames."""
    command = ["-n", "resnet14", *QUICK, *folders]
    tables = []
    for views in ([], ["--views", "9"], ["--views", "1", "--flips"]):
        run = cls_main.main([*command, "--train-views", "frame", *views])
        tables.append(run.path("test_predictions.csv").read_bytes())
    assert len(set(tables)) == 3 and len(run.history()) == 1
    assert run.read_json("metrics.json")["views"] == "1"
    settings = run.read_json("config.json")["settings"]
    assert settings["train_views"] == "frame" and not {"views", "flips"} & settings.keys()
    with pytest.raises(UserError, match="train_views frame"):
        cls_main.main(command)


def test_settings_arrive_where_they_act(folders, data):
    labels = list(read_labels(data / "ISIC-2017_Training_Part3_GroundTruth.csv").values())
    task = Classification(cls_main.parse(["--class-weights", "balanced", "--require-all", *folders]))
    task.read_data()
    assert task.config.class_weights == balanced_weights(labels) != (1, 1, 1)
    loss = Classification(cls_main.parse(["--loss", "ce", "--class-weights", "1", "2", "3"])).loss()
    logits, targets = torch.eye(3)[:2], torch.tensor([1, 2])
    reference = torch.nn.functional.cross_entropy(logits, targets, torch.tensor([1.0, 2.0, 3.0]))
    assert loss(logits, targets) == pytest.approx(reference.item())


def test_arl18_becomes_the_encoder_of_seg_5(folders, tmp_path, undrawn):
    """The file is left where the ARL-UNet looks, and all its tensors but the classifier arrive there."""
    run = cls_main.main(["-n", "arl18", "--views", "1", *QUICK, *folders])
    state = torch.load(tmp_path / "model" / "arl18.pth", weights_only=True)["model"]
    best = torch.load(run.path("best.pth"), weights_only=True)["model"]
    assert state.keys() == best.keys() and all(torch.equal(best[name], state[name]) for name in best)
    model, weights = build_model(seg_main.parse(["--experiment", "seg-5", *folders]))
    assert (weights["file"], weights["loaded"], weights["missing"]) == ("arl18.pth", len(state) - 2, ())
    assert weights["left_over"] == ("fc.bias", "fc.weight")
    assert weights["source"].startswith("run arl18-scratch/run0, val_mean_auc ") and folders[1] in weights["source"]
    assert torch.equal(model.encoder.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    "flags",
    [["--keep-copies"], ["--alpha", "fixed"], ["--attention", "channel"], ["--weights", "mine.pth"], ["-n", "arl14"]],
)
def test_variants_and_leaks_leave_no_arl18_pth(flags, tmp_path):
    config = cls_main.parse(["-n", "arl18", "--output", str(tmp_path), *flags])
    Classification(config).finish(torch.nn.Linear(1, 1), {}, 1, run=None)  # which is asked where weights are left
    assert not any(tmp_path.iterdir())


def test_a_continued_run_needs_its_pretrained_weights_no_more(folders, tmp_path, unscored):
    """They may have gone, or be others: the checkpoint holds what came of them."""
    weights = tmp_path / "model" / "resnet18-f37072fd.pth"
    weights.parent.mkdir()
    torch.save(nets.create_model("arl18").state_dict(), weights)
    for _ in range(2):
        run = cls_main.main(["-n", "arl18", *QUICK, "-p", "1", *folders])
        weights.unlink(missing_ok=True)
    config = run.read_json("config.json")
    assert config["settings"]["weights"]["file"] == weights.name and len(config["continued"]) == 1


@pytest.mark.parametrize(
    ("arguments", "name", "net", "loss", "class_weights"),
    [
        ([], "cls-1-1", "arl50", "focal", (1, 1, 1)),
        (["-n", "resnet50"], "cls-1-2", "resnet50", "focal", (1, 1, 1)),
        (["-n", "arl14"], "cls-2-1", "arl14", "focal", (1, 1, 1)),
        (["-n", "arl14", "--class-weights", "2.5", "2.5", "0.5"], "cls-2-2", "arl14", "focal", RARE),
        (["-n", "arl14", "--attention", "none"], "arl14-scratch", "arl14", "focal", (1, 1, 1)),
        (["--experiment", "cls-2-4", "--class-weights", "balanced"], "cls-2-4", "arl14", "ce", "balanced"),
        (["--experiment", "cls-2-4", "-n", "arl18", "-p", "0"], "arl18-scratch", "arl18", "ce", RARE),
    ],
)
def test_which_experiment_is_meant(arguments, name, net, loss, class_weights):
    row = cls_main.parse(arguments)
    assert (row.name, row.net, row.loss, row.class_weights) == (name, net, loss, class_weights)
    assert (row.size, row.batch_size, row.epochs, row.patience) == ((224, 224), 32, 100, 30)
    assert (row.lr, row.weight_decay, row.optimizer) == (1e-4, 1e-2, "adamw")
    with_block = row.net.startswith("arl")
    assert (row.attention is not None, row.alpha is not None) == (with_block, with_block and row.attention != "none")


def test_recipe_of_the_paper():
    scratch, tuned, other, row = (
        cls_main.parse(["--recipe", "paper", *arguments])
        for arguments in (["-n", "arl14"], ["-n", "arl50"], ["-n", "arl50", "--lr", "0.5"], ["--experiment", "cls-2-1"])
    )
    assert (scratch.optimizer, scratch.lr, tuned.lr, other.lr) == ("sgd", 0.01, 1e-4, 0.5)
    assert (scratch.name, row.name) == ("arl14-scratch", "cls-2-1")  # a row of the table only when asked for by name


def test_balanced_weights_give_every_class_the_same_share():
    labels = [0] * 2 + [1] * 5 + [2] * 23
    weights = balanced_weights(labels)
    assert [weights[label] * labels.count(label) for label in range(3)] == pytest.approx([10, 10, 10], rel=1e-4)
    with pytest.raises(UserError, match="no training image of seborrheic_keratosis"):
        balanced_weights([0, 2, 2])
