"""Numbers and errors as text."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number of things, human-readable: "1 point", "1,000 points"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: float) -> str:
    """A byte count, human-readable: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def duration(seconds: float) -> str:
    """A human-readable time span: 75 -> '1:15', 3700 -> '1:01:40', infinity -> 'unknown'. seconds: at least 0."""
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
