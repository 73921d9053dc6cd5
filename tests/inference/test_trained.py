"""Networks of finished runs: their released weights, and runs that do not tell how to predict."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import nets
from tests.small import CPU
from utils import UserError
from utils.evaluation.runs import RunResult
from utils.inference.trained import RELEASED, load_network, write_released

SETTINGS = {
    "segmentation": {"net": "mobilenet_unet", "size": [32, 32], "batch_size": 4},
    "classification": {"net": "arl14", "size": [32, 32], "batch_size": 4, "train_views": "frame"},
}
SCORED = {"views": "1", "flips": True}


def finished(folder: Path, task: str, changed: dict[str, Any] | None = None) -> RunResult:
    """A run with these settings or metrics changed; those that are None are not there."""
    settings, metrics = ({**part, **(changed or {})} for part in (SETTINGS[task], SCORED))
    settings, metrics = ({k: v for k, v in part.items() if v is not None} for part in (settings, metrics))
    return RunResult(folder, "row", task, settings, metrics)


def test_vectors_and_numbers_stay_as_they_are(tmp_path):
    """Matrices and kernels lose half of their digits."""
    model = nets.create_model("mobilenet_unet")
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_released(model, tmp_path / RELEASED)
    state = load_network(finished(tmp_path, "segmentation"), CPU).state_dict()
    assert state.keys() == exact.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, exact[name].half().float() if tensor.ndim > 1 else exact[name])


def test_another_networks_weights_are_refused(tmp_path):
    path = tmp_path / RELEASED
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=f"^{path}: .*Missing key[^\n]*$"):
        load_network(finished(tmp_path, "segmentation"), CPU)


@pytest.mark.parametrize(
    ("task", "changed"),
    [
        ("segmentation", {"net": "res_unet", "attention": "spatial"}),
        ("classification", {"net": "segmenter"}),
        ("classification", {"batch_size": None}),
        ("classification", {"train_views": "all"}),
        ("classification", {"views": "center9"}),  # of an earlier version
        ("classification", {"flips": None}),
    ],
)
def test_a_run_of_another_program_does_not_predict(task, changed, tmp_path):
    (tmp_path / RELEASED).touch()
    with pytest.raises(UserError, match=r"json: damaged, or of another version \(.+\)") as error:
        load_network(finished(tmp_path, task, changed), CPU)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
