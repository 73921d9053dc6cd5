"""The notebooks as they are used: executed, converted and run as scripts, with other parameters; and what is in git."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import ScriptExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("*.ipynb"))
RUNS = {"ARL-CNN": "model/smoke/cls-2-4/run0", "Segmentation": "model/smoke/seg-2/run0"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that a notebook needs, in a folder where it may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("nets", "utils"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("*.py")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_there_are_the_notebooks():
    assert sorted(RUNS) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_executed_from_top_to_bottom(name, checkout):
    """Without data it draws the sample and says so; figures are shown; the run is left in its folder."""
    notebook = nbformat.read(checkout / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(checkout)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "the embedded sample instead, drawn and not photographed" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not any(output.get("name") == "stderr" and "Warning" in output["text"] for output in outputs)
    assert (checkout / RUNS[name] / "metrics.json").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_converted_and_run_by_plain_python(name, checkout):
    source, _ = ScriptExporter().from_filename(str(checkout / f"{name}.ipynb"))
    assert "get_ipython" not in source
    (checkout / f"{name}.py").write_text(source)
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, f"{name}.py"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (checkout / RUNS[name] / "metrics.json").is_file()


@pytest.mark.parametrize("name,experiment", [("ARL-CNN", "cls-1-2"), ("Segmentation", "seg-4")])
def test_other_parameters_by_papermill(name, experiment, checkout, tmp_path):
    import papermill

    parameters = {"experiment": experiment, "run_id": 3, "output": str(tmp_path / "runs"), "flags": "--epochs 1"}
    papermill.execute_notebook(
        str(checkout / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), parameters, cwd=checkout, progress_bar=False
    )
    run = tmp_path / "runs" / experiment / "run3"
    assert json.loads((run / "config.json").read_text())["settings"]["epochs"] == 1


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
    assert notebook.metadata.language_info.name == "python"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell for cell in code if cell.metadata.get("tags") == ["parameters"]] == code[:1]
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not any(line.lstrip().startswith(("%", "!", "def ", "class ", "display(")) for line in lines)
