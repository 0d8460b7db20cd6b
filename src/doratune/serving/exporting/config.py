"""The settings of an export."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator
from tyro.conf import Positional

from doratune.errors import InputError
from doratune.settings import LaxPath, Settings

GgufType = Literal["F32", "F16", "BF16", "Q8_0"]


class ExportConfig(Settings):
    """What is exported, and how."""

    target: Annotated[str, Positional]
    """A run directory, or the folder of a PEFT adapter."""
    to: Literal["gguf"]
    """The format: gguf, for llama.cpp, Ollama and others."""
    output: LaxPath
    """File to write, such as model.gguf."""
    base_gguf: LaxPath | None = None
    """The base model as a GGUF file; default: the base itself, if it is one or built in."""
    dtype: GgufType | None = None
    """Type of the matrices that the adapter changes; default: the one that each has."""
    requantize: Literal["Q8_0"] | None = None
    """Type of those whose own is none of F32, F16, BF16 and Q8_0; default: refuse them."""
    base: str | None = None
    """The base model, if it is not where the run or the adapter says."""
    dequantised: bool = False
    """Of a run in 4 bits: take the weights that training saw, dequantised."""
    allow_other_base: bool = False
    """Take a base model with other weights than were trained on."""
    trust_remote_code: bool = False
    """Let a hub model run its own code."""
    check_data: LaxPath | None = None
    """Rows to check the file on (text or JSONL); default: a few sentences."""

    @model_validator(mode="after")
    def _one_type(self) -> ExportConfig:
        if self.dtype is not None and self.requantize is not None:
            raise InputError(
                "--dtype already says the type of every matrix that changes",
                where=f"--dtype {self.dtype} --requantize {self.requantize}",
                fix="leave out one of them",
            )
        return self
