"""One logger for scripts and notebooks, and progress that suits a terminal as well as `nohup`."""

import errno
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm  # text in notebooks too: of a widget for each epoch, a saved notebook keeps error messages

from utils import UserError
from utils.signals import stop_signals

Item = TypeVar("Item")
log = logging.getLogger("isic2017")
SECONDS_BETWEEN_LINES = 30.0
_MAKE_ROOM = "make room, and the same command (without -c 0) goes on"
WAYS_OUT = {  # of what the system refuses; else the disk, or the network that it hangs on, is to be looked at
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _MAKE_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions, or choose another folder"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), "check the name"),
    errno.EMFILE: "allow more open files (ulimit -n), or take fewer --workers",
}


def is_main() -> bool:
    """Whether this process writes and prints: of those that `torchrun` started, the first one alone does."""
    return int(os.environ.get("RANK", "0")) == 0


class _Lasting:
    """A stream whose other end may go away: a closed terminal or pipe takes the text, and stops nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream or Path(os.devnull).open("w")  # noqa: SIM115 (None: closed from the start)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._stream, name)(*arguments)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            self._stream = Path(os.devnull).open("w")  # noqa: SIM115

    def write(self, text: str) -> Any:
        return self._try("write", text)

    def flush(self) -> None:
        self._try("flush")


class _Handler(logging.StreamHandler):
    """Writes to today's sys.stdout (a notebook or a test may replace it), above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_logging() -> None:
    """Send the project's messages to standard output, unbuffered; with date and time when that is a file or pipe."""
    stamp = "" if sys.stdout.isatty() or "ipykernel" in sys.modules else "%(asctime)s "
    handler = _Handler()
    handler.setFormatter(logging.Formatter(stamp + "%(message)s", "%Y-%m-%d %H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    log.propagate = False


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """What is logged within goes to the end of this file too, with date and time; and the error that ends it."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None  # where it cannot be written any more, that stops nothing
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        name = getattr(error, "name", None) or type(error).__name__
        handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, f"ended by {name}: {error}", (), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main function.

    Exit code 2 after a user's mistake or a refusal of the system's, such as a full disk (one line, no traceback),
    128 + n after the signal n (`utils.signals`).
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # "×" on an ASCII terminal, or a path that is not UTF-8
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
    start_logging()
    try:
        with stop_signals() as stop, stop.at_once():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        way_out = WAYS_OUT.get(error.errno, "check the disk")
        if not error.filename and way_out != _MAKE_ROOM:  # none of a file's
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {way_out}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        # torch's RuntimeErrors, on a CPU and on a GPU
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        print("error: out of memory; try a smaller --batch-size or --size, or --accumulate N", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as request:  # StopRequested, or the second Ctrl-C in a step
        kept = f" {request}" if str(request) else "; the same command (without -c 0) goes on after the last checkpoint"
        number = getattr(request, "number", signal.SIGINT)
        print(f"stopped by {signal.Signals(number).name}{kept}", file=sys.stderr)
        sys.exit(128 + number)


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a bar on a terminal or in a notebook; elsewhere a line at most every 30 seconds."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if is_main() and (sys.stdout.isatty() or "ipykernel" in sys.modules):
        yield from tqdm(items, description, total, leave=False, file=sys.stdout)
        return
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > SECONDS_BETWEEN_LINES and count != total:
            last = time.monotonic()
            log.info("%s: %d of %s", description, count, total or "?")


def readable_time(seconds: float) -> str:
    """As "40 s", "4 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
