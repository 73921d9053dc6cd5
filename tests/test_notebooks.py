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

import cls_main
import seg_main
from utils.notebook import find_data

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("*.ipynb"))
TRAINING = {"ARL-CNN": "model/smoke/cls-2-4/run0", "Segmentation": "model/smoke/seg-2/run0"}
EVALUATION = {
    "Evaluation-Cls": ("model/evaluation/classification", ("melanoma.tex", "roc.pdf", "failures.png", "maps.pdf")),
    "Evaluation-Seg": ("model/evaluation/segmentation", ("official.md", "jaccards.pdf", "failures.png", "pooled.csv")),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that a notebook needs, in a folder where it may write, and finished runs to evaluate."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("nets", "utils"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("*.py")):
        shutil.copy(path, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("utils.notebook.SMOKE", True)
        for script, task, nets in (
            (cls_main, "classification", ("arl14", "resnet14")),
            (seg_main, "segmentation", ("res", "arl")),
        ):
            data, flags = find_data("Data/ISIC2017", task)
            for net in nets:
                script.main(["-n", net, "-i", "5", "--data", str(data), "--cache", "Data/cache", *flags])
    return folder


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")


def test_there_are_the_notebooks():
    assert sorted([*TRAINING, *EVALUATION]) == NOTEBOOKS


def execute(folder: Path, name: str) -> tuple[str, int]:
    """Runs all cells in `folder`; the text they put out, and how many figures."""
    notebook = nbformat.read(folder / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.get("name") == "stderr" and "Warning" in output["text"] for output in outputs)
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", TRAINING)
def test_executed_from_top_to_bottom(name, checkout):
    """Without data it draws the sample and says so; figures are shown; the run is left in its folder."""
    text, figures = execute(checkout, name)
    assert "the embedded sample instead, drawn and not photographed" in text and figures >= 4
    assert (checkout / TRAINING[name] / "metrics.json").is_file()


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_executed_from_top_to_bottom(name, checkout):
    """It shows the runs beside the published numbers and the missing rows, and writes tables and figures."""
    trained = {path: path.stat().st_mtime_ns for path in (checkout / "model" / "smoke").rglob("*")}
    text, figures = execute(checkout, name)
    assert "published (2022, test)" in text and "–" in text and figures >= 4
    folder, files = EVALUATION[name]
    assert all((checkout / folder / file).stat().st_size > 100 for file in files)
    assert trained == {path: path.stat().st_mtime_ns for path in (checkout / "model" / "smoke").rglob("*")}


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_without_runs_shows_the_tables_and_says_what_to_do(name, checkout, tmp_path):
    shutil.copytree(checkout, tmp_path / "new", ignore=shutil.ignore_patterns("model", "Data"))
    with pytest.raises(Exception, match=r"no runs to compare below results model: train some first, python"):
        execute(tmp_path / "new", name)
    assert list((tmp_path / "new" / EVALUATION[name][0]).glob("published.*"))


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
def test_evaluation_of_other_runs_by_papermill(name, checkout, tmp_path):
    import papermill

    parameters = {"runs": "model/smoke", "split": "test", "output": str(tmp_path / "out")}
    papermill.execute_notebook(
        str(checkout / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), parameters, cwd=checkout, progress_bar=False
    )
    assert {Path(file).name for file in EVALUATION[name][1]} <= {path.name for path in (tmp_path / "out").iterdir()}


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
