"""PEFT models on the engine. The only package that knows PEFT's inside.

``enable(model)`` swaps the class of each supported DoRA layer; parameters, names, checkpoints, merging and
saving stay PEFT's own, and ``disable(model)`` swaps the classes back.
"""

from doratune.peft.report import EnableReport
from doratune.peft.switch import disable, enable

__all__ = ["EnableReport", "disable", "enable"]
