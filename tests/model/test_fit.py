"""The training of a run: its best weights, going on where it stopped, its history, and how long it will take."""

import logging
import math
import multiprocessing
import time

import pytest
import torch
from torch import nn

from nets.arl import ARLAttention
from nets.arl_unet import arl_unet
from tests.model.test_trainer import FaultyLoss
from tests.small import CPU, FLOAT32, SIZE, Segmenter, Stopped, a_trainer, same, steady, train
from utils import UserError
from utils.data.loader import train_loader
from utils.data.transforms import SegmentationTransforms
from utils.device import Precision
from utils.evaluation.segmentation import official_scores
from utils.inference.segmentation import score
from utils.logger import readable_time
from utils.loss import Loss
from utils.model.checkpoints import load_best
from utils.model.fit import Clock, alphas
from utils.model.run import Run
from utils.model.trainer import Progress, Schedule, Trainer
from utils.model.weights import load_file

TRANSFORMS = SegmentationTransforms(SIZE)


def test_the_best_weights_are_kept_and_loaded_not_the_last(cache, tmp_path):
    """Old fault: the last weights were scored."""
    with pytest.raises(Stopped):
        train(Run(tmp_path / "a", {}, resume=True), cache, [0.1, 0.9, Stopped, 0.2])
    after_two_epochs = load_file(tmp_path / "a/last.pth")["model"]
    run = Run(tmp_path / "b", {}, resume=True)
    trainer, model = train(run, cache, [0.1, 0.9, 0.3, 0.2]), Segmenter()
    assert load_best(model, run.folder) == 2
    assert same(model.state_dict(), after_two_epochs) and not same(after_two_epochs, trainer.model.state_dict())


@pytest.mark.parametrize("stop_in_epoch", [1, 3, 5])
def test_a_continued_run_equals_one_that_never_stopped(cache, tmp_path, stop_in_epoch):
    """Old fault: the restored optimizer no longer drove the model. Bit for bit: weights, moments, schedule, history."""
    scores = [0.1, 0.4, 0.3, 0.5, 0.2]
    whole, cut = Run(tmp_path / "whole", {}, resume=True), Run(tmp_path / "cut", {}, resume=True)
    train(whole, cache, scores)
    with pytest.raises(Stopped):
        stopped = [Stopped if epoch == stop_in_epoch else s for epoch, s in enumerate(scores, start=1)]
        train(cut, cache, stopped)
    torch.randn(7)  # whatever the process does in between
    train(cut, cache, scores)
    for name in ("last.pth", "best.pth"):
        a, b = (load_file(run.path(name)) for run in (whole, cut))
        assert same(a["model"], b["model"]) and a["progress"] == b["progress"]
    a, b = (load_file(run.path("last.pth")) for run in (whole, cut))
    assert len(a["optimizer"]["state"]) == 6 and a["scheduler"] == b["scheduler"]
    assert all(same(moments, b["optimizer"]["state"][key]) for key, moments in a["optimizer"]["state"].items())
    assert steady(whole.history()) == steady(cut.history()) and len(cut.history()) == 5


def test_early_stop_counts_from_the_best_epoch(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1, 0.5, 0.5, 0.4, 0.9], patience=2)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3, 4]


def test_a_loader_process_that_dies_is_one_line(cache, tmp_path, monkeypatch):
    def kill_worker():
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()

    monkeypatch.setattr(Segmenter, "at", {2: kill_worker})
    with pytest.raises(UserError, match=r"^a loader process failed \(DataLoader worker .*: take fewer --workers"):
        train(Run(tmp_path / "run", {}, resume=True), cache, [0.1] * 9, workers=1)


def test_a_gradient_that_is_not_finite_stops_with_the_images_named(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    loader = train_loader(cache, TRANSFORMS, 4, 0, CPU)
    loader.batch_sampler.epoch = 1
    ids = [cache.samples[index].id for index in loader.batch_sampler.indices(2)]
    with pytest.raises(UserError) as error:
        train(run, cache, [0.1, 0.2, 0.3], criterion=FaultyLoss(3 + 3, gradient=True))
    message = str(error.value)
    assert message.startswith("the loss or its gradient is not finite in epoch 2: ") and "--on-nan skip" in message
    assert f"{run.path('last.pth')} holds the weights after epoch 1" in message
    assert message.endswith(f"images of this step: {', '.join(ids)}") and len(set(ids)) == 4
    assert load_file(run.path("last.pth"))["progress"]["epoch"] == 1


def test_steps_that_are_left_out_are_told_and_do_not_count_in_the_mean_loss(cache, tmp_path, caplog):
    """Three steps an epoch: one left out in the first epoch, all in the second."""
    run = Run(tmp_path / "run", {}, resume=True)
    with caplog.at_level(logging.WARNING, "isic2017"):
        trainer = train(run, cache, [0.1, 0.2, 0.3], criterion=FaultyLoss(2, 4, 5, 6), on_nan="skip")
    first, second, third = (row["train_loss"] for row in run.history())
    assert first == third == pytest.approx(2) and math.isnan(second) and trainer.progress.skipped == 4
    assert "epoch 1: 1 steps skipped, their loss or gradient was not finite" in caplog.text


def test_a_loss_that_explodes_stops_with_the_way_out(cache, tmp_path):
    run = Run(tmp_path / "run", {}, resume=True)
    with pytest.raises(UserError, match=r"(gradient is|statistics are) not finite in epoch \d.*with a lower --lr"):
        train(run, cache, [0.1, 0.2, 0.3], lr=1e30)


def test_gradients_that_are_finite_at_no_scale_stop_the_run(cache, tmp_path, monkeypatch):
    """In float16, whose scaler leaves such steps out without a word. A CPU's is otherwise switched off."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler("cpu", init_scale=1e-3))
    run, loss = Run(tmp_path / "run", {}, resume=True), FaultyLoss(*range(1, 10), gradient=True)
    with pytest.raises(UserError, match=r"not finite at any scale in epoch 2: start afresh .* weights after epoch 1"):
        train(run, cache, [0.1, 0.2, 0.3], criterion=loss)


def test_alpha_of_every_arl_block_is_in_the_history(cache, tmp_path):
    class Attentive(Segmenter):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.ModuleList([ARLAttention("spatial", "learn") for _ in range(2)])
            self.layer1[1].alpha.data.fill_(0.25)

    assert alphas(Segmenter()) == {}
    run = Run(tmp_path / "run", {}, resume=True)
    train(run, cache, [0.1], model=Attentive())
    told = {name: value for name, value in run.history()[0].items() if name.startswith("alpha")}
    assert told == {"alpha_layer1.0": pytest.approx(0.001), "alpha_layer1.1": 0.25}


def test_a_segmenter_learns(cache, tmp_path):
    """A bright lesion on darker skin, by heart: the score, over whole frames, must rise far above the start."""
    model = Segmenter()
    before = official_scores([*score(model, cache, FLOAT32, 4).values()])["jaccard"]
    train(Run(tmp_path / "run", {}, resume=True), cache, [0.1] * 25, model=model, lr=3e-2)
    after = official_scores([*score(model, cache, FLOAT32, 4).values()])["jaccard"]
    assert after > before + 0.25


def test_bfloat16_and_the_compiled_function_learn_as_float32_does(cache):
    """The epochs' losses differ by up to 3 % here; another processor rounds in other places."""
    losses = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        model, loader = arl_unet(decoder_channels=(64, 32, 16, 16)), train_loader(cache, TRANSFORMS, 6, 0, CPU)
        trainer = Trainer(model, Loss("dice_ce"), Schedule(3, 1e-3, 1e-4, 9), 2, Precision(CPU, dtype))
        losses.append([])
        for epoch in range(3):
            trainer.progress = Progress(epoch)
            losses[-1].append(trainer.train_one_epoch(loader))
    plain, fast = losses
    assert fast == pytest.approx(plain, rel=0.1) and fast != plain and plain[-1] < 0.9 * plain[0]


def test_scoring_is_the_same_every_time_and_counts_every_pixel(cache):
    """Old faults: models were chosen on random crops, and border pixels were never scored."""
    first, second = (score(Segmenter(), cache, FLOAT32, 4) for _ in range(2))
    assert first == second and {sum(counts) for counts in first.values()} == {72 * 64}


def test_a_clock_tells_once_by_the_first_steps_and_then_by_the_epochs(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO, "isic2017")
    trainer = a_trainer(20, epochs=6)
    trainer.progress.epoch, trainer.progress.step = 2, 4  # of a run that goes on
    clock = Clock(trainer)
    for seconds in (60, 1, 1, 1, 1, 1, 1, 1):  # the first one warms up
        now[0] += seconds
        trainer.progress.step += 1
        clock.step()
    assert caplog.messages == [
        "training takes about 70 s: 70 steps (4 epochs) of 1 s each, and validation after each epoch"
    ]
    for epoch, left in ((3, "about 5 min left"), (4, "about 3 min left"), (6, "")):
        trainer.progress.epoch, now[0] = epoch, 100 + 100 * (epoch - 2)
        assert clock.left() == left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (90_000, "25 h 0 min")],
)
def test_times_are_readable(seconds, text):
    assert readable_time(seconds) == text
