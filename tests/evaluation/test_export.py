"""Tables as text and files, and the results section of README.md."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_runs import example_results, segmentation_run
from utils import UserError
from utils.evaluation import tables
from utils.evaluation.export import END, START, export_table, main, results_section, to_csv, to_latex, to_markdown
from utils.evaluation.runs import find_runs
from utils.evaluation.tables import Score, published_table, segmentation_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return example_results(tmp_path_factory.mktemp("project") / "results")


TABLE = pd.DataFrame(
    {
        "a_b": ["x|y", "50 % & more", "–"],
        "score": [Score(0.5, 0.01, (0.4, 0.6)), Score(), Score(0.25, None, (-0.001, 0.3))],
        "p (Holm)": [0.0001, 0.02, 1.0],
        "difference": [-0.0001, -0.25, 10.5],
        "published (test) x": [0.8924, 0.76, math.nan],
        "n": [1, 20, 3],
        "size": ["3×4", "a\\b", "{c}"],
    }
)


def test_markdown():
    assert to_markdown(TABLE) == (
        "| a_b | score | p (Holm) | difference | published (test) x | n | size |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| x\\|y | .500 ± .010 [.400, .600] | <.001 | .000 | .8924 | 1 | 3×4 |\n"
        "| 50 % & more | – | .020 | -.250 | .7600 | 20 | a\\b |\n"
        "| – | .250 [-.001, .300] | 1.000 | 10.500 | – | 3 | {c} |\n"
    )


def test_latex():
    assert to_latex(TABLE) == "\n".join(
        [
            r"\begin{tabular}{lllllll}",
            r"\hline",
            r"a\_b & score & p (Holm) & difference & published (test) x & n & size \\",
            r"\hline",
            r"x|y & .500 $\pm$ .010 [.400, .600] & $<$.001 & .000 & .8924 & 1 & 3$\times$4 \\",
            r"50 \% \& more & -- & .020 & -.250 & .7600 & 20 & a\textbackslash{}b \\",
            r"-- & .250 [-.001, .300] & 1.000 & 10.500 & -- & 3 & \{c\} \\",
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def test_csv_has_numbers_in_full(folder):
    lines = to_csv(TABLE).splitlines()
    assert lines[0] == "a_b,score,score std,score low,score high,p (Holm),difference,published (test) x,n,size"
    assert lines[1] == "x|y,0.5,0.01,0.4,0.6,0.0001,-0.0001,0.8924,1,3×4"
    assert lines[2] == "50 % & more,,,,,0.02,-0.25,0.76,20,a\\b"
    assert lines[3] == "–,0.25,,-0.001,0.3,1.0,10.5,,3,{c}"


def test_a_table_becomes_three_files(folder, tmp_path):
    table = segmentation_table(find_runs(folder), "test")
    paths = export_table(table, tmp_path / "new" / "folder", "official")
    assert [path.name for path in paths] == ["official.csv", "official.md", "official.tex"]
    assert [path.read_bytes().decode() for path in paths] == [to_csv(table), to_markdown(table), to_latex(table)]
    read = pd.read_csv(paths[0])
    of_seeds = [run.metrics["test"]["official"]["jaccard"] for run in find_runs(folder / "seg-4")]
    line = read[read["experiment"] == "seg-4"].iloc[0]
    assert line["jaccard"] == np.mean(of_seeds) and line["jaccard std"] == np.std(of_seeds, ddof=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"tables cannot be written there .* choose another"):
        export_table(table, tmp_path / "file", "official")


# --- README.md ----------------------------------------------------------------------------------------------------


@pytest.fixture
def readme(tmp_path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe end – π.\n", encoding="utf-8")
    return path


def call(readme, results, *flags) -> None:
    main(["--readme", str(readme), "--results", str(results), *flags])


def test_the_section_is_written_between_the_markers(folder, readme):
    call(readme, folder)
    text = readme.read_bytes().decode()
    before, rest = text.split(START)
    section, after = rest.split(END)
    assert (before, after) == ("# Title\n\n", "\n\nThe end – π.\n") and section.startswith("\n\nScore: ")
    runs = find_runs(folder)
    lines = to_markdown(segmentation_table(runs, "test")).splitlines()
    assert lines[0] in text and lines[1] in text and lines[2].replace("| 0 |", "| – |") in text
    jaccard = str(segmentation_table(runs, "validation").set_index("experiment").loc["seg-4", "jaccard"])
    assert f"| {jaccard} |" in text and "±" in jaccard
    assert to_markdown(published_table("classification")) in text
    assert "### Segmentation, test: all pixels pooled\n\n| experiment" in text
    titles = [line for line in text.splitlines() if line.startswith("### Classification")]
    assert titles == [
        f"### Classification, {split}: {task}"
        for split in ("test", "validation")
        for task in ("melanoma (MEL)", "seborrheic keratosis (SK)")
    ] + ["### Classification: published by others"]
    of_melanoma = text.split(titles[0])[1].split(titles[1])[0]
    assert "| MEL AUC |" in of_melanoma and "| mean AUC |" in of_melanoma and "SK" not in of_melanoma


def test_every_number_leads_to_its_runs(tmp_path):
    segmentation_run(tmp_path / "results/seg-4/seed0")
    segmentation_run(tmp_path / "results/seg-4/seed3", seed=3)
    section = results_section(tmp_path / "results", tmp_path)
    assert "| [0](results/seg-4/seed0) [3](results/seg-4/seed3) |" in section
    assert "](../results/seg-4/seed0)" in results_section(tmp_path / "results", tmp_path / "docs")


def test_only_what_is_there_has_a_table(tmp_path):
    segmentation_run(tmp_path / "run0", splits=("validation",))
    section = results_section(tmp_path, tmp_path)
    assert "### Segmentation, validation" in section
    assert "Segmentation, test" not in section and "Classification" not in section


def test_check_tells_a_stale_section(folder, readme, capsys):
    before = readme.read_bytes()
    with pytest.raises(SystemExit) as stop:
        call(readme, folder, "--check")
    assert stop.value.code == 1 and readme.read_bytes() == before
    assert capsys.readouterr().out.count("\n") == 1
    call(readme, folder)
    written, when = readme.read_bytes(), readme.stat().st_mtime_ns
    call(readme, folder, "--check")
    call(readme, folder)
    assert (readme.read_bytes(), readme.stat().st_mtime_ns) == (written, when)
    readme.write_bytes(written.replace(b".7", b".8", 1))
    with pytest.raises(SystemExit):
        call(readme, folder, "--check")


def test_a_new_run_makes_the_section_stale(tmp_path, readme):
    segmentation_run(tmp_path / "results/seg-4/seed0")
    call(readme, tmp_path / "results")
    call(readme, tmp_path / "results", "--check")
    segmentation_run(tmp_path / "results/seg-4/seed1", seed=1)
    with pytest.raises(SystemExit):
        call(readme, tmp_path / "results", "--check")


def test_bytes_depend_on_nothing_but_the_runs(folder, tmp_path, monkeypatch):
    """Other places, other times of files, another order of their making, Windows' line ends."""
    sections = []
    for name in ("here", "there"):
        root = tmp_path / name
        for path in sorted(folder.rglob("config.json"), reverse=name == "there"):
            shutil.copytree(path.parent, root / "results" / path.parent.relative_to(folder))
        for path in root.rglob("*"):
            os.utime(path, (1, 1))
        readme = root / "README.md"
        newline = {"here": "\n", "there": "\r\n"}[name]
        readme.write_bytes(f"# Title\n{START}\n{END}\n".replace("\n", newline).encode())
        if name == "here":
            call(readme, root / "results")
        else:
            monkeypatch.chdir(root)
            main([])
            main(["--check"])
        sections.append(readme.read_bytes())
    assert sections[1] == sections[0].replace(b"\n", b"\r\n") and b"\r" not in sections[0]


def test_without_runs_the_section_says_so(tmp_path, readme):
    for results in (tmp_path / "nowhere", tmp_path):
        call(readme, results)
        section = readme.read_text(encoding="utf-8").split(START)[1].split(END)[0]
        assert section.strip() == f"No runs in `{'nowhere' if results != tmp_path else '.'}/` yet."


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n",
        f"{START}\n",
        f"{END}\n",
        f"{END}\n{START}\n",
        f"{START}{END}{START}{END}",
        f"{START}{END}{END}",
        f"{START}{START}{END}",
    ],
)
def test_missing_markers_are_named(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"README.md: expected <!-- results --> once and") as error:
        call(tmp_path / "README.md", tmp_path)
    assert "\n" not in str(error.value) and (tmp_path / "README.md").read_text() == text
    with pytest.raises(UserError, match=r"none.md cannot be read \(.*choose --readme FILE"):
        call(tmp_path / "none.md", tmp_path)


def test_a_damaged_run_leaves_the_readme_as_it_is(tmp_path, readme):
    path = segmentation_run(tmp_path / "results/run0") / "metrics.json"
    path.write_text(path.read_text()[:100])
    before = readme.read_bytes()
    with pytest.raises(UserError, match=r"metrics.json: damaged"):
        call(readme, tmp_path / "results")
    assert readme.read_bytes() == before


def test_the_command_line(tmp_path, readme):
    command = [
        sys.executable,
        "-m",
        "utils.evaluation.runs",
        "--results",
        str(tmp_path / "none"),
        "--readme",
        str(readme),
    ]
    root = Path(tables.__file__).parents[2]
    stale = subprocess.run([*command, "--check"], cwd=root, capture_output=True, text=True)
    assert (stale.returncode, stale.stdout.count("\n"), stale.stderr) == (1, 1, "")
    readme.write_text("no markers")
    wrong = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


def test_the_readme_of_this_repository_is_up_to_date(monkeypatch):
    """python -m utils.evaluation.runs writes its results section."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    before = Path("README.md").read_bytes()
    main(["--check"])
    assert Path("README.md").read_bytes() == before
