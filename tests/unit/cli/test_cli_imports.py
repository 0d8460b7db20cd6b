from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest

from doratune.cli.imports import _thaw, lasting_imports


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_inside_or_traversed_afterwards(enabled: bool) -> None:
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


@pytest.mark.parametrize("beside_triton", [True, False])
def test_frozen_objects_are_unfrozen_at_exit_only_with_triton(
    beside_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if beside_triton:
        monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    gc.freeze()
    try:
        _thaw()
        assert (gc.get_freeze_count() == 0) == beside_triton
    finally:
        gc.unfreeze()
