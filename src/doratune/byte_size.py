"""Sizes of files in readable form."""

from __future__ import annotations


def byte_size(count: int) -> str:
    """2 210 000 000 bytes as "2.21 GB", 507 000 as "507 kB": three digits, in powers of 1000."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
    return f"{count} bytes"
