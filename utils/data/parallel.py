"""Many files on all cores, in threads: decoders, resizing and checksums release the interpreter lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from utils import UserError
from utils.logger import progress

Item, Result = TypeVar("Item"), TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 32) -> Iterator[Result]:
    """`function` of each item; at most `ahead` are worked on or wait for use, so that items may be large."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(cores()) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def attempts(
    function: Callable[[Item], Result], items: Sequence[Item], what: str, ahead: int = 32
) -> Iterator[Result | UserError]:
    """`function` of each item, in order, or the UserError that it raised; `what` stands at the progress bar."""

    def attempt(item: Item) -> Result | UserError:
        try:
            return function(item)
        except UserError as error:
            return error

    yield from progress(in_order(attempt, items, ahead), what, len(items))
