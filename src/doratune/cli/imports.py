"""Big imports without the garbage collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import modules that stay until the process ends, without the garbage collector.

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
    """Let Python free the frozen objects: otherwise Triton's bindings report a page of leaks at exit."""
    if "triton" in sys.modules:
        gc.unfreeze()
