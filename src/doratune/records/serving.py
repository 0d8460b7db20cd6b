"""What the commands after training print with --json and leave in their folders."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from doratune.records.base import Record
from doratune.records.run import Count, Share

Distance = Annotated[float, Field(ge=0)]


class LogitCheck(Record):
    """How far two models' predictions of the next token are apart, over the positions of a few rows."""

    rows: Count  #: rows that both models read
    positions: Count  #: positions that were compared, each over the whole vocabulary
    largest: Distance  #: largest difference of a log-probability
    mean: Distance  #: mean difference of a log-probability
    top1: Share  #: share of positions with the same most likely token
    kl_mean: Distance  #: mean KL divergence of the second model's distribution from the first's, in nats
    kl_largest: Distance  #: the largest of them
