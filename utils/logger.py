"""One logger for scripts and notebooks, and progress that suits a terminal as well as `nohup`."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm  # text in notebooks too: of a widget for each epoch, a saved notebook keeps error messages

from utils import UserError

Item = TypeVar("Item")
log = logging.getLogger("isic2017")
SECONDS_BETWEEN_LINES = 30.0


class _Handler(logging.StreamHandler):
    """Writes to today's sys.stdout (a notebook or a test may replace it), above a progress bar if there is one."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_logging() -> None:
    """Send the project's messages to standard output, unbuffered; with date and time when that is a file or pipe."""
    stamp = "" if sys.stdout.isatty() or "ipykernel" in sys.modules else "%(asctime)s "
    handler = _Handler()
    handler.setFormatter(logging.Formatter(stamp + "%(message)s", "%Y-%m-%d %H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main function; exit code 2 after a user's mistake (one line, no traceback), 130 after Ctrl-C."""
    start_logging()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command (without -c 0) goes on after the last whole epoch", file=sys.stderr)
        sys.exit(130)


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a bar on a terminal or in a notebook; elsewhere a line at most every 30 seconds."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stdout.isatty() or "ipykernel" in sys.modules:
        yield from tqdm(items, description, total, leave=False, file=sys.stdout)
        return
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > SECONDS_BETWEEN_LINES and count != total:
            last = time.monotonic()
            log.info("%s: %d of %s", description, count, total or "?")
