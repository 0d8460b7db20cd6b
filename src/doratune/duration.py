"""Durations in readable form."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """112.3 seconds as "1 min 52 s": with a decimal below ten seconds, without seconds from an hour on."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about(seconds: float) -> str:
    """An estimate, rounded to match its precision: 12 634 seconds as "about 3 h 30 min"."""
    step = next((step for below, step in ((10, 1), (120, 10), (7200, 60)) if seconds < below), 600)
    whole = max(round(seconds / step), 1) * step
    text = f"{whole} s" if whole < 60 else duration(whole).removesuffix(" 00 s").removesuffix(" 00 min")
    return f"about {text}"
