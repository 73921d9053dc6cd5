"""Scores and tables as text, and files of them."""

import math

import pandas as pd
import pytest

from tests.evaluation.test_runs import classification_run, segmentation_run
from utils.evaluation.export import Score, export_table, format_scores, to_csv, to_latex, to_markdown
from utils.evaluation.runs import read_run


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.7568, 0.0041, (0.7224, 0.7896)), ".757 ± .004 [.722, .790]"),
        (Score(0.7568, None, (0.7224, 0.7896)), ".757 [.722, .790]"),
        (Score(0.7568, 0.0041), ".757 ± .004"),
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


def test_csv_has_numbers_of_seven_digits():
    lines = to_csv(TABLE).splitlines()
    assert lines[0] == "a_b,score,score std,score low,score high,p (Holm),difference,published (test) x,n,size"
    assert lines[1] == "x/y,0.5,0.01,0.4,0.6,0.0001,-0.0001,0.8924,1,3×4"
    assert lines[2] == "50 % & more,,,,,0.02,-0.25,0.76,20,a\\b"
    assert lines[3] == "–,0.25,,-0.001,0.3,1,10.5,,3,{c}"


def test_a_table_becomes_three_files(tmp_path):
    paths = export_table(TABLE, tmp_path / "new" / "folder", "official")
    assert [path.name for path in paths] == ["official.csv", "official.md", "official.tex"]
    assert [path.read_bytes().decode() for path in paths] == [to_csv(TABLE), to_markdown(TABLE), to_latex(TABLE)]


def test_scores_in_the_log(tmp_path):
    seg, cls = (
        read_run(make(tmp_path / make.__name__)).metrics["validation"]
        for make in (segmentation_run, classification_run)
    )
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
