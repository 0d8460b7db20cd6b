"""A pytest plugin that enables the engine in every PEFT model that a test builds.

    python -m pytest -p doratune.testing.everywhere PEFT/tests/test_lora_variants.py -k dora

At the end it prints how many layer calls the engine computed, how many were left to PEFT, and why.
"""

from __future__ import annotations

from typing import Any

import pytest

from doratune.peft import EnableReport, disable_automatically, enable_automatically
from doratune.testing.calls import CallCounter, lines

_OUTPUT = "doratune_layer_calls"
_counter = pytest.StashKey[CallCounter]()


def pytest_configure(config: pytest.Config) -> None:
    """Enable the engine and begin to count."""
    config.stash[_counter] = counter = CallCounter()

    def tell(_: EnableReport) -> None:
        counter.start()  # PEFT defines some quantised layer classes only when they are first used

    counter.start()
    enable_automatically(tell)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Disable the engine and stop counting."""
    if _counter in config.stash:
        disable_automatically()
        config.stash[_counter].stop()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of a pytest-xdist worker to the process that prints them."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        calls = session.config.stash[_counter].calls
        output[_OUTPUT] = [list(calls.engine.items()), [(*key, count) for key, count in calls.left.items()]]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Add the counts of a pytest-xdist worker."""
    engine, left = getattr(node, "workeroutput", {}).get(_OUTPUT, ([], []))
    calls = node.config.stash[_counter].calls
    calls.engine.update(dict(engine))
    calls.left.update({(kind, reason): count for kind, reason, count in left})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts."""
    terminalreporter.section("doratune")
    for line in lines(config.stash[_counter].calls):
        terminalreporter.write_line(line)
