"""The layout of the repository, read from its sources: who may import whom, and how long files and functions are."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up: a file imports from its own room and from those before it. "utils": its ground floor.
ROOMS = ("nets", "utils", "data", "model", "evaluation", "inference", "visualize", "tasks", "scripts", "tests")
# Where something else than utils/tasks asks for a task: that of finished runs, which keep other predictions.
ASK_FINISHED_RUNS = {
    *("utils/evaluation/rows.py", "utils/evaluation/runs.py", "utils/evaluation/score.py"),
    *("utils/evaluation/tables.py", "utils/inference/ensemble.py", "utils/inference/findings.py"),
    *("utils/inference/release.py", "utils/inference/trained.py"),
}
LIGHT = "seg_main, cls_main, nets, utils.command_line, utils.files, utils.signals"


@cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Path and syntax tree of every file, by the name it is imported by."""
    found, folders = {}, ("nets", "utils", "benchmarks", "docs", "tests")
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]:
        name = path.relative_to(ROOT)
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        found[module] = name.as_posix(), ast.parse(path.read_text())
    assert len(found) > 80
    return found


def level(module: str) -> int:
    parts = module.split(".")
    name = parts[1] if parts[0] == "utils" and parts[1:2] and parts[1] in ROOMS else parts[0]
    return ROOMS.index(name if name in ROOMS else "scripts")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a tree but what stands below `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from nodes(child)


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name taken from it) of every import from this repository; of a module as a whole the name is ""."""
    for node in nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for whole in (above + each.name for each in node.names):
                module, name = (whole, "") if whole in sources() else whole.rpartition(".")[::2]
                if module in sources():
                    yield module, name


def test_imports_point_down_and_never_in_a_circle():
    graph = {module: {other for other, _ in imports(tree)} for module, (_, tree) in sources().items()}
    assert sum(map(len, graph.values())) > 200
    assert not [f"{one} imports {two}" for one in graph for two in graph[one] if level(two) > level(one)]
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_private_names_stay_in_their_file():
    taken = []
    for path, tree in sources().values():
        found = list(imports(tree))
        taken += [f"{path}: {module}.{name}" for module, name in found if re.match("_[^_]", name)]
        modules = "|".join({module.rpartition(".")[2] for module, name in found if not name}) or "none"
        taken += [f"{path}: {use}" for use in re.findall(rf"(?<![\w.])(?:{modules})\._[a-z]\w*", ast.unparse(tree))]
    assert not taken


def test_nothing_is_too_long():
    assert len([path for path in (ROOT / "utils").iterdir() if path.name != "__pycache__"]) <= 16
    long = []
    for name, tree in sources().values():
        lines = len((ROOT / name).read_text().splitlines())
        long += [f"{name}: {lines} lines"] * (lines > 350)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        long += [f"{name}: {each.name}" for each in functions if each.end_lineno - each.lineno >= 50]
    assert not long


def test_what_a_task_does_is_decided_in_one_place():
    asks = re.compile(r"""(\btask|\['task'\]) [!=]= '(segm|class)|'(segmentation|classification)' [!=]= .*\btask\b""")
    asking = {name for name, tree in sources().values() if asks.search(ast.unparse(tree))}
    asking = {name for name in asking if not name.startswith(("utils/tasks/", "tests/", "benchmarks/"))}
    assert asking == ASK_FINISHED_RUNS


def test_warnings_stay_on():
    """Old fault: warnings were switched off for the whole program."""
    for name, tree in sources().values():
        code = re.sub(r"with warnings\.catch_warnings\(\):\n.*", "", ast.unparse(tree))  # for the time of a call
        assert name.startswith("tests/") or not re.search("filterwarnings|simplefilter|PYTHONWARNINGS", code), name


def test_flags_are_read_before_pytorch_is_imported():
    program = f"import sys, {LIGHT}; print(*{{'torch', 'sklearn', 'matplotlib', 'pandas'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
