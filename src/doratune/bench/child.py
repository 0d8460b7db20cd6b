"""How a process that measures memory begins. No torch here: this must come before the libraries' imports."""

from __future__ import annotations

import logging
import signal


def begin() -> None:
    """Keep quiet about what the parent has said already, and leave Ctrl-C to it."""
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
