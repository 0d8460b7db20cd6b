from __future__ import annotations

import gc

import pytest

from doratune.cli.imports import lasting_imports


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_inside_nor_looked_at_again_afterwards(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), lasting_imports():
            assert not gc.isenabled()
            lasting = [object(), []]
            raise ImportError
        assert gc.isenabled() == enabled
        assert gc.is_tracked(lasting) and all(one is not lasting for one in gc.get_objects())
    finally:
        gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
