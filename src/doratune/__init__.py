"""doratune: DoRA at LoRA's price.

``enable`` puts the LoRA and DoRA layers of a PEFT model on the engine; ``functional`` has the operations for
library authors, and ``reference`` specifies DoRA in float64.

>>> import doratune
>>> doratune.enable(peft_model)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from doratune import functional, reference
    from doratune.errors import DoratuneError, InputError
    from doratune.peft import EnableReport, disable, enable

__all__ = [
    "DoratuneError",
    "EnableReport",
    "InputError",
    "__version__",
    "disable",
    "enable",
    "functional",
    "reference",
]

_HOMES = {
    "DoratuneError": "doratune.errors",
    "InputError": "doratune.errors",
    "EnableReport": "doratune.peft",
    "disable": "doratune.peft",
    "enable": "doratune.peft",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import doratune`` needs no torch."""
    if name in ("functional", "reference"):
        return importlib.import_module(f"doratune.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'doratune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
