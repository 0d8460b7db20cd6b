"""What a method's YAML file holds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from doratune.settings import Settings

Setting = Literal["rank", "alpha", "dropout", "targets"]
"""The settings of a run that describe an adapter."""
LORA_ARGUMENTS: dict[Setting, str] = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
}
"""What the settings are called in PEFT's LoraConfig."""
Merges = Literal["base", "changed-base", "nothing"]


def _named(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name) or name == "base":
        raise ValueError("should be up to 32 of a-z, 0-9 and dash, a letter or digit first, and not base")
    return name


class Optimizer(Settings):
    """What takes the steps."""

    name: Literal["adamw", "lora-plus"] = "adamw"
    """adamw, or lora-plus: AdamW with a higher learning rate for B, through PEFT."""
    ratio: Annotated[float, Field(ge=1)] | None = None
    """For lora-plus: the learning rate of B over that of A, which is the run's."""

    @model_validator(mode="after")
    def _has_a_ratio(self) -> Optimizer:
        if (self.name == "lora-plus") != (self.ratio is not None):
            raise ValueError("should have a ratio with lora-plus, and only there")
        return self


class Method(Settings):
    """How a model is trained: with which adapter, or every weight."""

    name: Annotated[str, AfterValidator(_named)]
    """In flags, plans, folders and tables."""
    title: Annotated[str, Field(min_length=1)]
    """In sentences, such as "DoRA with attached norm"."""
    description: str
    """In one line, for the list of methods."""
    paper: str | None = None
    """The address of its paper."""
    peft: str | None
    """The class of its PEFT configuration, such as LoraConfig; null: every weight is trained."""
    arguments: dict[str, Any] = Field(default={})
    """Arguments of that class that are not PEFT's defaults and not set by a run's settings."""
    settings: dict[Setting, str] = Field(default={})
    """The argument that each setting of a run gives; the method has no use for settings that are not here. A
    LoraConfig has them all."""
    optimizer: Optimizer = Optimizer()
    """What takes the steps."""
    engine: bool = False
    """Whether doratune's engine computes its layers."""
    norm_gradient: bool = False
    """Let DoRA's gradient flow through the norm too, which only the engine does."""
    merges: Merges
    """Into what an adapter may be merged: the base as it is, the base as the adapter's initialisation changes
    it (changed-base), or nothing."""
    match: str | None = None
    """Use the smallest rank, from the run's on, that trains at least as many parameters as this shipped
    method."""

    @model_validator(mode="after")
    def _fits(self) -> Method:
        if self.engine and self.peft != "LoraConfig":
            raise ValueError("engine should be true only with peft: LoraConfig")
        if self.optimizer.name == "lora-plus" and self.peft != "LoraConfig":
            raise ValueError("optimizer should be lora-plus only with peft: LoraConfig")
        if self.norm_gradient and not (self.engine and self.arguments.get("use_dora")):
            raise ValueError("norm_gradient should be true only with DoRA (use_dora) on the engine")
        if self.match is not None and "rank" not in self.given:
            raise ValueError("match should be there only if the rank is a setting")
        if len(set(self.given.values())) < len(self.given):
            raise ValueError("settings should give each argument once")
        if taken := sorted(self.arguments.keys() & set(self.given.values())):
            raise ValueError(f"arguments should leave {', '.join(taken)} to the run's settings")
        return self

    @property
    def given(self) -> dict[Setting, str]:
        """The arguments that a run's settings give, by setting."""
        return LORA_ARGUMENTS if self.peft == "LoraConfig" and not self.settings else self.settings

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides the result of a training: the definition without its words."""
        words = {"title", "description", "paper", "merges"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=words)

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained, without an adapter."""
        return self.peft is None

    @property
    def unused(self) -> frozenset[str]:
        """The settings of adapters that the method has no use for."""
        left_out = {*LORA_ARGUMENTS} - {*self.given}
        return frozenset(left_out | {"engine"} if self.trains_all else left_out)
