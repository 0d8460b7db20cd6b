"""Big imports without the garbage collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import inside what stays until the process ends.

    torch, transformers and PEFT make a million objects, none of which becomes garbage. Python would look
    through them several times while they are made, again in a long run, and once more at its end: two of the
    seven seconds that it takes to import them and to leave again.
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
    """Let Python take apart what was frozen, where someone would otherwise complain of it at the end.

    Triton's bindings, which are there beside most GPUs, print a page about every object that is left.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
