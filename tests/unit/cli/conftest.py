"""Verbs are called in this process here, and each points doratune's messages at its stderr."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def own_messages() -> Iterator[None]:
    """Give later tests the logger back as it was."""
    logger = logging.getLogger("doratune")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
