"""Requests to the Hugging Face hub: for which names, and with what time limit.

huggingface_hub, transformers and datasets each retry several times for each of many files, which takes
minutes without a network. So one request is made first. If it fails, only cached files are used.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

SECONDS = 15.0
"""How long the hub may take to answer."""

AGAIN_AFTER = 300.0
"""Seconds until an address that did not answer is asked again, so that a mix of data sets waits only once."""

_silent: dict[str, tuple[float, str]] = {}
"""Addresses that did not answer: when, and why."""


@dataclass(frozen=True)
class HubAnswer:
    """The hub's answer about a model or data set.

    Attributes:
        failure: Why it is not available, in one line; None if it is.
        files: Its files; empty if the hub was not asked or did not list them.
    """

    failure: str | None = None
    files: tuple[str, ...] = ()


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean a file or folder, so that the hub should not be asked for it.

    That is so if it starts like a path, has a backslash, ends in a slash, has several slashes, or the part
    before its slash is an existing folder.
    """
    if name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/"):
        return True
    return name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


@contextmanager
def hub_or_cache(
    repository: str | None, kind: Literal["model", "dataset"] = "model", *, revision: str | None = None
) -> Iterator[HubAnswer]:
    """Ask the hub for a repository; if that fails, stay offline inside the ``with`` statement.

    Args:
        repository: Its id; None to ask only whether the hub answers.
        kind: What the repository holds.
        revision: Branch, tag or commit; None for the newest.

    Yields:
        The hub's answer; an empty one in offline mode, where it is not asked.
    """
    from huggingface_hub import is_offline_mode

    answer = HubAnswer() if is_offline_mode() else _ask(repository, kind, revision)
    if answer.failure is None:
        yield answer
        return
    with offline():
        yield answer


def _ask(repository: str | None, kind: str, revision: str | None) -> HubAnswer:
    from huggingface_hub import HfApi, get_session
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    address = _without_credentials(api.endpoint)
    when, failure = _silent.get(address, (-math.inf, ""))
    if time.monotonic() - when < AGAIN_AFTER:
        return HubAnswer(failure)

    def request() -> HubAnswer:
        if repository is None:
            get_session().head(api.endpoint, timeout=SECONDS)
            return HubAnswer()
        info: Any = api.repo_info(repository, repo_type=kind, revision=revision, timeout=SECONDS)
        return HubAnswer(files=tuple(file.rfilename for file in info.siblings or ()))

    try:
        return _within(SECONDS, request)
    except GatedRepoError:
        return HubAnswer(f"{address} gives {repository} only to approved users: set HF_TOKEN")
    except RepositoryNotFoundError:
        return HubAnswer(f"{address} has no {repository}, or it is private and needs HF_TOKEN")
    except HfHubHTTPError as error:
        return HubAnswer(f"{address} answered {error.response.status_code} to {repository}")
    except Exception as error:  # DNS, proxy, TLS and network raise different kinds
        failure = f"the hub at {address} cannot be reached ({type(error).__name__})"
        if "Timeout" in type(error).__name__:  # huggingface_hub's HTTP library changes with its version
            failure = f"the hub at {address} did not answer within {SECONDS:g} s"
        _silent[address] = time.monotonic(), failure
        return HubAnswer(failure)


def _within(seconds: float, request: Callable[[], HubAnswer]) -> HubAnswer:
    """The result of ``request``, or TimeoutError; its own time-out holds for each step and each address."""
    outcome: list[HubAnswer | Exception] = []

    def work() -> None:
        try:
            outcome.append(request())
        except Exception as error:  # raised below
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    found = outcome[0] if outcome else TimeoutError()
    if isinstance(found, Exception):
        raise found
    return found


@contextmanager
def offline() -> Iterator[None]:
    """Stay offline inside the ``with`` statement, as with ``HF_HUB_OFFLINE=1``.

    huggingface_hub and datasets each keep a copy of that variable, which they read for each request.
    """
    known = "datasets" in sys.modules
    try:
        with ExitStack() as stack:
            stack.enter_context(_set("huggingface_hub.constants", "HF_HUB_OFFLINE"))
            if known:
                stack.enter_context(_set("datasets.config", "HF_HUB_OFFLINE"))
            yield
    finally:
        # Imported meanwhile, it took its copy from the switch as it was set here.
        if not known and "datasets" in sys.modules and "HF_DATASETS_OFFLINE" not in os.environ:
            constants, config = map(importlib.import_module, ("huggingface_hub.constants", "datasets.config"))
            setattr(config, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)  # noqa: B010 - a module of any kind


def without_telemetry() -> AbstractContextManager[None]:
    """Send no telemetry to the hub inside the ``with`` statement, as with ``HF_HUB_DISABLE_TELEMETRY=1``."""
    return _set("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY")


@contextmanager
def _set(module: str, switch: str) -> Iterator[None]:
    place = importlib.import_module(module)
    before = getattr(place, switch)
    setattr(place, switch, True)
    try:
        yield
    finally:
        setattr(place, switch, before)


def _without_credentials(address: str) -> str:
    """An address without a user name and password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
