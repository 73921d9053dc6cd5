"""The notebooks as they are used: executed, converted and run as scripts, with other parameters; and what is in git."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

import cls_main
import seg_main
from tests.conftest import ROOT
from utils.visualize.notebook import find_data

NOTEBOOKS = sorted(path.stem for path in ROOT.glob("*.ipynb"))
TRAINING = {"ARL-CNN": "model/smoke/cls-2-4/run0", "Segmentation": "model/smoke/seg-2/run0"}
EVALUATION = {
    "Evaluation-Cls": ("model/evaluation/classification", ("melanoma.tex", "roc.pdf", "failures.png", "maps.pdf")),
    "Evaluation-Seg": ("model/evaluation/segmentation", ("official.md", "jaccards.pdf", "failures.png", "pooled.csv")),
}


@pytest.fixture(scope="module")
def finished_runs(checkout) -> Path:
    """Of both tasks, of two networks each, below model/smoke of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        patch.setattr("utils.visualize.notebook.SMOKE", True)
        for script, task, nets in (
            (cls_main, "classification", ("arl14", "resnet14")),
            (seg_main, "segmentation", ("res", "arl")),
        ):
            data, flags = find_data("Data/ISIC2017", task)
            for net in nets:
                script.main(["-n", net, "-i", "5", "--data", str(data), "--cache", "Data/cache", *flags])
    return checkout / "model" / "smoke"


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_there_are_the_notebooks():
    assert sorted([*TRAINING, *EVALUATION]) == NOTEBOOKS


def shown(notebook: nbformat.NotebookNode) -> tuple[str, int]:
    """The text that its cells put out, and how many figures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.get("name") == "stderr" and "Warning" in output["text"] for output in outputs)
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def execute(folder: Path, name: str) -> nbformat.NotebookNode:
    """Runs all cells in `folder`."""
    notebook = nbformat.read(folder / f"{name}.ipynb", 4)
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("name", TRAINING)
def test_executed_from_top_to_bottom(name, checkout):
    """Without data it draws the sample and says so; figures are shown; the run is left in its folder."""
    text, figures = shown(execute(checkout, name))
    assert "the embedded sample instead, drawn and not photographed" in text and figures >= 4
    assert (checkout / TRAINING[name] / "metrics.json").is_file()


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_without_runs_shows_the_tables_and_says_what_to_do(name, checkout, tmp_path):
    shutil.copytree(checkout, tmp_path / "new", ignore=shutil.ignore_patterns("model", "Data"))
    with pytest.raises(Exception, match=r"no runs to compare below results model: train some first, python"):
        execute(tmp_path / "new", name)
    assert list((tmp_path / "new" / EVALUATION[name][0]).glob("published.*"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_converted_and_run_by_plain_python(name, checkout, finished_runs):
    convert = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "script", f"{name}.ipynb"]
    subprocess.run(convert, cwd=checkout, capture_output=True, check=True, timeout=60)
    assert "get_ipython" not in (checkout / f"{name}.py").read_text()
    shutil.rmtree(checkout / TRAINING.get(name, "no run of its own"), ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, f"{name}.py"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    if name in TRAINING:
        assert (checkout / TRAINING[name] / "metrics.json").is_file()
    else:
        assert "published (2022, test)" in done.stdout


@pytest.mark.parametrize("name,experiment", [("ARL-CNN", "cls-1-2"), ("Segmentation", "seg-4")])
def test_other_parameters_by_papermill(name, experiment, checkout, tmp_path):
    import papermill

    parameters = {"experiment": experiment, "run_id": 3, "output": str(tmp_path / "runs"), "flags": "--epochs 1"}
    papermill.execute_notebook(
        str(checkout / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), parameters, cwd=checkout, progress_bar=False
    )
    run = tmp_path / "runs" / experiment / "run3"
    assert json.loads((run / "config.json").read_text())["settings"]["epochs"] == 1


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_of_other_runs_by_papermill(name, checkout, finished_runs, tmp_path):
    """It shows runs, published numbers and missing rows, writes tables and figures, and changes no run."""
    import papermill

    before = {path: path.stat().st_mtime_ns for path in finished_runs.rglob("*")}
    parameters = {"runs": str(finished_runs), "split": "test", "output": str(tmp_path / "out")}
    notebook = papermill.execute_notebook(
        str(checkout / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), parameters, cwd=checkout, progress_bar=False
    )
    text, figures = shown(notebook)
    assert "published (2022, test)" in text and "–" in text and figures >= 4
    assert all((tmp_path / "out" / file).stat().st_size > 100 for file in EVALUATION[name][1])
    assert before == {path: path.stat().st_mtime_ns for path in finished_runs.rglob("*")}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_started_elsewhere_it_says_where_to_start(name, tmp_path):
    notebook = nbformat.read(ROOT / f"{name}.ipynb", 4)
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(Exception, match=r"is not the repository's root: start Jupyter there"):
        client.execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_in_git(name):
    """No outputs, one parameters cell, a kernel that any machine has, no magics."""
    notebook = nbformat.read(ROOT / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = notebook.metadata.language_info
    assert (language.name, language.file_extension, language.nbconvert_exporter) == ("python", ".py", "python")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell for cell in code if cell.metadata.get("tags") == ["parameters"]] == code[:1]
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not any(line.lstrip().startswith(("%", "!", "def ", "class ", "display(")) for line in lines)


# --- interrupted ----------------------------------------------------------------------------------------------------

Kernel = tuple[KernelManager, BlockingKernelClient]
SECONDS = 120  # for a cell, on a busy machine


@pytest.fixture
def kernel(checkout) -> Iterator[Kernel]:
    manager, client = start_new_kernel(startup_timeout=60, cwd=str(checkout))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def epochs(run: Path) -> list[int]:
    """Those in the run's history."""
    lines = (run / "history.csv").read_text().splitlines()
    return [int(float(line.split(",")[0])) for line in lines[1:]]


def run_until(kernel: Kernel, source: str, text: str | None = None) -> tuple[str, str]:
    """Run a cell and interrupt it when it has printed `text`; all that it has printed, and its error's name or ""."""
    manager, client = kernel
    message = client.execute(source, stop_on_error=False)  # else the kernel drops what comes right after the error
    printed, error, again, end = "", "", 0.0, time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < end, f"still running after {SECONDS} s: {printed}"
        answer = client.get_iopub_msg(timeout=SECONDS)
        kind, content = answer["msg_type"], answer["content"]
        if answer["parent_header"].get("msg_id") != message:
            continue
        if kind == "stream":
            printed += content["text"]
        elif kind == "error":
            error = content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return printed, error
        if text and text in printed and time.monotonic() > again:
            again = time.monotonic() + 10  # an interruption within a finalizer or a callback is lost
            manager.interrupt_kernel()


@pytest.mark.parametrize("name", TRAINING)
def test_interrupted_training_goes_on_when_its_cell_runs_again(name, kernel, checkout):
    run = (checkout / TRAINING[name]).with_name("run9")
    cells = [cell.source for cell in nbformat.read(ROOT / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    command = next(index for index, source in enumerate(cells) if "command = [" in source)
    training = next(source for source in cells if "train(" in source and "command" in source)
    for source in (cells[0], 'run_id, flags = 9, "--epochs 500 --patience 500"', *cells[1 : command + 1]):
        assert run_until(kernel, source)[1] == ""

    _, error = run_until(kernel, training, "epoch 2/500  ")
    assert error == "Stopped"
    assert epochs(run)[:2] == [1, 2]
    printed, error = run_until(kernel, training, f"epoch {len(epochs(run)) + 1}/500  ")
    assert error == "Stopped"
    after = int(re.search(r"continuing .* after epoch (\d+)", printed).group(1))
    assert after >= 2
    assert int(re.search(r"epoch (\d+)/500  ", printed).group(1)) == after + 1
    assert epochs(run) == list(range(1, len(epochs(run)) + 1))
