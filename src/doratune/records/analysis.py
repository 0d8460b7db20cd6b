"""analysis.json, schema version 1: how training moved the magnitude and the direction of the weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from doratune.records.base import Record
from doratune.records.run import Count
from doratune.records.study import StudyMethod


def _measured(value: float) -> float:
    return float(f"{value:.7g}")


Measured = Annotated[float, AfterValidator(_measured)]
"""A number kept to the seven digits of float32, because there are thousands of them."""
Size = Annotated[Measured, Field(ge=0)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


class WeightChange(Record):
    """One weight at one checkpoint, compared with the base (arXiv 2402.09353, equations 3 and 4).

    With m(k) the norm of the k-th row of W as PyTorch stores it (the k-th output), V(k) that row:
    ΔM = mean over k of |m_t(k) − m_0(k)|; ΔD = mean over k of 1 − cos(V_t(k), W_0(k)).
    """

    step: Count  #: optimizer steps so far
    layer: str  #: module name in the base model, such as "model.layers.0.self_attn.q_proj"
    kind: str  #: its last part, such as "q_proj"
    magnitude: Size  #: ΔM
    direction: Size  #: ΔD
    rounding: bool = False  #: whether both are within float32's rounding; such a weight did not move


class GainDrift(Record):
    """How far g = m / ‖V‖ of one DoRA layer is from 1."""

    step: Count  #: optimizer steps so far
    layer: str  #: module name in the base model
    kind: str  #: its last part
    mean: Measured  #: mean of g over the outputs
    deviation: Size  #: root mean square of g − 1


class KindCorrelation(Record):
    """Pearson's correlation of ΔM and ΔD over layers and checkpoints."""

    kind: str  #: kind of layer, or "all"
    correlation: Correlation | None  #: None where it is not defined
    slope: float | None  #: least squares, ΔM per ΔD
    points: Count  #: number of (layer, checkpoint) pairs, without those that did not move beyond rounding


class RunAnalysis(Record):
    """One run through its checkpoints."""

    name: str  #: name of the run
    method: StudyMethod  #: what was trained
    run: str  #: run directory as it was given
    steps: list[Count]  #: the checkpoints, ascending
    changes: list[WeightChange]  #: every adapted weight at every checkpoint
    gains: list[GainDrift]  #: empty unless the method is DoRA
    correlations: list[KindCorrelation]  #: "all" first, then per kind


class AnalysisRecord(Record):
    """The whole of analysis.json."""

    kind: ClassVar[str] = "doratune.analysis"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.analysis"] = Field(default="doratune.analysis", alias="schema")  #: kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    model: str  #: name of the base model
    runs: Annotated[list[RunAnalysis], Field(min_length=1)]  #: in the order they were given
    reproduce: str  #: the command that gives this analysis
