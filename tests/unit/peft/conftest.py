"""A process group for tests that shard a model in their own process."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import distributed


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    store: Any = vars(distributed)["HashStore"]()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
