"""The end of a script: one line and an exit code for what a user can mend; and output that nobody reads any more."""

import errno
import io
import os
import pty
import sys

import pytest
import torch

from tests.small import exit_code
from utils import UserError
from utils.logger import log, progress
from utils.signals import StopRequested

GO_ON = "make room, and the same command (without -c 0) goes on"


def refused(number: int, file: str | None = "some/file"):
    def main():
        raise OSError(number, "reason", *([file] if file else []))

    return main


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, GO_ON),
        (errno.EDQUOT, GO_ON),
        (errno.EACCES, "check its permissions, or choose another folder"),
        (errno.ENOENT, "check the name"),
        (errno.EMFILE, "allow more open files (ulimit -n), or take fewer --workers"),
        (errno.EIO, "check the disk"),  # as of anything else, such as a network drive that is not connected
    ],
)
def test_a_file_that_the_system_refuses_is_one_line(capsys, number, way_out):
    assert exit_code(refused(number)) == 2
    assert capsys.readouterr().err == f"error: some/file: reason; {way_out}\n"
    if way_out == GO_ON:  # also where nobody knows which file it was
        assert exit_code(refused(number, None)) == 2
        assert capsys.readouterr().err == f"error: reason; {way_out}\n"


def test_an_error_of_the_program_keeps_its_traceback():
    for error in (OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("wrong"), ValueError("wrong")):
        with pytest.raises(type(error)):
            exit_code(lambda error=error: (_ for _ in ()).throw(error))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("file: not what was expected; try another"), 2, "error: file: not what was expected; try another"),
        (StopRequested(15, "in epoch 2 after step 3"), 143, "stopped by SIGTERM in epoch 2 after step 3"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; the same command (without -c 0) goes on after the last "),
    ],
)
def test_what_a_user_can_mend_or_asked_for_is_one_line(capsys, error, code, line):
    assert exit_code(lambda: (_ for _ in ()).throw(error)) == code
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(line)


def gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 60), gpu])
def test_a_lack_of_memory_is_one_line(capsys, ask):
    assert exit_code(ask) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: out of memory; try a smaller --batch-size or --size, or --accumulate N"


@pytest.mark.parametrize("end", ["pipe", "terminal"])
def test_a_reader_that_goes_away_stops_nothing(monkeypatch, end):
    """`| head`, or a terminal that is closed."""
    reading, writing = os.pipe() if end == "pipe" else pty.openpty()
    stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    os.close(reading)
    done = []

    def main():
        for number in progress(range(3), "going on"):
            log.info("line %d", number)
            print("and another", file=sys.stderr)
            done.append(number)

    assert exit_code(main) == 0 and done == [0, 1, 2]
    monkeypatch.undo()


def test_a_terminal_that_knows_ascii_only_stops_nothing(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert exit_code(lambda: log.info("336×224")) == 0
    assert shown.getvalue().endswith(rb"336\xd7224" + b"\n")
