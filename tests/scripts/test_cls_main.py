"""The script as a user runs it, on a small embedded sample."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from matplotlib.figure import Figure

import cls_main
import nets
import seg_main
from utils import UserError, command_line
from utils.config import EXPERIMENTS, experiments
from utils.data.cache import prepare
from utils.data.isic import CLASSES, read_labels, read_split
from utils.data.synthetic import make_synthetic
from utils.data.transforms import FRAME, TEST_PATCHES, TRAIN_TRANSFORMS, take
from utils.device import Precision
from utils.evaluation.classification import TASKS, classification_scores
from utils.inference.classification import balanced_weights, cache_sizes, class_probabilities, examples
from utils.model import weights

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--size", "32", "32", "--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]
RARE = (2.5, 2.5, 0.5)
FLOAT32 = Precision(torch.device("cpu"), None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    counts = {"train": 12, "validation": 9, "test": 6}
    return make_synthetic(tmp_path_factory.mktemp("data") / "sample", counts, (80, 64), seed=3)


@pytest.fixture
def folders(tmp_path, data) -> list[str]:
    return ["--data", str(data), "--output", str(tmp_path / "model"), "--cache", str(tmp_path / "cache")]


def script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "cls_main.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, timeout=300)


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_from_start_to_scores(folders, data, tmp_path):
    """Everything a run promises to keep; its scores are those of the probabilities that it wrote."""
    done = script("--experiment", "cls-2-4", "-i", "7", "-m", "a note", "--flips", *QUICK, *folders)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "model" / "cls-2-4" / "run7"
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert kept >= {"config.json", "history.csv", "metrics.json", "best.pth", "last.pth", "figures/history.png"}
    for split in ("validation", "test"):
        assert kept >= {f"figures/{split}_{name}.png" for name in ("cam", "attention", "scores")}
        assert kept >= {f"{split}_predictions.csv", f"{split}_predictions_official.csv"}
    assert not any(name.endswith(".partial") for name in kept)
    assert str(run) in done.stdout.splitlines()[-1]

    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["views"], metrics["flips"], metrics["best_epoch"]) == ("9", True, 1)
    for split, name, count in (("validation", "Validation", 9), ("test", "Test_v2", 6)):
        table = pd.read_csv(run / f"{split}_predictions.csv")
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
        assert list(pd.read_csv(run / f"validation_{name}_official.csv")) == ["image", *CLASSES]
    config = json.loads((run / "config.json").read_text())
    assert config["message"] == "a note" and config["images_not_there"] == {"train": 0, "validation": 0, "test": 0}
    assert config["settings"]["class_weights"] == [2.5, 2.5, 0.5] and config["settings"]["loss"] == "ce"
    (row,) = history(run)
    assert [name for name in row if name.startswith("alpha_")] == [f"alpha_layer{n}.0" for n in (1, 2, 3, 4)]
    assert all(0 < abs(float(row[f"alpha_layer{n}.0"]) - 0.001) < 0.1 for n in (1, 2, 3, 4))  # AdamW: lr a step


@pytest.fixture
def unscored(monkeypatch):
    """Training alone, for tests that look at nothing else: figures and intervals take seconds."""
    monkeypatch.setattr(cls_main, "evaluate", lambda *_: None)
    monkeypatch.setattr(cls_main, "leave_arl18", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch):
    """Without the figures and intervals, which one test makes."""
    monkeypatch.setattr(cls_main, "plot_saliency", lambda *_: {})
    monkeypatch.setattr(cls_main, "plot_classification", lambda *_: Figure())
    monkeypatch.setattr(cls_main, "plot_history", lambda *_: Figure())
    monkeypatch.setattr(cls_main, "summarize", lambda *_: {})
    monkeypatch.setattr(cls_main, "format_scores", lambda *_: "")


@pytest.mark.parametrize("net", cls_main.NETS)
def test_p_0_needs_no_file_for_any_network(net, folders, monkeypatch, unscored):
    monkeypatch.setattr(command_line, "find_weights", lambda *_: pytest.fail("looked for pretrained weights"))
    cls_main.main(["-n", net, "-p", "0", "--views", "1", *QUICK, *folders])


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_alpha_0_and_resnet_from_one_seed_give_the_same_loss_curve(amp, folders, tmp_path, unscored):
    """To the last bit, and so are the weights; a learnt α is another curve."""
    command = ["-p", "0", "--views", "1", *QUICK, "--epochs", "3", "--amp", amp, *folders]
    cls_main.main(["-n", "arl18", "--alpha", "0", "-i", "1", *command])
    cls_main.main(["-n", "arl18", "-i", "2", *command])
    cls_main.main(["-n", "resnet18", *command])
    runs = [tmp_path / "model" / name for name in ("arl18-scratch/run1", "arl18-scratch/run2", "resnet18-scratch/run0")]
    without, learnt, plain = ([row["train_loss"] for row in history(run)] for run in runs)
    assert without == plain != learnt
    states = [torch.load(run / "last.pth", weights_only=True)["model"] for run in (runs[0], runs[2])]
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in states[1].items())


def test_the_command_repeated_after_a_stop_gives_the_same_run(folders, tmp_path, monkeypatch, undrawn):
    command = ["-n", "arl18", "-p", "0", "--views", "1", *QUICK, "--epochs", "3", *folders]
    cls_main.main([*command, "-i", "1"])
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return class_probabilities(*args)

    monkeypatch.setattr(cls_main, "class_probabilities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cls_main.main([*command, "-i", "2"])
    cls_main.main([*command, "-i", "2"])
    whole, continued = (tmp_path / "model" / "arl18-scratch" / f"run{number}" for number in (1, 2))
    for name in ("validation_predictions.csv", "test_predictions.csv"):
        assert (whole / name).read_bytes() == (continued / name).read_bytes()


def test_the_best_weights_are_scored_not_the_last(folders, data, tmp_path, monkeypatch, undrawn):
    """Three epochs, the second the best by AUC(melanoma) + AUC(seborrheic keratosis), the third by any other score."""
    aucs = iter([(0.5, 0.6), (0.6, 0.7), (0.7, 0.5)])

    def scores(probabilities, labels):
        melanoma, keratosis = next(aucs)
        other = {"mean_auc": 0.5, "balanced_accuracy": melanoma, "accuracy": melanoma}
        return {"melanoma": {"auc": melanoma}, "seborrheic_keratosis": {"auc": keratosis}, **other}

    monkeypatch.setattr(cls_main, "classification_scores", scores)
    cls_main.main(["-n", "arl14", "--views", "1", "--amp", "off", *QUICK, "--epochs", "3", *folders])
    run = tmp_path / "model" / "cls-2-1" / "run0"
    best, last = (torch.load(run / name, weights_only=True)["model"] for name in ("best.pth", "last.pth"))
    cache = prepare(read_split(data, "test"), (80, 64), tmp_path, masks=False)

    def predicted(state) -> np.ndarray:
        model = nets.create_model("arl14")
        model.load_state_dict(state)
        return class_probabilities(model, cache, FLOAT32, (32, 32), 4, TEST_PATCHES["1"])

    written = pd.read_csv(run / "test_predictions.csv")[list(CLASSES)].to_numpy()
    assert np.allclose(written, predicted(best), atol=1e-5) and not np.allclose(written, predicted(last), atol=1e-3)
    assert json.loads((run / "metrics.json").read_text())["best_epoch"] == 2


def test_every_flag_arrives_where_it_acts(folders, data, monkeypatch, undrawn):
    labels = list(read_labels(data / "ISIC-2017_Training_Part3_GroundTruth.csv").values())
    seen = {}

    def record(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            seen.setdefault(name, []).append((args, kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("create_loss", "class_probabilities", "classification_data", "refuse_copies"):
        record(cls_main, name)
    for name in ("Schedule", "train_loader", "Trainer"):
        record(command_line, name)
    monkeypatch.setattr(command_line, "use_deterministic_kernels", lambda: seen.update(deterministic=True))
    step = ["--accumulate", "2", "--on-nan", "skip", "--recompute", "--deterministic"]
    flags = [*step, "--loss", "ce", "--class-weights", "balanced", "--recipe", "paper", "--views", "center9", "--flips"]
    cls_main.main(["-n", "arl14", *flags, "--require-all", "--keep-copies", "--patience", "7", *QUICK, *folders])
    (((loss,), options),) = seen["create_loss"]
    assert seen["deterministic"]
    assert loss == "ce" and options["class_weights"] == balanced_weights(labels) != (1, 1, 1)
    assert seen["train_loader"][0][0][-1] == 2 and seen["Trainer"][0][0][-1] == "skip"
    assert seen["Schedule"] == [((1, 1e-3, 1e-4, 7, "sgd"), {})]
    chosen, *scored = (args[5:] for args, _ in seen["class_probabilities"])
    assert chosen == (TRAIN_TRANSFORMS["patches"].selection, False) and scored == [(TEST_PATCHES["center9"], True)] * 2
    options = seen["classification_data"][0][1]
    assert options == {"keep_copies": True, "require_all": True}
    assert seen["refuse_copies"][0][1] == {"keep_copies": True}


def test_a_run_on_frames_is_chosen_and_scored_by_frames(folders, monkeypatch, undrawn):
    seen = []

    def probabilities(*args):
        seen.append(args[5:])
        return class_probabilities(*args)

    monkeypatch.setattr(cls_main, "class_probabilities", probabilities)
    command = ["-n", "resnet18", "-p", "0", *QUICK, *folders]
    run = cls_main.main([*command, "--train-views", "frame"])
    assert seen == [((FRAME,), True), ((FRAME,), False), ((FRAME,), False)]
    assert run.read_json("metrics.json")["views"] == "1"
    settings = run.read_json("config.json")["settings"]
    assert settings["train_views"] == "frame" and not {"views", "flips"} & settings.keys()
    with pytest.raises(UserError, match="train_views frame"):
        cls_main.main(command)


def test_a_finished_run_is_scored_anew_with_other_views(folders, tmp_path, undrawn):
    command = ["-n", "resnet18", "-p", "0", *QUICK, *folders]
    tables = []
    for views in ("9", "center9", "1", "9"):
        cls_main.main([*command, "--views", views])
        tables.append((tmp_path / "model" / "resnet18-scratch" / "run0" / "test_predictions.csv").read_bytes())
    assert tables[0] == tables[3] and len(set(tables)) == 3
    assert len(history(tmp_path / "model" / "resnet18-scratch" / "run0")) == 1


def test_arl18_becomes_the_encoder_of_seg_5(folders, tmp_path, caplog, undrawn):
    """The file is left where the ARL-UNet looks, and all its tensors but the classifier arrive there."""
    caplog.set_level("INFO", "isic2017")
    cls_main.main(["-n", "arl18", "-p", "0", "--views", "1", *QUICK, *folders])
    exported = tmp_path / "model" / "arl18.pth"
    state = torch.load(exported, weights_only=True)["model"]
    best = torch.load(tmp_path / "model" / "arl18-scratch" / "run0" / "best.pth", weights_only=True)["model"]
    assert state.keys() == best.keys() and all(torch.equal(best[name], state[name]) for name in best)

    seg_main.main(["--experiment", "seg-5", *QUICK, *folders])
    report = f"{len(state) - 2} tensors loaded, missing none, unused 2 (fc.bias, fc.weight)"
    (line,) = [record.message for record in caplog.records if report in record.message]
    assert "from arl18.pth (run arl18-scratch/run0, val_mean_auc " in line and f"data {folders[1]}" in line
    config = json.loads((tmp_path / "model" / "seg-5" / "run0" / "config.json").read_text())
    assert config["settings"]["weights"]["loaded"] == len(state) - 2


def test_an_arl18_pth_that_is_there_is_left_alone(tmp_path, caplog):
    caplog.set_level("INFO", "isic2017")
    model, path = torch.nn.Linear(1, 1), tmp_path / "arl18.pth"
    weights.export_arl18(model, tmp_path, {"run": "a", "val_mean_auc": 0.7})
    before = path.read_bytes()
    weights.export_arl18(model, tmp_path, {"run": "b", "val_mean_auc": 0.9})
    assert path.read_bytes() == before
    assert "stays as it is (run a, val_mean_auc 0.7); --weights FILE takes" in caplog.records[-1].message


@pytest.mark.parametrize("flags", [["--keep-copies"], ["--alpha", "fixed"], ["--attention", "channel"]])
def test_variants_and_leaks_leave_no_arl18_pth(flags, folders, tmp_path, undrawn):
    cls_main.main(["-n", "arl18", "-p", "0", "--views", "1", *flags, *QUICK, *folders])
    assert not (tmp_path / "model" / "arl18.pth").exists()


def test_a_continued_run_needs_its_pretrained_weights_no_more(folders, tmp_path, unscored):
    """arl18.pth may have gone, or be another one: the checkpoint holds what came of it."""
    state = nets.create_model("arl18").state_dict()
    (tmp_path / "model").mkdir()
    torch.save(state, tmp_path / "model" / "resnet18-f37072fd.pth")
    for _ in range(2):
        cls_main.main(["-n", "arl18", "-p", "1", *QUICK, *folders])
        (tmp_path / "model" / "resnet18-f37072fd.pth").unlink(missing_ok=True)
    config = json.loads((tmp_path / "model" / "arl18-pretrained" / "run0" / "config.json").read_text())
    assert config["settings"]["weights"]["file"] == "resnet18-f37072fd.pth" and len(config["continued"]) == 1


def test_pretrained_rows_take_torchvisions_file(tmp_path):
    reference = torchvision.models.resnet50(weights=None)
    torch.save(reference.state_dict(), tmp_path / "resnet50-0676ba61.pth")
    for name, missing in (("cls-1-1", 18), ("cls-1-2", 2)):
        args = cls_main.parse(["--experiment", name, "--output", str(tmp_path)])
        model, report = command_line.build_model(args, cls_main.choose(args))
        assert len(report["missing"]) == missing and {"fc.weight", "fc.bias"} <= set(report["missing"])
        assert set(report["left_over"]) == {"fc.weight", "fc.bias"}
        assert torch.equal(model.layer4[2].conv3.weight, reference.layer4[2].conv3.weight)
        assert model.fc.out_features == 3


def test_offline_is_one_line(folders, monkeypatch):
    offline = replace(weights.PRETRAINED["resnet50"], files=("none.pth",), url="http://127.0.0.1:9/")
    monkeypatch.setitem(weights.PRETRAINED, "resnet50", offline)
    with pytest.raises(UserError, match=r"none.pth could not be downloaded .*train without it \(-p 0\)"):
        cls_main.main(["--experiment", "cls-1-2", *QUICK, *folders])


@pytest.mark.parametrize(
    "arguments,name,net,loss,class_weights",
    [
        ([], "cls-1-1", "arl50", "focal", (1, 1, 1)),
        (["-n", "resnet50"], "cls-1-2", "resnet50", "focal", (1, 1, 1)),
        (["-n", "arl14"], "cls-2-1", "arl14", "focal", (1, 1, 1)),
        (["-n", "arl14", "--class-weights", "2.5", "2.5", "0.5"], "cls-2-2", "arl14", "focal", RARE),
        (["-n", "arl14", "--loss", "ce"], "cls-2-3", "arl14", "ce", (1, 1, 1)),
        (["--loss", "ce", "--class-weights", "2.5", "2.5", ".5", "-n", "arl14"], "cls-2-4", "arl14", "ce", RARE),
        (["-n", "arl14", "--attention", "none"], "arl14-scratch", "arl14", "focal", (1, 1, 1)),
        (["-n", "arl18", "-p", "0"], "arl18-scratch", "arl18", "focal", (1, 1, 1)),
        (["-n", "resnet14"], "resnet14-scratch", "resnet14", "focal", (1, 1, 1)),
        (["--experiment", "cls-2-4", "--class-weights", "balanced"], "cls-2-4", "arl14", "ce", "balanced"),
        (["--experiment", "cls-2-4", "-n", "arl18", "-p", "0"], "arl18-scratch", "arl18", "ce", RARE),
        (["--experiment", "cls-1-1", "-n", "resnet50"], "resnet50-pretrained", "resnet50", "focal", (1, 1, 1)),
        (["-n", "arl14", "--weights", "file.pth"], "arl14-pretrained", "arl14", "focal", (1, 1, 1)),
    ],
)  # fmt: skip
def test_which_experiment_is_meant(arguments, name, net, loss, class_weights):
    row = cls_main.choose(cls_main.parse(arguments))
    assert (row.name, row.net, row.loss, row.class_weights) == (name, net, loss, class_weights)
    assert (row.size, row.batch_size, row.epochs, row.lr, row.weight_decay) == ((224, 224), 32, 100, 1e-4, 1e-2)
    assert (row.patience, row.optimizer) == (30, "adamw")
    with_block = row.net.startswith("arl")
    assert (row.attention is not None, row.alpha is not None) == (with_block, with_block and row.attention != "none")


def test_recipe_of_the_paper():
    scratch, tuned, other = (
        cls_main.choose(cls_main.parse(["--recipe", "paper", *arguments]))
        for arguments in (["-n", "arl14"], ["-n", "arl50"], ["-n", "arl50", "--lr", "0.5"])
    )
    assert (scratch.optimizer, scratch.lr, tuned.lr, other.lr) == ("sgd", 0.01, 1e-4, 0.5)
    assert scratch.name == "arl14-scratch"  # not a row of the table, unless it is asked for by name
    assert cls_main.choose(cls_main.parse(["--experiment", "cls-2-1", "--recipe", "paper"])).name == "cls-2-1"


def test_every_row_of_the_table_is_runnable_by_name():
    for name in experiments("classification"):
        row = EXPERIMENTS[name]
        assert cls_main.choose(cls_main.parse(["--experiment", name])) == row
        published = {} if name.startswith("cls-b") else dict.fromkeys(CLASSES[:2], 4)  # b: this project's own
        assert {task: len(numbers) for task, numbers in row.published.items()} == published


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--class-weights", "1", "2"], "argument --class-weights: expected three numbers, or balanced"),
        (["--class-weights", "1", "2", "0"], "argument --class-weights: 0 is not a positive number"),
        (["--class-weights", "1", "2", "balanced"], "argument --class-weights: could not convert"),
        (["--views", "4"], "argument --views: invalid choice"),
        (["--loss", "dice_ce"], "argument --loss: invalid choice: 'dice_ce'"),
        (["--experiment", "seg-1"], "argument --experiment: invalid choice: 'seg-1'"),
    ],
)
def test_values_that_are_out_of_range(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cls_main.parse(arguments)
    assert message in capsys.readouterr().err


def test_attention_of_a_resnet_is_refused():
    with pytest.raises(UserError, match=r"--attention and --alpha are for ARL networks, resnet18 has no ARL block"):
        cls_main.choose(cls_main.parse(["-n", "resnet18", "--alpha", "fixed"]))


def test_a_mistake_ends_in_one_line_and_exit_code_2(tmp_path):
    done = script("-n", "arl14", "--data", str(tmp_path / "none"))
    assert (done.returncode, done.stdout.count("\n")) == (2, 1) and "no such folder" in done.stderr


def test_balanced_weights_give_every_class_the_same_share():
    labels = [0] * 2 + [1] * 5 + [2] * 23
    weights_ = balanced_weights(labels)
    assert [weights_[label] * labels.count(label) for label in range(3)] == pytest.approx([10, 10, 10], rel=1e-4)
    with pytest.raises(UserError, match="no training image of seborrheic_keratosis"):
        balanced_weights([0, 2, 2])


def test_images_are_stored_no_larger_than_they_are(data):
    samples = read_split(data, "train")
    patches = TRAIN_TRANSFORMS["patches"]
    # The sample is 80×64: the network's input at least, and no center that would be no finer.
    assert cache_sizes(samples, (224, 224), patches) == ((224, 224), None)
    assert cache_sizes(samples, (30, 60), patches) == ((75, 64), None)
    assert cache_sizes(samples, (10, 10), patches) == ((25, 25), (20, 20))
    assert cache_sizes(samples, (10, 10), TRAIN_TRANSFORMS["frame"]) == ((15, 15), None)


def test_probabilities_are_the_mean_over_views_and_flips(data, tmp_path):
    class MeanColour(torch.nn.Module):
        """Logits that know left from right and up from down."""

        def forward(self, x):
            return torch.stack([x[..., :8, :4].mean((1, 2, 3)), x[..., 5:].mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    cache = prepare(read_split(data, "test"), (80, 64), tmp_path, masks=False)
    model = MeanColour()

    def by_hand(image: np.ndarray) -> torch.Tensor:
        seen = []
        for patch in TEST_PATCHES["9"]:
            view = torch.from_numpy(take(image, patch, (16, 12)))
            for axes in ([], [0], [1], [0, 1]):
                pixels = view.flip(axes).permute(2, 0, 1)[None] / 255
                normalised = torchvision.transforms.functional.normalize(
                    pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
                )
                seen.append(model(normalised).softmax(1)[0])
        return torch.stack(seen).mean(0)

    got = class_probabilities(model, cache, FLOAT32, (16, 12), 5, TEST_PATCHES["9"], flips=True)
    expected = torch.stack([by_hand(image) for image in cache.pixels()])
    assert got.shape == (6, 3) and np.allclose(got, expected, atol=1e-5)
    assert np.allclose(
        got, class_probabilities(model, cache, FLOAT32, (16, 12), 64, TEST_PATCHES["9"], flips=True), atol=1e-6
    )


def test_examples_are_best_and_worst_of_each_class():
    probabilities = np.array([[0.9, 0.05, 0.05], [0.2, 0.4, 0.4], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    assert examples(probabilities, np.array([0, 0, 0, 2, 2])) == [0, 1, 3, 4]
