"""The notebooks as they are used: executed with other parameters, converted and run as scripts; and what is in git."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbformat import NotebookNode

from tests.conftest import ROOT
from utils import UserError
from utils.config import configure
from utils.evaluation.export import Score, as_text
from utils.tasks import train
from utils.visualize.notebook import find_data, folders, ranked

EVALUATION = {
    "Evaluation-Cls": ("classification", ("scores.tex", "roc.pdf", "failures.png", "maps.pdf")),
    "Evaluation-Seg": ("segmentation", ("official.md", "jaccards.pdf", "failures.png", "pooled.csv")),
}
NOTEBOOKS = ["ARL-CNN", "Segmentation", *EVALUATION]


@pytest.fixture(scope="module", autouse=True)
def smoke() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOKE", "1")
        patch.setenv("MPLBACKEND", "agg")
        patch.delenv("DISPLAY", raising=False)
        yield


def execute(checkout: Path, name: str, parameters: dict) -> tuple[str, int]:
    """All cells, from top to bottom; the text that they put out, and how many figures."""
    files = checkout / f"{name}.ipynb", checkout / f"{name}-executed.ipynb"
    notebook = papermill.execute_notebook(*map(str, files), parameters, cwd=checkout, progress_bar=False)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.get("name") == "stderr" and "Warning" in output["text"] for output in outputs)
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))  # saved, they show errors
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs)
    return text, sum({"image/png", "image/jpeg"} & {*output.get("data", {})} != set() for output in outputs)


def run_script(folder: Path, name: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"{name}.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def converted(checkout) -> Path:
    """A folder with the scripts that the notebooks become."""
    convert = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "script"]
    subprocess.run([*convert, *(f"{name}.ipynb" for name in NOTEBOOKS)], cwd=checkout, check=True, timeout=120)
    return checkout


@pytest.fixture(scope="module")
def script(converted) -> subprocess.CompletedProcess:
    """ARL-CNN as a script, as it is."""
    return run_script(converted, "ARL-CNN")


@pytest.fixture(scope="module")
def segmentation(checkout) -> tuple[str, int]:
    """Segmentation as a notebook, with other parameters."""
    flags = f"--epochs 1 --size 32 32 --cache '{checkout / 'My Drive' / 'cache'}'"
    return execute(checkout, "Segmentation", {"experiment": "seg-b1", "run_id": 3, "flags": flags})


@pytest.fixture(scope="module")
def runs(script, segmentation, undrawn, checkout) -> Path:
    """The runs of both, and another one of each task."""
    for task, net in (("classification", "resnet14"), ("segmentation", "res_unet")):
        where = {"data": checkout / "Data/synthetic_smoke", "output": checkout / "model/smoke", "cache": checkout}
        quick = {"size": (32, 32), "epochs": 1, "batch_size": 8, "pretrained": False}
        train(configure(task=task, net=net, **where, **quick))
    return checkout / "model" / "smoke"


def test_a_training_notebook_converted_and_run_by_plain_python(script, checkout):
    assert script.returncode == 0, script.stderr
    assert "synthetic data instead, drawn and not photographed" in script.stdout
    assert (checkout / "model/smoke/cls-2-4/run0/metrics.json").is_file()


def test_a_training_notebook_with_other_parameters(segmentation, checkout):
    """Without data it draws some and says so; figures are shown; the run is left in its folder."""
    text, figures = segmentation
    assert "synthetic data instead, drawn and not photographed" in text and figures >= 4
    run = checkout / "model/smoke/seg-b1/run3"
    assert json.loads((run / "config.json").read_text())["settings"]["epochs"] == 1
    assert (run / "metrics.json").is_file() and list((checkout / "My Drive" / "cache").glob("*.npy"))


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_of_other_runs(name, runs, checkout, tmp_path):
    """It shows runs and published numbers, writes tables and figures, and changes no run."""
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    (tmp_path / "My Drive").symlink_to(runs)
    parameters = {"runs": str(tmp_path / "My Drive"), "split": "test", "output": str(tmp_path / "out")}
    text, figures = execute(checkout, name, parameters)
    published, _, ours = text.partition("runs scored on")
    assert "ISIC 2017 challenge" in published and ": less " in ours and "seg-1" not in ours and figures >= 4
    assert all((tmp_path / "out" / file).stat().st_size > 100 for file in EVALUATION[name][1])
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}


@pytest.mark.parametrize(
    "text,expected",
    [
        ("results model", ["results", "model"]),
        ("My Drive/runs", ["My Drive/runs"]),  # a folder that is there
        ("'My Drive/runs' results", ["My Drive/runs", "results"]),
        ('results "other drive"', ["results", "other drive"]),
    ],
)
def test_names_of_folders_may_have_spaces(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Drive" / "runs").mkdir(parents=True)
    assert folders(text) == expected


def test_a_folder_of_ones_own_is_not_replaced_by_drawn_images(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"a folder of one's own; python seg_main\.py --data"):
        find_data(tmp_path, "segmentation")


def test_rows_are_ranked_with_their_difference_from_the_best_that_is_compared():
    """An ensemble may be first, and has none: it is made of another row's runs."""
    scores = [Score(mean, None, (mean - 0.1, mean + 0.1)) for mean in (0.7, 0.9, 0.8, math.nan)]
    table = pd.DataFrame({"experiment": list("xzx"), "seeds": [1, 2, 3], "jaccard": scores[:3], "note": ""})
    pairs = pd.DataFrame([("a", "b", 150, -0.1, -0.2, 0.05, 0.3)])
    pairs.columns = ["first", "second", "images", "difference", "low", "high", "p"]
    shown = as_text(ranked(table, ["a", "c-ensemble", "b"], "jaccard", {"jaccard": pairs}))
    assert list(shown) == ["row", "Jaccard", "Jaccard: less b", "seeds"]
    assert list(shown["row"]) == ["c-ensemble", "b", "a"] and list(shown["seeds"]) == ["2", "3", "1"]
    assert list(shown["Jaccard: less b"]) == ["–", "–", "-.100 [-.200, .050]"]
    table["jaccard"] = [scores[2], scores[3], scores[0]]
    worse = ranked(table, ["a", "b", "c"], "jaccard", {"jaccard": pairs})
    assert list(as_text(worse)["Jaccard: less a"]) == ["–", "–", ".100 [-.050, .200]"]  # the undefined last


def test_evaluation_without_runs_shows_the_tables_and_says_what_to_do(converted, tmp_path):
    """As a script; as notebooks they are executed above."""
    for folder in ("nets", "utils"):
        shutil.copytree(converted / folder, tmp_path / folder)
    shutil.copy(converted / "Evaluation-Cls.py", tmp_path)
    done = run_script(tmp_path, "Evaluation-Cls")
    assert done.returncode == 1 and "ISIC 2017 challenge" in done.stdout
    assert "no runs with validation scores to compare below results model: train some, python" in done.stderr
    assert list((tmp_path / "model" / "evaluation" / "classification").glob("published.*"))


def code_of(name: str) -> list[NotebookNode]:
    notebook = nbformat.read(ROOT / f"{name}.ipynb", 4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_started_elsewhere_it_says_where_to_start(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"is not the repository's root: start Jupyter there"):
        for cell in code_of(name):
            exec(cell.source, {})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_in_git(name, converted):
    """No outputs, one parameters cell, a kernel that any machine has, no magics."""
    notebook, code = nbformat.read(ROOT / f"{name}.ipynb", 4), code_of(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = notebook.metadata.language_info
    assert (language.name, language.file_extension, language.nbconvert_exporter) == ("python", ".py", "python")
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell for cell in code if cell.metadata.get("tags") == ["parameters"]] == code[:1]
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not any(line.lstrip().startswith(("%", "!", "def ", "class ", "display(")) for line in lines)
    assert "get_ipython" not in (converted / f"{name}.py").read_text()


@pytest.fixture
def kernel(checkout) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(startup_timeout=60, cwd=str(checkout))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_until(kernel: tuple, source: str, text: str | None = None) -> tuple[str, str]:
    """Run a cell and interrupt it when it has printed `text`; all that it has printed, and its error's name or ""."""
    manager, client = kernel
    printed, again = [], [0.0]

    def receive(message: dict) -> None:
        printed.append(message["content"].get("text", ""))
        if text and text in "".join(printed) and time.monotonic() > again[-1]:
            again.append(time.monotonic() + 10)  # an interruption within a finalizer or a callback is lost
            manager.interrupt_kernel()

    # Unless told so, the kernel drops what comes right after the error.
    answer = client.execute_interactive(source, output_hook=receive, stop_on_error=False, timeout=120)
    return "".join(printed), answer["content"].get("ename", "")


def epochs(run: Path) -> list[int]:
    """Those in the run's history."""
    return [int(line.partition(",")[0]) for line in (run / "history.csv").read_text().splitlines()[1:]]


def test_interrupted_training_goes_on_when_its_cell_runs_again(kernel, checkout):
    parameters, imports, settings, *rest = [cell.source for cell in code_of("ARL-CNN")]
    (training,) = (source for source in rest if "train(config)" in source)
    own = 'experiment, run_id, flags = "cls-b1", 9, "--epochs 500 --patience 500"'
    for source in (parameters, own, imports, settings):
        assert run_until(kernel, source)[1] == ""

    run = checkout / "model" / "smoke" / "cls-b1" / "run9"
    _, error = run_until(kernel, training, "epoch 2/500  ")
    assert error == "StopRequested" and epochs(run)[:2] == [1, 2]
    printed, error = run_until(kernel, training, f"epoch {len(epochs(run)) + 1}/500  ")
    assert error == "StopRequested"
    after = int(re.search(r"continuing .* after epoch (\d+)", printed).group(1))
    assert after >= 2 and int(re.search(r"epoch (\d+)/500  ", printed).group(1)) == after + 1
    assert epochs(run) == list(range(1, len(epochs(run)) + 1))
