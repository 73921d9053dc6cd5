"""Scores and tables as text, files of them, and the results section of README.md."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_runs import example_results, segmentation_run
from utils import UserError
from utils.evaluation.export import Score, export_table, to_csv, to_latex, to_markdown
from utils.evaluation.runs import find_runs
from utils.evaluation.tables import (
    END,
    START,
    format_scores,
    main,
    published_table,
    results_section,
    segmentation_table,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return example_results(tmp_path_factory.mktemp("project") / "results")


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.7568, 0.0041, (0.7224, 0.7896)), ".757 ± .004 [.722, .790]"),
        (Score(0.7568, None, (0.7224, 0.7896)), ".757 [.722, .790]"),
        (Score(1.0, 0.0, (0.99951, 1.0)), "1.000 ± .000 [1.000, 1.000]"),
        (Score(0.0, None, (-0.0, 0.1004)), ".000 [.000, .100]"),
        (Score(), "–"),
        # 13/16, and what another order of summation makes of it, round alike
        (Score(0.8125, None, (0.8125 + 2e-16, 0.8125 - 2e-16)), ".812 [.812, .812]"),
    ],
)
def test_scores_as_text(score, text):
    assert str(score) == text


TABLE = pd.DataFrame(
    {
        "a_b": ["x/y", "50 % & more", "–"],
        "score": [Score(0.5, 0.01, (0.4, 0.6)), Score(), Score(0.25, None, (-0.001, 0.3))],
        "p (Holm)": [0.0001, 0.02, 1.0],
        "difference": [-0.0001, -0.25, 10.5],
        "published (test) x": [0.8924, 0.76, math.nan],
        "n": [1, 20, 3],
        "size": ["3×4", "a\\b", "{c}"],
    }
)


def test_markdown():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in to_markdown(TABLE).splitlines()]
    assert lines[0] == list(TABLE) and set("".join(lines[1])) == {":", "-"}
    assert lines[2:] == [
        ["x/y", ".500 ± .010 [.400, .600]", "<.001", ".000", ".8924", "1", "3×4"],
        ["50 % & more", "–", ".020", "-.250", ".7600", "20", "a\\b"],
        ["–", ".250 [-.001, .300]", "1.000", "10.500", "–", "3", "{c}"],
    ]


def test_latex():
    lines = to_latex(TABLE).splitlines()
    assert r"a\_b & score & p (Holm) & difference & published (test) x & n & size \\" in lines
    assert r"x/y & .500 ± .010 [.400, .600] & $<$.001 & .000 & .8924 & 1 & 3×4 \\" in lines
    assert r"50 \% \& more & – & .020 & -.250 & .7600 & 20 & a\textbackslash b \\" in lines


def test_csv_has_numbers_in_full():
    lines = to_csv(TABLE).splitlines()
    assert lines[0] == "a_b,score,score std,score low,score high,p (Holm),difference,published (test) x,n,size"
    assert lines[1] == "x/y,0.5,0.01,0.4,0.6,0.0001,-0.0001,0.8924,1,3×4"
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
    with pytest.raises(UserError, match=r"cannot be written .* choose another"):
        export_table(table, tmp_path / "file", "official")


def test_scores_in_the_log(folder):
    seg, cls = (find_runs(folder / name)[0].metrics["validation"] for name in ("seg-2", "arl18-scratch"))
    for summary, name, value, (low, high), count in (
        (seg, "jaccard", seg["official"]["jaccard"], seg["official_interval_95"]["jaccard"], 6),
        (cls, "mean AUC", cls["mean_auc"], cls["interval_95"]["mean_auc"], 10),
    ):
        title, *lines = format_scores("validation", summary).splitlines()
        assert title.startswith("validation, 25 images: ") and title.endswith(" [95 % interval]")
        width = 17 if count == 6 else 33
        assert f"  {name:<{width}} {value:.4f}  [{low:.4f}, {high:.4f}]" in lines and len(lines) == count
    cls["melanoma"]["auc"] = None
    assert f"  {'melanoma: AUC':<33} undefined: no such image" in format_scores("test", cls).splitlines()


@pytest.fixture
def readme(tmp_path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe end – π.\n", encoding="utf-8")
    return path


def call(readme, results, *flags) -> None:
    main(["--readme", str(readme), "--results", str(results), *flags])


def test_the_section_is_written_between_the_markers(folder, readme):
    call(readme, folder)
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    section, after = rest.split(END)
    assert (before, after) == ("# Title\n\n", "\n\nThe end – π.\n") and section.startswith("\n\nScore: ")
    jaccard = str(segmentation_table(find_runs(folder), "validation").set_index("experiment").loc["seg-4", "jaccard"])
    assert f"| {jaccard} |" in text and "±" in jaccard
    assert to_markdown(published_table("classification")) in text
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert titles == [
        *(f"### Segmentation, {split}: {kind}" for split in ("test", "validation")
          for kind in ("official scores (mean over images at mask size)", "all pixels pooled")),
        "### Segmentation: published by others",
        *(f"### Classification, {split}: {task}" for split in ("test", "validation")
          for task in ("melanoma (MEL)", "seborrheic keratosis (SK)")),
        "### Classification: published by others",
    ]  # fmt: skip
    of_melanoma = text.split(titles[5])[1].split(titles[6])[0]
    assert "| MEL AUC" in of_melanoma and "| mean AUC" in of_melanoma and "SK" not in of_melanoma


def test_every_number_leads_to_its_runs_and_only_what_is_there_has_a_table(tmp_path):
    segmentation_run(tmp_path / "results/seg-4/seed0", splits=("validation",))
    segmentation_run(tmp_path / "results/seg-4/seed3", seed=3, splits=("validation",))
    section = results_section(tmp_path / "results", tmp_path)
    assert "| [0](results/seg-4/seed0) [3](results/seg-4/seed3) |" in section
    assert "](../results/seg-4/seed0)" in results_section(tmp_path / "results", tmp_path / "docs")
    assert "Segmentation, validation" in section and "test:" not in section and "Classification" not in section
    assert results_section(tmp_path / "none", tmp_path) == "No runs in `none/` yet.\n"


def test_check_tells_a_stale_section(tmp_path, readme, capsys):
    segmentation_run(tmp_path / "results/seg-4/seed0")
    before = readme.read_bytes()
    with pytest.raises(SystemExit) as stop:
        call(readme, tmp_path / "results", "--check")
    assert stop.value.code == 1 and readme.read_bytes() == before and capsys.readouterr().out.count("\n") == 1
    call(readme, tmp_path / "results")
    written = readme.read_bytes()
    call(readme, tmp_path / "results", "--check")
    shutil.move(tmp_path / "results/seg-4/seed0", tmp_path / "moved")
    segmentation_run(tmp_path / "results/seg-4/seed1", seed=1)
    shutil.move(tmp_path / "moved", tmp_path / "results/seg-4/seed0")
    with pytest.raises(SystemExit):
        call(readme, tmp_path / "results", "--check")
    shutil.rmtree(tmp_path / "results/seg-4/seed1")
    call(readme, tmp_path / "results", "--check")  # bytes depend on nothing but the runs
    assert readme.read_bytes() == written


@pytest.mark.parametrize("text", ["# Title\n", f"{START}\n", f"{END}\n{START}\n", f"{START}{END}{START}{END}"])
def test_missing_markers_are_named(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"README.md: expected <!-- results --> once and") as error:
        call(tmp_path / "README.md", tmp_path / "none")
    assert "\n" not in str(error.value) and (tmp_path / "README.md").read_text() == text
    with pytest.raises(UserError, match=r"none.md: no such file"):
        call(tmp_path / "none.md", tmp_path / "none")


def test_the_readme_of_this_repository_is_up_to_date(monkeypatch):
    """python -m utils.evaluation.tables writes its results section."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    main(["--check"])
