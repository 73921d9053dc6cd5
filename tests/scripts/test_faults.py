"""docs/faults.md says what the tests do, and is written from them: `python -m tests.scripts.test_faults --write`.

Bad inputs are the table of `tests.data.test_bad_inputs`; faults of a run are the tests marked `fault(what, then)`; kills are
the reports of `tests.scripts.kill_training` in results/kills/.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from types import ModuleType

from tests import test_device, test_distributed
from tests.conftest import ROOT
from tests.data import test_archive, test_bad_inputs, test_download
from tests.evaluation import test_runs as test_results
from tests.inference import test_ensemble
from tests.model import test_run, test_stopping
from tests.model import test_trainer as test_training
from tests.nets import test_nets
from tests.scripts import test_killing, test_predict, test_reproduce

FAULTS = ROOT / "docs" / "faults.md"
KILLS = ROOT / "results" / "kills"
LONG_RUN = test_stopping.LONG_RUN
RUNS = (test_stopping, test_killing, test_reproduce, test_distributed, test_training, test_run, test_device, test_nets)
DOWNLOADS = (test_download, test_archive)
RESULTS = (test_results, test_ensemble, test_predict)
INTRO = """## Bad inputs

What is done to a small good data folder, or to a file of weights, and what then happens. "Refused" is one line that
begins with the file at fault and exit code 2 (of `utils.data.check`, which first looks at the whole folder, 1);
after it there is no unfinished file, no cache of the faulty split (copies across splits are looked for in the caches,
which stay), no run folder. "Warned" is a line of the log or report, and the work goes on. `tests/data/test_bad_inputs.py`
does every row; it also puts random bytes into tables, images and checkpoints, which are read or refused.
"""
UNSAFE = """### What is not made safe

- JPEG has no checksum: bits changed in its data decode to other pixels, unnoticed. (PNG has one, and it is verified.)
- Wrong but possible truth is believed: a label of the other class, the mask of another image, a mask squeezed to a
  wrong shape (`utils.data.check` names masks whose size is not their image's).
- Copies are found when their thumbnails resemble each other: upright, mirrored or turned by quarters. Not found are
  those that are turned by other angles, strongly reframed, or edited and mirrored at once; 7 of the 33 known pairs
  are of that kind and are left out by id. Ids tell of later years only when they are above ISIC_0016072.
- Of damaged EXIF data Pillow may warn without naming the file; the image is then read as it is stored.
- Pretrained weights may have seen the test images: no file tells that. NaN, infinite and misshapen weights are
  refused, finite nonsense is not.
- Bytes are decoded in this process, by Pillow, libjpeg, zlib and PyTorch: a fault in those libraries is a fault here.
  Do not read files of strangers with rights that you would not give them.
- Memory follows what a file honestly holds: an image of 89 MP takes up to 1.2 GB while it is decoded, once a core; a
  checkpoint twice its size. A small pickle that nests plain values in many levels may take hours to read.
- Files that are exchanged while they are read: noticed for images and masks that are being prepared (on Windows,
  which keeps no time of change, only where size or time differ), not for weights.
"""
STOPPED = """## Runs that are stopped or damaged

A small network trains on drawn images and is stopped; the same command goes on. "Same end": the weights, moments,
history and scores are those of a run that was left alone, to the last bit: on a CPU, when it goes on with
the same kind of processor, number of threads, precision, library versions and compiled ARL function. Where one of these
differs, the processor left aside, a line says so.
"""
KILLED = """`python -m tests.scripts.kill_training seg --kills 100` and the same with `cls`: MobileNetV2 at 32×32 pixels,
four steps an epoch. The reports are in [results/kills](../results/kills). "While writing" counts the kills by SIGKILL
at which an unfinished file lay in the run folder.
"""
FLAT = """Memory and open files stay as they are: `LONG_EPOCHS=200 python -m pytest -k stay_flat` (5 % of memory and no
file more are allowed; the report is [results/long_run.json](../results/long_run.json)) went from {0[0]:.1f} MB at epoch
{first} to {1[0]:.1f} MB at epoch {last}, and from {0[1]} open files to {1[1]}.
"""
UNSAFE_RUNS = """### What is not made safe here

- A disk that lies about having written (fsync), a power cut on a file system without ordered renames.
- Two machines that train in one folder of a network file system without locks.
- SIGKILL to `reproduce.py` leaves its run going, in a session of its own. It goes on to its end; until then the same
  command says that the run's folder is in use, and after it keeps the results.
- A CPU that runs out of memory by over-commitment: the system kills the process, without a line.
- Ctrl-C in the seconds in which Python imports PyTorch ends with a traceback. Nothing has begun by then.
- On a GPU only stand-ins were tried: out of memory is an error raised by the test's loss function.
- GPU kernels are not reproducible to the bit, so neither is a run that is stopped and continued on one.
  `--deterministic` takes reproducible kernels where PyTorch has them; it was not tried on a GPU yet.
"""
DOWNLOADED = """## Downloads and archives

`python -m utils.data.download` against a local server that does what is said here. "One line" comes with exit code 2.
"""
UNSAFE_DOWNLOADS = """
Not made safe: a server that names no length and never ends is read until the disk is full (one line; free space is
checked first only where a length is named), and one that sends the head of its answer byte by byte is waited for.
"""
READ_RESULTS = """## Results and weights that others made

What `utils.evaluation.runs`, the notebooks, `utils.inference.ensemble` and `predict` do with a folder that somebody else made, or
that was damaged.
"""


def bad_inputs() -> Iterator[str]:
    yield INTRO
    counts = Counter(case.expected for _, case in test_bad_inputs.ALL)
    yield f"{len(test_bad_inputs.ALL)} rows: " + ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)) + "."
    for group, cases in test_bad_inputs.CASES.items():
        counts = Counter(case.expected for case in cases)
        yield f"\n### {group} ({', '.join(f'{counts[kind]} {kind}' for kind in sorted(counts))})\n"
        cells = [(case.what, test_bad_inputs.ENTRIES[case.entry][1], f"{case.expected}: {case.says}") for case in cases]
        yield from table(("what is wrong", "given to", "what happens"), cells)
    yield "\n" + UNSAFE


def stopped() -> Iterator[str]:
    yield STOPPED
    yield from faults(RUNS)
    yield "\n" + KILLED
    yield from table(
        ("", "kills", "SIGKILL", "SIGTERM", "while writing", "after a stop within an epoch", "differences"), kills()
    )
    seen = json.loads(LONG_RUN.read_text())["memory_mb_and_open_files"]
    first, last = sorted(map(int, seen))
    yield "\n" + FLAT.format(seen[str(first)], seen[str(last)], first=first, last=last)
    yield UNSAFE_RUNS


def elsewhere() -> Iterator[str]:
    yield DOWNLOADED
    yield from faults(DOWNLOADS)
    yield UNSAFE_DOWNLOADS
    yield "\n" + READ_RESULTS
    yield from faults(RESULTS)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    for cells in (header, ("---",) * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def faults(modules: Iterable[ModuleType]) -> Iterator[str]:
    rows = []
    for module in modules:
        for name, test in vars(module).items():
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "fault"]
            rows += [(*mark.args, f"`{module.__name__.removeprefix('tests.')}::{name}`") for mark in marks]
    return table(("what happens", "then", "test"), rows)


def kills() -> list[tuple[str, ...]]:
    rows = []
    for path in sorted(KILLS.glob("*.json")):
        report = json.loads(path.read_text())
        ended = report["by_signal"]
        counts = report["kills"], ended["-9"], ended["143"], report["while_writing"], report["mid_epoch_checkpoints"]
        rows.append((report["task"], *map(str, counts), str(len(report["differences"]))))
    return rows


def document() -> str:
    return "\n".join(["# What happens when things go wrong\n", *bad_inputs(), *stopped(), *elsewhere(), ""])


def test_the_document_is_not_stale():
    assert document() == FAULTS.read_text(), "python -m tests.scripts.test_faults --write"


def test_the_harness_was_run_and_lost_nothing():
    for task in ("seg", "cls"):
        report = json.loads((KILLS / f"{task}.json").read_text())
        assert report["task"] == task and report["kills"] >= 100
        assert report["differences"] == [] and report["left_behind"] == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.scripts.test_faults --write")
    FAULTS.write_text(document())
