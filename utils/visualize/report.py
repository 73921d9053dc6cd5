"""What predictions of a folder of photographs are kept in: a record to go on from, tables, and a page to look at.

record.jsonl has a line for each finished photograph, written once its pictures are there; summary.csv, predictions.csv
and index.html are made of it.
"""

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import pandas as pd

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
    outputs there are of others, or the file is damaged.

    Attributes:
        finished: what was added last of each photograph, by its absolute path.
    """

    def __init__(self, folder: Path, networks: Mapping[str, str]) -> None:
        self.path, self._networks = folder / RECORD, networks
        self.finished: dict[str, Mapping[str, Any]] = {}
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a last line that a kill cut short goes
        try:
            there, *lines = map(json.loads, whole.splitlines())
            there = there["networks"]
            self.finished = {line["file"]: line for line in lines}
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: damaged; choose another --output, or move {folder} away") from error
        if there != networks:
            others = " and ".join(there)
            raise UserError(f"{folder} holds what {others} predicted: choose another --output, or move it away")
        os.truncate(self.path, len(whole))

    @property
    def names(self) -> dict[str, str]:
        """Of the outputs, by the photograph's absolute path."""
        return {file: line["name"] for file, line in self.finished.items()}

    def waits(self, file: Path) -> bool:
        """Whether a photograph is not finished, or has changed since."""
        there = self.finished.get(str(file.absolute()))
        return there is None or not file.is_file() or there["identity"] != identity(file)

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
        self.finished[line["file"]] = line


def write_tables(record: Record, failed: Mapping[str, str], title: str, notice: str) -> None:
    """summary.csv, index.html and, where there are classes, predictions.csv; anew of all that the record holds.

    A photograph that is no longer there has no row. failed: why one, by its path, has no prediction; it gets a row all
    the same.
    """
    first = next(iter(record.finished.values()), {"row": ["file", "warnings"], "classes": {}})
    gone = {str(Path(file).absolute()) for file in failed}  # of those the record is outdated
    done = [line for file, line in record.finished.items() if file not in gone and Path(file).exists()]
    missing = [{"file": file, "warnings": f"not predicted: {why}"} for file, why in failed.items()]
    rows = [*(line["row"] for line in done), *missing]
    table = pd.DataFrame(rows, columns=list(first["row"]), dtype=object).fillna("")  # objects: names may be no UTF-8
    pictures = [line["pictures"] for line in done] + [[] for _ in missing]
    heads = (html.escape(name.replace("_", " ")) for name in table)
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        notice=html.escape(notice),
        columns="".join(f'<th scope="col"><button>{name}</button></th>' for name in heads),
        rows="".join(map(_page_row, table.to_dict("records"), pictures)),
    )
    texts = {"summary.csv": _csv(table.assign(use=notice)), "index.html": page}
    if first["classes"]:
        columns = ["image_id", *first["classes"]]
        predictions = [{"image_id": line["name"], **line["classes"]} for line in done]
        texts["predictions.csv"] = _csv(pd.DataFrame(predictions, columns=columns, dtype=object))
    for name, text in texts.items():
        with written_whole(record.path.parent / name) as file:
            file.write(text.encode(errors="backslashreplace"))


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _page_row(row: Mapping[str, str], pictures: Iterable[Sequence[str]]) -> str:
    """pictures: (what it shows, file relative to the page, thumbnail in base64)."""
    shown = "".join(
        f'<a href="{quote(os.fsencode(file))}"><img loading="lazy" decoding="async" alt="{html.escape(what)}" '
        f'src="data:image/jpeg;base64,{small}"></a>'
        for what, file, small in pictures
    )
    texts = {name: html.escape(value).replace("/", "/<wbr>") for name, value in row.items()}  # paths break there
    cells = "".join(f'<td class="{name}">{text}</td>' for name, text in texts.items())
    return f'<tr><td class="pictures">{shown}</td>{cells}</tr>\n'
