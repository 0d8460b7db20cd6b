"""Text and JSON files that are written whole or not at all, and read with one clear error."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.strict_json import strict_loads


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` through a temporary file, so that no reader sees half of it."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a temporary file in its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name:.40}.{os.getpid()}.part")  # within the system's limit
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json_atomic(path: Path, data: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write ``data`` as JSON, on one line if ``indent`` is None; NaN and infinities are refused.

    Raises:
        ValueError: A number is not finite.
    """
    write_text_atomic(path, json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, compressed if the name ends with ".gz".

    Raises:
        ValueError: A number is not finite.
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    content = "".join(lines).encode("utf-8")
    # Without a timestamp, the same rows always give the same bytes.
    write_bytes_atomic(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict_loads(line)
        except json.JSONDecodeError as error:
            place = f"{path}, line {number}, column {error.colno}"
            raise InputError("a line is not valid JSON", where=place, got=error.msg) from None
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            raise InputError("a line cannot be read", where=f"{path}, line {number}", got=error) from None
        if not isinstance(row, dict):
            place = f"{path}, line {number}"
            raise InputError("a line is not a JSON object", where=place, got=type(row).__name__)
        rows.append(row)
    return rows


def drop_half_line(path: Path) -> None:
    """Cut off an incomplete last line, left by a killed process or a full disk."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes_atomic(path, whole)


def read_text(path: Path) -> str:
    """Read a file in UTF-8, decompressed if its name ends with ".gz".

    Raises:
        InputError: It is missing, cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except FileNotFoundError:
        raise InputError("the file is missing", where=str(path)) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError("the file cannot be read", where=str(path), got=str(error)) from None
