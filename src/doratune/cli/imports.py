"""Big imports without the garbage collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import here what stays until the process ends.

    torch, transformers and PEFT create a million objects, none of which becomes garbage. The collector would
    traverse them several times during the imports, again in a long run, and once more at exit: two of the
    seven seconds that importing them and exiting take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@atexit.register
def _thaw() -> None:
    """Let Python free what was frozen: at exit Triton's bindings print a page about objects left over."""
    if "triton" in sys.modules:
        gc.unfreeze()
