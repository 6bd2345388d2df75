"""Stopping between two steps instead of within one, so that a run that is told to stop loses nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gmtool.distributed import under_torchrun

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send before they take a machine away."""


@contextmanager
def finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the process was told to stop; a second signal stops it at once.

    Not so under torchrun, which passes on what the terminal has sent already, and stops all by force after half a
    minute. Only the main thread can listen to signals; elsewhere the function always says no.
    """
    told = False

    def listen(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told and not under_torchrun():
            raise KeyboardInterrupt
        told = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = [signal.signal(each, listen) for each in SIGNALS]
    try:
        yield lambda: told
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)
