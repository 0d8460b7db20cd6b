"""The kinds of PEFT layers that the engine can compute."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, Linear

from doratune.peft.conv import EngineConv1d, EngineConv2d, EngineConv3d
from doratune.peft.embedding import EngineEmbedding
from doratune.peft.layer import EngineLayer
from doratune.peft.linear import EngineLinear
from doratune.peft.quantised import QUANTISED

KINDS: dict[type[LoraLayer], type[EngineLayer]] = {
    Linear: EngineLinear,
    Embedding: EngineEmbedding,
    Conv1d: EngineConv1d,
    Conv2d: EngineConv2d,
    Conv3d: EngineConv3d,
    **QUANTISED,
}
"""PEFT's class, by its exact type, and the one that takes its place."""
