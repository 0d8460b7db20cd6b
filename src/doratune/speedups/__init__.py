"""Faster replacements for parts of a model's own forward pass; results stay the same to rounding.

``speed_up(model, training=...)`` is the only function that replaces a forward pass, an RMSNorm, a rotary
embedding, attention, the head or a frozen layer. Its report says what was replaced and what was left alone,
and can undo all of it.
"""

from doratune.speedups.changes import SpeedupReport
from doratune.speedups.install import speed_up
from doratune.speedups.settings import SpeedupSettings

__all__ = ["SpeedupReport", "SpeedupSettings", "speed_up"]
