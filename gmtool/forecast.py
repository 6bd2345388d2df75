"""What a stage would do, before it does it: the one shape of ``--dry-run`` on every command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileSize:
    """A file or folder that is read or written, and its bytes; None where they are not known."""

    path: Path
    bytes: int | None


@dataclass(frozen=True)
class Choice:
    """A default that was settled by what is there: the flag, the value it got, and why."""

    flag: str
    value: str
    why: str


@dataclass(frozen=True)
class Forecast:
    """A stage that was not run.

    title: one line, what would be done. reads, writes: files with their sizes. work: what is computed, as pairs of a
    name and an amount with its unit. choices: defaults that were settled. memory: about the bytes that it takes,
    seconds: about the time; None where nothing is known of it before it is measured. more_memory, more_time: what comes
    on top, in words, because no estimate of it exists.
    """

    title: str
    reads: tuple[FileSize, ...] = ()
    writes: tuple[FileSize, ...] = ()
    work: tuple[tuple[str, str], ...] = ()
    choices: tuple[Choice, ...] = ()
    memory: int | None = None
    seconds: float | None = None
    more_memory: str = ""
    more_time: str = ""
