"""README.md, README.zh.md and the pages behind them: links, commands, numbers, and that both languages say the same."""

import re
import shlex
import subprocess
from collections import Counter

import pytest

import cls_main
import seg_main
from tests.conftest import ROOT
from utils.evaluation.classification import official_predictions
from utils.evaluation.export import format_number
from utils.evaluation.runs import PRIMARY, find_runs
from utils.evaluation.tables import main

READMES = ("README.md", "README.zh.md")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "results", "results/*/*", "Data", "model")
    for path in ROOT.glob(f"{folder}/*.md")
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Without code and generated tables."""
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", read(page), flags=re.DOTALL)
    return re.sub(r"```.*?```|(?m:^ {4}.*$)|`[^`]*`", "", text, flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """Of indented blocks, without comments."""
    lines = re.findall(r"^ {4}(?! )(.*)$", re.sub(r"\\\n +", "", read(page)), flags=re.MULTILINE)
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines]


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .*", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL), flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lstrip("# "))
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def links(page: str) -> list[tuple[str, str]]:
    """(text, target) in the order of the page."""
    return re.findall(
        r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    kept = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    for _, target in links(page):
        if not target.startswith("http"):
            path, _, place = target.partition("#")
            there = ROOT / page if not path else (ROOT / page).parent / path
            assert there.exists(), target
            name = there.resolve().relative_to(ROOT).as_posix()
            assert not kept or any(f"{path}/".startswith(f"{name}/") for path in kept), f"{target} is not in git"
            assert not place or place in map(anchor, headings(name)), target


def test_the_readme_is_short_and_its_tables_are_up_to_date(monkeypatch):
    """python -m utils.evaluation.tables writes them."""
    assert len(read("README.md").split()) <= 1500
    monkeypatch.chdir(ROOT)
    main(["--check"])


@pytest.mark.parametrize("page", READMES)
def test_numbers_are_those_of_the_runs_they_lead_to(page):
    """Of every link whose text begins with a score: the mean over the runs there, on validation or test images."""
    numbers = [(text.split()[0], target) for text, target in links(page) if re.match(r"\.\d", text)]
    assert len(numbers) > 20
    for number, target in numbers:
        runs = find_runs(ROOT / target)
        values = [[run.score("validation", PRIMARY[run.task]) for run in runs]]
        tested = [run.test_scores for run in runs]
        values += [[scores.get("jaccard", scores.get("mean_auc")) for scores in tested]] if all(tested) else []
        assert number in [format_number(sum(of_split) / len(runs)) for of_split in values], (number, target)


@pytest.mark.parametrize("page", [*READMES, *(page for page in PAGES if page.startswith("docs/"))])
def test_commands_are_there(page):
    """Scripts, modules, make's targets, and flags; those of the training scripts are read by them."""
    makefile, shared = read("Makefile"), read("utils/command_line.py")
    for command in commands(page):
        words = shlex.split(command.removeprefix("nohup ").removesuffix(" &"))
        if words[0] == "make":
            assert all(f"\n{target}:" in makefile for target in words[1:2] if "=" not in target), command
        if words[0] not in ("python", ".venv/bin/python") or words[1:2] in ([], ["-"]):
            continue
        module, flags = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
        if module in ("venv", "ARL-CNN", "pip"):
            continue
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file(), command
        if module in ("seg_main", "cls_main") and "--help" not in flags:
            (seg_main if module == "seg_main" else cls_main).parse(flags)
        else:
            source = path.read_text() + shared
            own = flags[: flags.index("--")] if "--" in flags else flags
            assert all(f'"{flag}"' in source for flag in own if flag.startswith("-") and flag != "--help"), command


def test_both_languages_say_the_same():
    english, chinese = READMES
    assert [line.split()[0] for line in headings(english)] == [line.split()[0] for line in headings(chinese)]
    assert commands(english) == commands(chinese)
    blocks = [re.findall(r"```.*?```", read(page), flags=re.DOTALL) for page in READMES]
    assert [re.sub("# .*", "", block) for block in blocks[0]] == [re.sub("# .*", "", block) for block in blocks[1]]
    assert len({frozenset(Counter(re.findall(r"`[^`\n]+`", read(page))).items()) for page in READMES}) == 1
    targets = [Counter(target for _, target in links(page) if not target.startswith("#")) for page in READMES]
    assert targets[0] - Counter([chinese]) == targets[1] - Counter([english])
    doors = [[target[1:] for _, target in links(page) if target.startswith("#")] for page in READMES]
    places = [
        [[*map(anchor, headings(page))].index(door) for door in own] for page, own in zip(READMES, doors, strict=True)
    ]
    assert len(doors[0]) == 4 and places[0] == places[1]
    numbers = [Counter(re.findall(r"\d*\.?\d+", re.sub(r"\]\([^)]*\)", "]", prose(page)))) for page in READMES]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_files_for_the_challenges_scorer_are_those_of_the_predictions(split):
    """Of every classifier in results/."""
    runs = [run for run in find_runs(ROOT / "results") if run.task == "classification"]
    assert runs
    for run in runs:
        written = (run.folder / f"{split}_predictions_official.csv").read_text()
        assert written == official_predictions(run.predictions(split), run.classes).to_csv(index=False)
