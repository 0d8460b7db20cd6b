"""What makes a model's own forward pass cheaper without changing what it computes, behind one door.

``speed_up(model, training=...)`` is the only place where a forward pass, a norm, a rotary embedding,
attention, the head or a frozen layer is replaced; its report says what was taken and left, and undoes it.
"""

from doratune.speedups.changes import SpeedupReport
from doratune.speedups.install import speed_up
from doratune.speedups.settings import SpeedupSettings

__all__ = ["SpeedupReport", "SpeedupSettings", "speed_up"]
