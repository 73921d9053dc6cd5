"""Steps that are recorded and replayed train as steps that are not; on a CPU a stand-in takes the place of CUDA."""

import copy

import pytest
import torch

from tests.small import Segmenter, a_trainer, same
from utils.device import Precision
from utils.loss import Loss
from utils.model.graphs import WARM_UP, find_record, record
from utils.model.trainer import Schedule, Trainer

CUDA = torch.device("cuda")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_hand(function):
    """Runs the function anew at each replay: on the same buffers, to the same place."""
    results = torch.zeros(()), torch.zeros((), dtype=torch.bool)

    def replay() -> None:
        for kept, new in zip(results, function(), strict=True):
            kept.copy_(new)

    return replay, results


def impossible(function):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def batches(count: int, parts: int = 1, size: int = 8) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, parts, 4, size, size, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 2, (count, parts, 4, size, size), generator=generator)
    return [list(zip(*each, strict=True)) for each in zip(images, targets, strict=True)]


def trained(trainer: Trainer, steps: list, seed: int | None = None) -> list[float]:
    if seed is not None:
        torch.manual_seed(seed)
    trainer.model.train()
    return [float(trainer.step(batch)[0]) for batch in steps]


def near(one: Trainer, other: Trainer) -> bool:
    """Weights, running statistics and the optimizer's state; the replayed step's learning rate is float32."""
    tensors = [[*each.model.state_dict().values()] for each in (one, other)]
    for mine, each in zip(tensors, (one, other), strict=True):
        mine += [value for state in each.optimizer.state.values() for value in state.values()]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*tensors, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("parts", [1, 2])
def test_replayed_steps_are_those_of_the_eager_path(optimizer, parts):
    """Losses, weights, running statistics, learning rate and random state, while the rate falls; micro-batches too."""
    steps, results = batches(9, parts), []
    for recording in (None, by_hand):
        trainer = a_trainer(optimizer=optimizer, record=recording)
        results.append((trainer, trained(trainer, steps, 5), torch.get_rng_state()))
    (eager, losses, random), (replayed, others, same_random) = results
    assert losses == pytest.approx(others, rel=1e-5) and len(set(losses)) == 9
    assert near(eager, replayed) and torch.equal(random, same_random)
    assert eager.scheduler.get_last_lr() == replayed.scheduler.get_last_lr()


@pytest.mark.parametrize("before,after", [(None, by_hand), (by_hand, None), (by_hand, by_hand)])
def test_a_checkpoint_has_no_trace_of_graphs(before, after):
    """Its learning rate is a number, its options are the eager path's, and a run goes on from it with or without."""
    steps, (whole, first), second = batches(9), (a_trainer(record=before) for _ in "ab"), a_trainer(record=after)
    trained(second, steps[4:])  # replays on weights and optimizer state that are replaced below
    losses = trained(whole, steps, 5)
    trained(first, steps[:4], 5)
    first.progress.epoch, first.progress.step = 1, 1
    state = first.state()
    eager = a_trainer().optimizer.state_dict()["param_groups"]
    assert state["optimizer"]["param_groups"] == [eager[0] | {"lr": first.scheduler.get_last_lr()[0]}]
    second.load_state(state)
    assert trained(second, steps[4:]) == pytest.approx(losses[4:], rel=1e-5) and near(whole, second)


def test_replayed_steps_tell_of_gradients_that_are_not_finite():
    trainer = a_trainer(record=by_hand, on_nan="skip")
    steps = batches(WARM_UP + 4)
    trained(trainer, steps[:-2])
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    bias = trainer.model.head.bias
    with torch.no_grad():
        kept = bias.clone()
        bias.fill_(torch.nan)
    loss, finite = trainer.step(steps[-2])
    with torch.no_grad():
        bias.copy_(kept)
    assert not finite and loss.isnan() and same(before, trainer.model.state_dict())
    other_loss, finite = trainer.step(steps[-1])
    assert finite and other_loss.isfinite() and loss.isnan()  # what a step returned stays


def test_steps_that_cannot_be_recorded_run_as_they_are(caplog):
    steps, eager, other = batches(WARM_UP + 2), a_trainer(), a_trainer(record=impossible)
    assert trained(eager, steps, 5) == trained(other, steps, 5)
    assert same(eager.model.state_dict(), other.model.state_dict())
    assert caplog.text.count("which is slower than one CUDA graph: operation not permitted when stream is capt") == 1
    assert "and more" not in caplog.text


@pytest.mark.parametrize("wanted,device,dtype,found,line", [
    (True, "cuda", torch.bfloat16, True, ""), (True, "cuda", None, True, ""), (False, "cuda", None, False, ""),
    (True, "cpu", None, False, ""), (True, "cuda", torch.float16, False, "one CUDA graph: in float16"),
])  # fmt: skip
def test_graphs_are_for_a_single_gpu_without_a_loss_scaler(wanted, device, dtype, found, line, caplog):
    with caplog.at_level("INFO"):
        assert find_record(wanted, Precision(torch.device(device), dtype)) is (record if found else None)
    assert line in caplog.text and bool(line) == bool(caplog.text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_nothing_is_recorded():
    with pytest.raises(RuntimeError):
        record(lambda: ())


@on_a_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_cuda_graph_trains_as_the_eager_path(optimizer, dtype, on_nan):
    """Losses, weights, running statistics; dropout draws the same random numbers; a run goes on from its state."""
    steps, results = batches(9, 2, 32), []
    for recording in (None, record):
        schedule = Schedule(3, 1e-3, 1e-4, 9, optimizer)
        trainer = Trainer(Segmenter(), Loss("dice_ce"), schedule, 3, Precision(CUDA, dtype), on_nan, recording)
        losses = trained(trainer, steps[:6], 5)
        trainer.progress.epoch = 2
        state = copy.deepcopy(trainer.state())
        losses += trained(trainer, steps[6:])
        results.append((trainer, losses, torch.cuda.get_rng_state()))
        trainer.load_state(state)
        assert trained(trainer, steps[6:]) == pytest.approx(losses[6:], rel=1e-3)
    (eager, losses, random), (graphed, others, same_random) = results
    assert losses == pytest.approx(others, rel=1e-3) and torch.equal(random, same_random)
    for a, b in zip(eager.model.state_dict().values(), graphed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
