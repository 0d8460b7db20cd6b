"""Ctrl-C that a library swallowed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noting_interrupts(seen: list[int]) -> Iterator[None]:
    """Note in ``seen`` that Ctrl-C was pressed.

    torch drops a KeyboardInterrupt that arrives while it imports NumPy. What then fails is another error,
    which only this can tell from a fault.

    Args:
        seen: Gets the signal's number.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
