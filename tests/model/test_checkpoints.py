"""Checkpoints: whole at any moment, plain, and refused with a line where they hold something else."""

import resource
import shutil

import pytest
import torch
from torch import nn

from tests.small import Segmenter, exit_code, train
from utils import UserError
from utils.model.checkpoints import load_best, save_checkpoint
from utils.model.run import Run
from utils.model.weights import load_file


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """The folder of a run of one epoch."""
    with Run(tmp_path_factory.mktemp("trained") / "run", {}, resume=True) as run:
        train(run, cache, [0.1])
    return run.folder


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy of it, open."""
    return Run(shutil.copytree(trained, tmp_path / "run"), {}, resume=True)


def test_checkpoints_hold_tensors_and_plain_values_only(run):
    """Old fault: whole models were pickled. `weights_only` refuses every class that is not on torch's short list."""
    assert torch.load(run.path("best.pth"), weights_only=True)["progress"]["best_epoch"] == 1
    state = torch.load(run.path("last.pth"), weights_only=True)
    assert set(state) == {"model", "optimizer", "scheduler", "scaler", "progress", "random"}


def later_epoch(state):
    state["progress"]["epoch"], state["scheduler"]["last_epoch"] = 3, 9


def more_steps(state):
    state["progress"]["epoch"], state["progress"]["step"], state["progress"]["best_epoch"] = 0, 4, 0
    state["scheduler"]["last_epoch"] = 4


CHANGED = {
    "another network's weights": lambda state: state.update(model=nn.Linear(2, 2).state_dict()),
    "no optimizer": lambda state: state.pop("optimizer"),
    "progress of another kind": lambda state: state.update(progress={"epochs": 3}),
    "a later epoch of a longer schedule": later_epoch,
    "more steps than an epoch has": more_steps,
    "a random state that is none": lambda state: state["random"].update(torch=torch.ones(3)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_checkpoint_of_something_else_is_refused(run, cache, name):
    state = load_file(run.path("last.pth"))
    CHANGED[name](state)
    save_checkpoint(state, run.path("last.pth"))
    with pytest.raises(UserError, match=r"last\.pth: damaged, or of another version \(.+\); start afresh with -c 0"):
        train(run, cache, [0.1, 0.2])


def test_the_optimizers_options_are_those_of_this_device(run, cache):
    """Whatever the file says: a run may have begun on another kind of device."""
    state = load_file(run.path("last.pth"))
    state["optimizer"]["param_groups"][0].update(betas="x", fused=None)
    save_checkpoint(state, run.path("last.pth"))
    options = train(run, cache, [0.1, 0.2]).optimizer.param_groups[0]
    assert options["betas"] == (0.9, 0.999) and options["fused"] is True


def test_a_checkpoint_without_a_scale_goes_on_with_one(run, cache):
    """From a machine that trained in bfloat16 to one that has float16 only."""
    trainer = train(run, cache, [0.1])
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    trainer.load_state(load_file(run.path("last.pth")))
    assert trainer.scaler.get_scale() == 2**16


def test_best_weights_of_something_else_are_refused(tmp_path):
    save_checkpoint({"model": nn.Linear(2, 2).state_dict(), "progress": {}}, tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"best\.pth: damaged, or of another version \(.+\); start afresh with -c 0"):
        load_best(Segmenter(), tmp_path)


def test_a_checkpoint_cut_short_is_refused(run, cache):
    content = run.path("last.pth").read_bytes()
    run.path("last.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"last\.pth: truncated, or not a PyTorch file of plain weights"):
        train(run, cache, [0.1, 0.2])


@pytest.mark.parametrize("name", ["history.csv", "best.pth"])
def test_a_run_that_lost_a_file_is_not_gone_on_with(run, cache, name):
    train(run, cache, [0.1, 0.05])  # the best weights are no longer those of last.pth
    run.path(name).unlink()
    with pytest.raises(UserError, match=r"last.pth is of epoch 2, but history.csv or best.pth is missing or has fewer"):
        train(run, cache, [0.1, 0.05, 0.2])


def test_the_best_weights_of_the_last_epoch_are_made_again(run, cache):
    """After a kill between last.pth and best.pth, which is still of the epoch before."""
    before = run.path("best.pth").read_bytes()
    train(run, cache, [0.1, 0.2])
    expected = load_file(run.path("best.pth"))
    run.path("best.pth").write_bytes(before)
    train(run, cache, [0.1, 0.2])
    made = load_file(run.path("best.pth"))
    assert made["progress"] == expected["progress"] and made["progress"]["best_epoch"] == 2
    assert all(torch.equal(tensor, made["model"][name]) for name, tensor in expected["model"].items())


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(tmp_path, capsys):
    """A limit on the size of files stands for it."""
    path, before = tmp_path / "last.pth", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint({"weight": torch.ones(3)}, path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        assert exit_code(lambda: save_checkpoint({"weight": torch.zeros(1_000_000)}, path)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = f"error: {path}: File too large; make room, and the same command (without -c 0) goes on\n"
    assert capsys.readouterr().err == line
    assert [each.name for each in tmp_path.iterdir()] == ["last.pth"]
    assert load_file(path)["weight"].tolist() == [1, 1, 1]
