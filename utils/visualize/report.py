"""What predictions of a folder of photographs are kept in: a record to go on from, tables, and a page to look at.

record.jsonl has a line for each finished photograph, written once its pictures are there; summary.csv, predictions.csv
and index.html are made of it, a line at a time.
"""

import csv
import html
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from utils import UserError
from utils.files import written_whole

RECORD, TABLES = "record.jsonl", ("summary.csv", "predictions.csv", "index.html")
PAGE = Path(__file__).with_name("report.html")


def identity(file: Path) -> list[int]:
    """What tells whether a file has changed."""
    return [file.stat().st_size, file.stat().st_mtime_ns]


class Record:
    """record.jsonl in a folder of outputs: a line that tells which networks they are of, then one a photograph.

    networks: what identifies them, by the name to show: {"cls-b1, seed 5": SHA-256 of the weights}. UserError when the
    outputs there are of others, or the file is damaged. `names`: the photograph's absolute path by name of its outputs.
    """

    def __init__(self, folder: Path, networks: Mapping[str, str]) -> None:
        self.path, self._networks = folder / RECORD, networks
        self.names: dict[str, str] = {}
        self._finished: dict[str, list[int]] = {}
        if not self.path.is_file():
            return
        try:
            lines = self._lines()
            there = next(lines)["networks"]
            for line in lines:
                self.names[line["name"]], self._finished[line["file"]] = line["file"], line["identity"]
        except (LookupError, StopIteration, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: damaged; choose another --output, or move {folder} away") from error
        if there != networks:
            others = " and ".join(there)
            raise UserError(f"{folder} holds what {others} predicted: choose another --output, or move it away")

    def waits(self, file: Path) -> bool:
        """Whether a photograph is not finished, or has changed since."""
        there = self._finished.get(str(file.absolute()))
        return there is None or not file.is_file() or there != identity(file)

    def start(self, names: Iterable[str]) -> None:
        """Before lines are added. UserError when, without a record, outputs of these names are there already."""
        folder = self.path.parent
        if self.path.is_file():
            return
        ends = [*TABLES, *(f"{name}_{end}" for name in names for end in ("segmentation.png", "saliency.jpg"))]
        if there := next((end for end in ends if (folder / end).exists()), None):
            raise UserError(f"{folder / there} is there already: move it away, or choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as file:
            file.write(json.dumps({"networks": self._networks}).encode() + b"\n")

    def add(self, line: Mapping[str, Any]) -> None:
        """A photograph whose files are written: "file" (absolute), "identity", "name"; what `write_tables` takes."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._finished[line["file"]] = line["identity"]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of the finished photographs in order; of one that was predicted again, as it had changed, the last."""
        for line in self._lines():
            if self._finished.get(line.get("file")) == line.get("identity", ()):
                yield line

    def _lines(self) -> Iterator[dict[str, Any]]:
        """A last one that a kill cut short goes."""
        with self.path.open("rb+") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(end)
                    return
                end += len(line)
                yield json.loads(line)


def write_tables(record: Record, failed: Mapping[str, str], title: str, notice: str) -> None:
    """summary.csv, index.html and, where there are classes, predictions.csv; anew of all that the record holds.

    failed: why a photograph, by its path, has no prediction; it gets a row all the same.
    """
    folder, first = record.path.parent, next(record.rows())
    columns = list(first["row"])
    head, tail = _page_around(columns, title, notice)
    with written_whole(folder / "summary.csv") as table, written_whole(folder / "index.html") as page:
        page.write(head)
        table.write(_csv([*columns, "use"]))
        missing = ({"row": {"file": file, "warnings": f"not predicted: {why}"}} for file, why in failed.items())
        for line in chain(record.rows(), missing):
            row = dict.fromkeys(columns, "") | line["row"]
            table.write(_csv([*row.values(), notice]))
            page.write(_page_row(row, line.get("pictures", [])))
        page.write(tail)
    if first["classes"]:
        with written_whole(folder / "predictions.csv") as table:
            table.write(_csv(["image_id", *first["classes"]]))
            for line in record.rows():
                table.write(_csv([line["name"], *line["classes"].values()]))


def _csv(values: Iterable[Any]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode(errors="backslashreplace")


def _page_around(columns: Iterable[str], title: str, notice: str) -> list[bytes]:
    """What stands before and after the rows."""
    names = (html.escape(column.replace("_", " ")) for column in columns)
    heads = "".join(f'<th scope="col"><button>{name}</button></th>' for name in names)
    template = Template(PAGE.read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), notice=html.escape(notice), columns=heads)
    return page.encode().split(b"<!-- rows -->\n")


def _page_row(row: Mapping[str, str], pictures: Iterable[Sequence[str]]) -> bytes:
    """pictures: (what it shows, file relative to the page, thumbnail in base64)."""
    shown = "".join(
        f'<a href="{quote(os.fsencode(file))}"><img loading="lazy" decoding="async" alt="{html.escape(what)}" '
        f'src="data:image/jpeg;base64,{small}"></a>'
        for what, file, small in pictures
    )
    cells = "".join(f'<td class="{name}">{html.escape(value)}</td>' for name, value in row.items())
    return f'<tr><td class="pictures">{shown}</td>{cells}</tr>\n'.encode(errors="backslashreplace")
