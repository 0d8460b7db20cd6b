"""The Hugging Face hub: which names it is asked for, and how long it may take to answer.

huggingface_hub, transformers and datasets each try several times for each of many files, which takes minutes
where there is no network. So one request is made first. If it fails, only what is cached is used.
"""

from __future__ import annotations

import importlib
import math
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
"""Seconds after which an address that did not answer is asked again: a mix of data sets waits once."""

_silent: dict[str, tuple[float, str]] = {}
"""When an address did not answer, and why."""


@dataclass(frozen=True)
class HubAnswer:
    """What the hub says of a model or data set.

    Attributes:
        failure: Why it cannot be had, in one line; None where it can.
        files: Its files; empty where the hub was not asked, or did not say.
    """

    failure: str | None = None
    files: tuple[str, ...] = ()


def looks_like_path(name: str) -> bool:
    """Whether a name can only be meant for a file or folder, so that the hub is not to be asked for it.

    It starts as a path does, has a backslash, ends in a slash, has several, or what stands before its slash
    is here.
    """
    if name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/"):
        return True
    return name.count("/") > 1 or ("/" in name and Path(name).parent.exists())


@contextmanager
def hub_or_cache(
    repository: str | None, kind: Literal["model", "dataset"] = "model", *, revision: str | None = None
) -> Iterator[HubAnswer]:
    """Ask the hub for a repository; if that fails, nothing asks it inside the ``with`` statement.

    Args:
        repository: Its id; None: whether the hub answers at all.
        kind: What it holds.
        revision: Branch, tag or commit; None for the newest.

    Yields:
        What the hub says. In offline mode it is not asked.
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
        return HubAnswer(f"{address} gives {repository} only to those whom its owners let in: set HF_TOKEN")
    except RepositoryNotFoundError:
        return HubAnswer(f"{address} has no {repository}, or it is private and needs HF_TOKEN")
    except HfHubHTTPError as error:
        return HubAnswer(f"{address} answered {error.response.status_code} to {repository}")
    except Exception as error:  # the name's resolution, the proxy, TLS and the network raise their own kinds
        failure = f"the hub at {address} cannot be reached ({type(error).__name__})"
        if isinstance(error, TimeoutError):
            failure = f"the hub at {address} did not answer within {SECONDS:g} s"
        _silent[address] = time.monotonic(), failure
        return HubAnswer(failure)


def _within(seconds: float, request: Callable[[], HubAnswer]) -> HubAnswer:
    """The result of ``request``, or TimeoutError: its own time-out is one of each step and each address."""
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
    """Nothing asks the hub inside the ``with`` statement, as with ``HF_HUB_OFFLINE=1``.

    Of that variable huggingface_hub and datasets keep one copy each, which they read for each request.
    """
    with ExitStack() as stack:
        stack.enter_context(_set("huggingface_hub.constants", "HF_HUB_OFFLINE"))
        if "datasets" in sys.modules:
            stack.enter_context(_set("datasets.config", "HF_HUB_OFFLINE"))
        yield


def without_telemetry() -> AbstractContextManager[None]:
    """Inside the ``with`` statement the hub is told nothing, as with ``HF_HUB_DISABLE_TELEMETRY=1``."""
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
    """An address without the user's name and password, if it has them."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
