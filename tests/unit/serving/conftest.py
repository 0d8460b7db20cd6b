"""Models of several families for the tests of what comes after training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from serving_models import save_model


@pytest.fixture(scope="session")
def families(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def family(name: str) -> Path:
        if name not in made:
            made[name] = save_model(name, tmp_path_factory.mktemp(name), tiny_model)
        return made[name]

    return family
