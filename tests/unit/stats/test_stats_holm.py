"""Holm's correction."""

from __future__ import annotations

import pytest

from doratune.stats.holm import holm


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
