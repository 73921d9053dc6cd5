"""The loop that trains: best weights, continuing, stopping; and the faults of the earlier project in it."""

import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nets
from utils import UserError
from utils.data.cache import prepare
from utils.data.isic import read_split
from utils.data.loader import train_loader
from utils.data.synthetic import make_synthetic
from utils.data.transforms import SegmentationTransforms
from utils.device import Precision, find_device, find_precision
from utils.inference.segmentation import score
from utils.loss import create_loss
from utils.model.checkpoints import load_best, save_checkpoint
from utils.model.fit import fit
from utils.model.run import Run
from utils.model.trainer import Schedule, Trainer
from utils.model.weights import load_file

ROOT = Path(__file__).resolve().parents[2]
SIZE = (32, 32)
FLOAT32 = Precision(torch.device("cpu"), None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_synthetic(folder / "sample", {"train": 12, "validation": 3, "test": 3}, (72, 64), seed=1)
    return prepare(read_split(folder / "sample", "train"), (48, 48), folder / "cache")


def tiny() -> nn.Module:
    """Trains in no time, and has what a continued run can get wrong: running statistics and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 2, 1))


class Stopped(Exception):
    """Stands for a kill."""


class NotFiniteOnce(nn.Module):
    """A loss whose gradient, not itself, is infinite in one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, logits, targets):
        self.calls += 1
        odd = (logits - logits.detach()).sum().abs().sqrt() if self.calls == self.step else 0
        return nn.functional.cross_entropy(logits, targets.long()) + odd


def train(
    run,
    cache,
    scores,
    *,
    stop_in_epoch=None,
    patience=99,
    model=None,
    lr=1e-2,
    criterion=None,
    on_nan="stop",
    workers=0,
):
    """An epoch for each of the given validation scores; a kill before the validation of epoch `stop_in_epoch`."""
    loader = train_loader(cache, SegmentationTransforms(SIZE), 4, 0, torch.device("cpu"), workers)
    schedule = Schedule(len(scores), lr, 1e-4, patience)
    criterion = criterion or create_loss("dice_ce")
    trainer = Trainer(model or tiny(), criterion, schedule, loader.batch_sampler.steps, FLOAT32, on_nan)

    def validate(model):
        epoch = trainer.progress.epoch + 1
        if epoch == stop_in_epoch:
            raise Stopped
        return scores[epoch - 1], {"val_score": scores[epoch - 1]}

    fit(trainer, loader, validate, run)
    return trainer


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steady(history: list[dict]) -> list[dict]:
    """The history without the columns that a clock wrote."""
    return [{k: v for k, v in row.items() if k not in ("train_seconds", "images_per_second")} for row in history]


def test_the_best_weights_are_kept_and_loaded_not_the_last(cache, tmp_path):
    """Old fault: the last weights were scored."""
    with pytest.raises(Stopped):
        train(Run(tmp_path / "a", {}, resume=True), cache, [0.1, 0.9, 0.3, 0.2], stop_in_epoch=3)
    after_two_epochs = torch.load(tmp_path / "a" / "last.pth", weights_only=True)["model"]
    run = Run(tmp_path / "b", {}, resume=True)
    trainer = train(run, cache, [0.1, 0.9, 0.3, 0.2])
    assert not same(after_two_epochs, trainer.model.state_dict())
    model = tiny()
    assert load_best(model, run.folder) == 2
    assert same(model.state_dict(), after_two_epochs)


def test_loader_processes_begin_the_next_epoch_during_validation_and_change_nothing(cache, tmp_path, monkeypatch):
    seen, begin = [], Trainer.begin_next_epoch

    def watched(trainer, loader):
        begin(trainer, loader)
        batches = loader.batch_sampler
        seen.append((trainer.progress.epoch, batches.epoch, batches.start, trainer._ahead is not None))

    monkeypatch.setattr(Trainer, "begin_next_epoch", watched)
    scores = [0.1, 0.4, 0.3]
    alone = train(Run(tmp_path / "alone", {}, resume=True), cache, scores)
    assert seen == [(0, 0, 0, False), (1, 1, 0, False), (2, 2, 0, False)]
    seen.clear()
    helped = train(Run(tmp_path / "helped", {}, resume=True), cache, scores, workers=1)
    assert seen == [(0, 1, 0, True), (1, 2, 0, True), (2, 2, 0, False)]  # none follows the last
    assert same(alone.model.state_dict(), helped.model.state_dict())
    with pytest.raises(Stopped):
        train(Run(tmp_path / "cut", {}, resume=True), cache, scores, stop_in_epoch=2, workers=1)
    again = train(Run(tmp_path / "cut", {}, resume=True), cache, scores, workers=1)
    assert same(alone.model.state_dict(), again.model.state_dict())


def test_batches_that_were_begun_are_not_those_of_an_epoch_that_is_done_again(cache, tmp_path):
    """The same trainer goes on after its validation failed: with the checkpoint's epoch, not with the one after it."""
    weights = []
    for workers in (0, 1):
        failing, run = iter([False, True]), Run(tmp_path / f"run{workers}", {}, resume=True)
        loader = train_loader(cache, SegmentationTransforms(SIZE), 4, 0, torch.device("cpu"), workers)
        trainer = Trainer(
            tiny(), create_loss("dice_ce"), Schedule(3, 1e-2, 1e-4, 9), loader.batch_sampler.steps, FLOAT32
        )

        def validate(model, failing=failing):
            if next(failing, False):
                raise Stopped
            return 0.5, {"val_score": 0.5}

        with pytest.raises(Stopped):
            fit(trainer, loader, validate, run)
        fit(trainer, loader, validate, run)
        weights.append(trainer.model.state_dict())
    assert same(*weights)


@pytest.mark.fault(
    "a loader process dies, while it loads or during validation", "one line, exit code 2; the run goes on"
)
@pytest.mark.parametrize("when", ["training", "validation"])
def test_a_loader_process_that_dies_is_one_line(cache, tmp_path, when, monkeypatch):
    step = Trainer.step

    def kill_worker():
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()

    def fatal_step(trainer, pieces):
        kill_worker()
        return step(trainer, pieces)

    if when == "training":
        monkeypatch.setattr(Trainer, "step", fatal_step)
    loader = train_loader(cache, SegmentationTransforms(SIZE), 1, 0, torch.device("cpu"), 1)
    trainer = Trainer(tiny(), create_loss("dice_ce"), Schedule(3, 1e-2, 1e-4, 9), loader.batch_sampler.steps, FLOAT32)

    def validate(model):
        kill_worker()
        time.sleep(5)  # torch's handler of SIGCHLD raises within
        return 0.5, {"val_score": 0.5}

    with pytest.raises(UserError, match=r"^a loader process failed \(DataLoader worker .*: take fewer --workers"):
        fit(trainer, loader, validate, Run(tmp_path / "run0", {}, resume=True))


@pytest.mark.parametrize("stop_in_epoch", [1, 3, 5])
def test_a_continued_run_equals_one_that_never_stopped(cache, tmp_path, stop_in_epoch):
    """Old fault: the restored optimizer no longer drove the model. Bit for bit: weights, moments, schedule, history."""
    scores = [0.1, 0.4, 0.3, 0.5, 0.2]
    whole = Run(tmp_path / "whole", {}, resume=True)
    train(whole, cache, scores)
    torch.manual_seed(99)  # whatever the process did before
    with pytest.raises(Stopped):
        train(Run(tmp_path / "cut", {}, resume=True), cache, scores, stop_in_epoch=stop_in_epoch)
    cut = Run(tmp_path / "cut", {}, resume=True)
    torch.randn(7)
    train(cut, cache, scores)
    for name in ("last.pth", "best.pth"):
        a, b = (torch.load(run.path(name), weights_only=True) for run in (whole, cut))
        assert same(a["model"], b["model"]) and a["progress"] == b["progress"]
    a, b = (torch.load(run.path("last.pth"), weights_only=True) for run in (whole, cut))
    for key, moments in a["optimizer"]["state"].items():
        assert same(moments, b["optimizer"]["state"][key])
    assert a["scheduler"] == b["scheduler"]
    assert steady(whole.history()) == steady(cut.history())


def other_moments(state):
    state["optimizer"]["state"][0]["exp_avg"] = torch.ones(2)


def later_epoch(state):
    state["progress"]["epoch"], state["scheduler"]["last_epoch"] = 3, 9


def more_steps(state):
    state["progress"]["epoch"], state["progress"]["step"], state["progress"]["best_epoch"] = 0, 4, 0
    state["scheduler"]["last_epoch"] = 4


CHANGED = {
    "another network's weights": lambda state: state.update(model=nn.Linear(2, 2).state_dict()),
    "moments of another shape": other_moments,
    "no optimizer": lambda state: state.pop("optimizer"),
    "progress of another kind": lambda state: state.update(progress={"epochs": 3}),
    **{
        f"{name} {value}": lambda state, name=name, value=value: state["progress"].update({name: value})
        for name, values in {
            "step": (10**9, -1, 2, 1.0, "1", None, True),
            "epoch": (-1, 0, 3, 10**9, "1", 1.0),
            "best_epoch": (2, -1, "1"),
            "best_score": (float("nan"), float("inf"), "1"),
            "loss": (float("nan"), "1", 10**400, True),
            "lr": (float("inf"), None),
            "skipped": (-1, "1"),
            "uncounted": (-1, 0.5, 1),
        }.items()
        for value in values
    },
    "progress that is a list": lambda state: state.update(progress=[1, 0]),
    "a later epoch of a longer schedule": later_epoch,
    "more steps than an epoch has": more_steps,
    "a step of the scheduler that is a text": lambda state: state["scheduler"].update(last_epoch="3"),
    "a moment that is missing": lambda state: state["optimizer"]["state"][0].pop("exp_avg_sq"),
    **{
        f"learning rate {value}": lambda state, value=value: state["optimizer"]["param_groups"][0].update(lr=value)
        for value in ("fast", -1.0, float("nan"), 10**400)
    },
    "two learning rates": lambda state: state["optimizer"]["param_groups"].append({"lr": 0.1}),
    "parameter groups that are numbers": lambda state: state["optimizer"].update(param_groups=[3]),
    "a moment that is a number": lambda state: state["optimizer"]["state"][0].update(exp_avg=3.0),
    "a random state that is none": lambda state: state["random"].update(torch=torch.ones(3)),
}


@pytest.mark.fault("a checkpoint that holds something else", "one line that names it, exit code 2")
@pytest.mark.parametrize("name", CHANGED)
def test_a_checkpoint_of_something_else_is_refused(cache, tmp_path, name):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1])
    state = load_file(run.path("last.pth"))
    CHANGED[name](state)
    save_checkpoint(state, run.path("last.pth"))
    with pytest.raises(UserError, match=r"last\.pth is no checkpoint of this run \(.+\); start afresh with -c 0"):
        train(run, cache, [0.1, 0.2])


def test_a_checkpoint_changes_no_setting_of_the_optimizer(cache, tmp_path):
    """They are the run's, whatever lies in the file."""
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1])
    state = load_file(run.path("last.pth"))
    state["optimizer"]["param_groups"][0].update(betas="x", amsgrad=True)
    state["scheduler"].update(T_max=None, base_lrs=[], step=3)
    save_checkpoint(state, run.path("last.pth"))
    trainer = train(run, cache, [0.1, 0.2])
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.999) and trainer.scheduler.T_max == 2 * trainer.steps


@pytest.mark.fault("a best.pth that does not tell its epoch", "one line that names it, exit code 2")
@pytest.mark.parametrize("progress", [{"best_epoch": "1"}, {"best_epoch": 3, "epoch": 1}, {"epoch": -1}, [1], None])
def test_best_weights_of_no_epoch_are_refused(tmp_path, progress):
    save_checkpoint({"model": tiny().state_dict(), "progress": progress}, tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"best\.pth is no checkpoint of this run \(.+\); start afresh with -c 0"):
        load_best(tiny(), tmp_path)


@pytest.mark.fault("a checkpoint cut short", "one line that names it, exit code 2")
def test_a_checkpoint_cut_short_is_refused(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1])
    content = run.path("last.pth").read_bytes()
    run.path("last.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"last\.pth: truncated, or not a PyTorch file of plain weights"):
        train(run, cache, [0.1, 0.2])


def test_without_a_checkpoint_continuing_starts(cache, tmp_path):
    """Old fault: continuing was the default and failed where there was nothing to continue."""
    run = Run(tmp_path / "run", {}, resume=True)
    assert train(run, cache, [0.1]).progress.epoch == 1


def test_a_finished_run_is_not_trained_on(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    before = train(run, cache, [0.1, 0.2]).model.state_dict()
    assert same(train(run, cache, [0.1, 0.2]).model.state_dict(), before)


def test_early_stop_counts_from_the_best_epoch(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1, 0.5, 0.5, 0.4, 0.9], patience=2)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3, 4]


@pytest.mark.fault("a gradient that is not finite", "stops with epoch, images, checkpoint and the way out named")
def test_a_gradient_that_is_not_finite_stops_with_the_images_named(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    loader = train_loader(cache, SegmentationTransforms(SIZE), 4, 0, torch.device("cpu"))
    loader.batch_sampler.epoch = 1
    ids = [cache.samples[index].id for index in loader.batch_sampler.indices(2)]
    with pytest.raises(UserError) as error:
        train(run, cache, [0.1, 0.2, 0.3], criterion=NotFiniteOnce(3 + 3))
    message = str(error.value)
    assert message.startswith("the loss or its gradient is not finite in epoch 2: ") and "--on-nan skip" in message
    assert f"{run.path('last.pth')} holds the weights after epoch 1" in message
    assert message.endswith(f"images of this step: {', '.join(ids)}") and len(set(ids)) == 4
    assert load_file(run.path("last.pth"))["progress"]["epoch"] == 1


@pytest.mark.fault("the same with `--on-nan skip`", "the step is left out and counted")
def test_a_gradient_that_is_not_finite_can_be_passed_over(cache, tmp_path, caplog):
    run = Run(tmp_path / "run", {}, resume=True)
    with caplog.at_level("WARNING", "isic2017"):
        trainer = train(run, cache, [0.1, 0.2, 0.3], criterion=NotFiniteOnce(3 + 3), on_nan="skip")
    assert trainer.progress.epoch == 3 and trainer.progress.skipped == 1
    assert "epoch 2: 1 steps left out, their gradient was not finite" in caplog.text
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.model.parameters())
    assert all(np.isfinite(row["train_loss"]) for row in run.history())


class TooLargeOnce(nn.Module):
    """An activation that overflows in one step of training, before a batch norm whose statistics take it in."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x):
        self.calls += self.training
        return x * torch.inf if self.calls == self.step else x


@pytest.mark.fault("an activation that overflows, with `--on-nan skip`", "left out, running statistics stay finite")
def test_running_statistics_survive_a_step_that_is_left_out(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    model = nn.Sequential(TooLargeOnce(3 + 2), *tiny())
    trainer = train(run, cache, [0.1, 0.2, 0.3], model=model, on_nan="skip")
    assert trainer.progress.skipped == 1
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.model.state_dict().values())
    before = train(Run(tmp_path / "whole", {}, resume=True), cache, [0.1, 0.2, 0.3]).model[1].running_mean
    assert torch.allclose(before, trainer.model[2].running_mean, atol=0.1)


class NotANumber(nn.Module):
    """The constant loss 2, but NaN in the given calls."""

    def __init__(self, *calls: int) -> None:
        super().__init__()
        self.calls, self.count = calls, 0

    def forward(self, logits, targets):
        self.count += 1
        return 0 * logits.sum() + (float("nan") if self.count in self.calls else 2.0)


def test_the_mean_loss_is_of_the_steps_that_counted(cache, tmp_path):
    """Three steps an epoch: one left out in the first epoch, all in the second; one later interrupted and continued."""
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1, 0.2, 0.3], criterion=NotANumber(2, 4, 5, 6), on_nan="skip")
    first, second, third = (row["train_loss"] for row in run.history())
    assert first == third == pytest.approx(2) and np.isnan(second)


def test_the_papers_optimizer_leaves_a_first_step_out_as_any_other():
    schedule = Schedule(1, 0.1, 0.0, 9, "sgd")
    model, images, targets = tiny(), torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, 8, 8)
    trainer = Trainer(model, NotANumber(1), schedule, 3, FLOAT32, "skip")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not trainer.step([(images, targets)])[1] and same(before, model.state_dict())
    assert not any(state["momentum_buffer"].any() for state in trainer.optimizer.state.values())


def test_a_checkpoint_without_a_scale_goes_on_with_one(cache, tmp_path):
    """From a machine that trained in bfloat16 to one that has float16 only."""
    run = Run(tmp_path / "run", {}, resume=True)
    trainer = train(run, cache, [0.1])
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    trainer.load_state(load_file(run.path("last.pth")))
    assert trainer.scaler.get_scale() == 2**16


@pytest.mark.fault("in float16, gradients that are finite at no scale", "stops after the epoch with the way out named")
def test_gradients_that_are_finite_at_no_scale_stop_the_run(cache, tmp_path, monkeypatch):
    """The scaler itself leaves such steps out, without a word."""

    class InfiniteGradient(nn.Module):
        def forward(self, logits, targets):
            return (logits - logits.detach()).sum().abs().sqrt()

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler("cpu", init_scale=1e-3))
    run = Run(tmp_path / "run", {}, resume=True)
    with pytest.raises(UserError, match=r"not finite at any scale in epoch 2: start afresh .* weights after epoch 1"):
        train(run, cache, [0.1, 0.2, 0.3], criterion=InfiniteGradient())


def test_one_image_at_a_time_may_be_too_little_for_batch_norm():
    trainer = Trainer(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), *tiny()), nn.CrossEntropyLoss(), Schedule(1, 0.1, 0, 9), 3, FLOAT32
    )
    with pytest.raises(UserError, match="batch norm has nothing to average over in one image"):
        trainer.step([(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.long))])


@pytest.mark.fault("history.csv or best.pth lost before going on", "one line that says so, exit code 2")
@pytest.mark.parametrize("name", ["history.csv", "best.pth"])
def test_a_run_that_lost_a_file_is_not_gone_on_with(cache, tmp_path, name):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.2, 0.1])
    run.path(name).unlink()
    with pytest.raises(UserError, match=r"last.pth is of epoch 2, but history.csv or best.pth is not there or shorter"):
        train(run, cache, [0.2, 0.1, 0.3])


@pytest.mark.fault("a kill after last.pth is written and before best.pth", "best.pth is made again from last.pth")
def test_the_best_weights_of_the_last_epoch_are_made_again(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1, 0.2])
    expected = torch.load(run.path("best.pth"), weights_only=True)
    train(Run(tmp_path / "other", {}, resume=True), cache, [0.1])
    (tmp_path / "other" / "best.pth").replace(run.path("best.pth"))  # of the epoch before
    train(run, cache, [0.1, 0.2])
    made = torch.load(run.path("best.pth"), weights_only=True)
    assert made["progress"] == expected["progress"] and made["progress"]["best_epoch"] == 2
    assert all(torch.equal(tensor, made["model"][name]) for name, tensor in expected["model"].items())


@pytest.mark.fault("a learning rate at which the loss explodes", "stops with epoch, images and the way out named")
def test_a_loss_that_is_not_finite_stops_with_the_way_out(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    with pytest.raises(UserError, match=r"the (loss or .*gradient is|weights are) not finite in epoch \d.*lower --lr"):
        train(run, cache, [0.1, 0.2, 0.3], lr=1e30)


def test_checkpoints_hold_tensors_and_plain_values_only(cache, tmp_path):
    """Old fault: whole models were pickled. `weights_only` refuses every class that is not on torch's short list."""
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1])
    assert torch.load(run.path("best.pth"), weights_only=True)["progress"]["best_epoch"] == 1
    state = torch.load(run.path("last.pth"), weights_only=True)
    assert set(state) == {"model", "optimizer", "scheduler", "scaler", "progress", "random"}


def test_learning_rate_follows_a_half_cosine_to_zero(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1] * 4)
    rates = [row["lr"] for row in run.history()]
    assert rates == pytest.approx([1e-2 * (1 + c) / 2 for c in (1, 2**-0.5, 0, -(2**-0.5))])  # each epoch's first


def test_the_papers_schedule_halves_every_30_epochs():
    """SGD with momentum (Zhang et al. 2019): the rate is the start's for epochs 1 to 30, half of it for 31 to 60 …"""
    schedule = Schedule(100, 0.01, 1e-4, 30, "sgd")
    optimizer, scheduler = schedule.build(tiny(), 5, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.9
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        for _ in range(5):
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx([0.01] * 30 + [0.005] * 30 + [0.0025] * 30 + [0.00125] * 10)


def test_alpha_of_every_block_is_in_the_history(cache, tmp_path):
    model = nets.create_model("arl_unet")
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1], model=model)
    (row,) = run.history()
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [name for name in row if name.startswith("alpha_")] == [f"alpha_encoder.{name}" for name in names]
    for name in names:
        assert row[f"alpha_encoder.{name}"] == model.encoder.get_submodule(name).attention.alpha.item()


def test_a_segmenter_learns(cache, tmp_path):
    """Twelve images by heart: the score on them, over whole frames, must rise far above the start."""
    torch.manual_seed(0)
    model = nets.create_model("res_unet")
    before = score(model, cache, FLOAT32, 4).official()["jaccard"]
    train(Run(tmp_path / "run", {}, resume=True), cache, [0.1] * 12, model=model, lr=2e-3)
    after = score(model, cache, FLOAT32, 4).official()["jaccard"]
    assert after > 0.6 and after > before + 0.2


def test_scoring_is_the_same_every_time_and_counts_every_pixel(cache):
    """Old faults: models were chosen on random crops, and border pixels were never scored."""
    model = nets.create_model("res_unet")
    first, second = (score(model, cache, FLOAT32, batch) for batch in (4, 4))
    assert (first.array() == second.array()).all()
    assert (first.array().sum(axis=1) == 72 * 64).all()


def test_training_runs_on_the_cpu_with_every_loss():
    """Old fault: the Dice loss existed on CUDA only."""
    model = nets.create_model("res_unet")
    logits = model(torch.randn(2, 3, 32, 32))
    for name in ("dice_ce", "focal", "dice_focal", "ce"):
        loss = create_loss(name)(logits, torch.randint(0, 2, (2, 32, 32)))
        assert loss.device.type == "cpu" and torch.isfinite(loss)


def test_bfloat16_agrees_with_float32():
    torch.manual_seed(0)
    model = nets.create_model("res_unet").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        full = model(x)
        with Precision(torch.device("cpu"), torch.bfloat16).autocast():
            half = model(x).float()
    assert (full - half).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(
    "device,amp,message",
    [("cuda:99", "auto", "--device cuda:99"), ("meta", "auto", "--device meta"), ("cpu", "fp16", "--amp fp16")],
)
def test_device_and_precision_that_are_not_there(device, amp, message):
    with pytest.raises(UserError, match=message):
        find_precision(find_device(device), amp)


def test_warnings_stay_on():
    """Old fault: warnings were switched off for the whole program."""
    sources = [path for folder in ("nets", "utils", ".") for path in (ROOT / folder).glob("*.py")]
    assert len(sources) > 15
    for path in sources:
        assert not re.search(r"filterwarnings|simplefilter|PYTHONWARNINGS", path.read_text()), path


class Interrupted:
    """What a checkpoint meets when Ctrl-C comes while it is written."""

    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.fault("Ctrl-C while a checkpoint is written", "the old checkpoint stays")
def test_interrupted_while_it_saves_it_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint({"weight": torch.ones(3)}, path)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"weight": torch.zeros(10_000), "more": Interrupted()}, path)

    def interrupted(state, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch does when it closes its archive

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"weight": torch.zeros(10_000)}, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]
    assert load_file(path)["weight"].tolist() == [1, 1, 1]
