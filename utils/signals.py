"""Signals that ask a run to stop: Ctrl-C, `kill`, a closed terminal, SLURM's warning.

Their number decides the exit code of a script, 128 + n: 129 SIGHUP, 130 SIGINT, 138 SIGUSR1, 143 SIGTERM (Linux).
A signal that is ignored when Python starts stays so: `nohup` ignores SIGHUP.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two


class StopRequested(KeyboardInterrupt):
    """Raised in place of KeyboardInterrupt; `number` is the signal's, the text tells what is kept."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(kept)
        self.number = number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        where = str(self).partition(";")[0] or "after the last checkpoint"
        return [f"stopped {where}: run this cell again to go on from there"]


class StopSignals:
    """What has arrived. Within `at_once` a signal raises StopRequested; else it is kept until `number` is looked at."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._raises = False

    def receive(self, number: int, _frame: object) -> None:
        again = self.number == signal.SIGINT == number
        self.number = number
        if self._raises:
            raise StopRequested(number)
        if again:  # a second Ctrl-C does not wait for the end of the step
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal stops whatever runs, also one that has arrived before."""
        self._raises = True
        try:
            if self.number is not None:
                raise StopRequested(self.number)
            yield
        finally:
            self._raises = False


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Take the signals of NAMES over, in the main thread (elsewhere none arrives); the old handlers come back after."""
    stop, before, hook = StopSignals(), {}, sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, StopRequested):  # raised within a destructor or callback, which ends there
            threading.Timer(0.01, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
        else:
            hook(unraisable)

    sys.unraisablehook = again
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def kept_from_new_processes() -> Iterator[None]:
    """Processes that start within have these signals blocked: the main process decides for them when to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    numbers = {getattr(signal, name) for name in NAMES}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    resource_tracker.ensure_running()  # multiprocessing's own, which unblocks some of them here
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_the_main_process() -> None:
    """For the start of a loader's process: what a terminal or `torchrun` sends to the group means the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that has arrived by now is dropped
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
