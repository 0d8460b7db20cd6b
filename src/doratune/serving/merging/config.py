"""The settings of what comes after training. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional

from doratune.settings import Dtype, LaxPath, Settings


class MergeConfig(Settings):
    """What is merged, onto which base, and how it is written."""

    run: Annotated[list[str], Positional]
    """Run directory or adapter folder."""
    output: LaxPath
    """The new model's folder."""
    base: str | None = None
    """The base model, if it is not where the run says; a run in 4 bits merges onto it in full precision."""
    dequantised: bool = False
    """Of a run in 4 bits: merge onto the weights that training saw, dequantised."""
    dtype: Dtype = "auto"
    """Type of the weights that are written; auto: the type of each in the base's files."""
    check_data: LaxPath | None = None
    """Rows to check the merged model on: text lines, or JSONL with text or instruction and output."""
    weights: list[float] | None = None
    """Shares of several runs, which are refused: PEFT drops DoRA's magnitudes."""
    allow_other_base: bool = False
    """Merge also onto a base model with other weights than the adapter was trained on."""
    trust_remote_code: bool = False
    """Let a hub model run its own code."""
