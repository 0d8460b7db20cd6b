"""Sets up a benchmark's child process. No torch here: this must run before the libraries are imported."""

from __future__ import annotations

import logging
import signal


def begin() -> None:
    """Leave warnings, which the parent has logged already, and Ctrl-C to the parent."""
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
