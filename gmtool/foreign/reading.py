"""The one place where a damaged or odd file of another program becomes one line for the user."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmtool.errors import GmtoolError, UserError

LARGEST_SETTINGS = 2**26
"""Bytes of a file of settings at most: one that is larger holds something else."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Read a file or folder of another program inside this.

    what: what it should be, such as "a checkpoint of PyTorch". Raises UserError, naming the path, when it is missing or
    no regular file or folder, and for whatever goes wrong inside: a parser of damaged bytes may raise anything.
    Errors for the user and missing permissions pass as they are.
    """
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}: give {what}")
    try:
        yield
    except (GmtoolError, PermissionError):
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged, or is not {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error in a few printable words."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    words = " ".join(str(error).split())[:150] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def read_settings(path: Path) -> Mapping[str, Any]:
    """The settings in a JSON file. Raises UserError when it is missing, damaged, or holds something else."""
    with reading(path, "a JSON file of settings"):
        if path.stat().st_size > LARGEST_SETTINGS:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no settings")
        return content
