"""Files of the Hugging Face hub: in their cache on this machine, or brought to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gmtool.errors import MachineError, UserError

TIMEOUT = 5.0
"""Seconds that the hub has to answer."""
REPAIR = "give a local folder or file, or set HF_HOME to a cache that holds it"
"""The remedy for what is neither on this machine nor can be fetched."""


def hub_folder(source: str, what: str, files: Sequence[str], repair: str = REPAIR) -> Path:
    """The local folder of a hub repository, owner/name, downloaded unless it is in the cache.

    files: patterns of what is fetched; the first is a file that is there when the rest is. what: its role, for
    messages. repair: see `REPAIR`. Raises UserError when the hub does not know it, MachineError when it cannot be
    fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = list(files)
    try:
        cached = Path(snapshot_download(source, allow_patterns=patterns, local_files_only=True))
        weights = [pattern for pattern in files if pattern.endswith((".safetensors", ".bin"))]
        if (cached / files[0]).is_file() and any(file for pattern in weights for file in cached.rglob(pattern)):
            return cached
    except HFValidationError as error:
        raise UserError(f"{what} {source} is no folder, and no hub id (owner/name) either") from error
    except LocalEntryNotFoundError:
        pass  # not there yet
    with _fetching(source, what, repair):
        return Path(snapshot_download(source, allow_patterns=patterns, etag_timeout=TIMEOUT))


def local_or_hub_file(source: str, what: str) -> Path:
    """A file on this machine, which may be missing, or one in a hub repository: owner/name/path/of/file.

    what: its role, for messages. Raises UserError when the hub does not know it, MachineError when it cannot be
    fetched.
    """
    path = Path(source).expanduser()
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if path.exists() or not (owner and name and file) or owner in (".", "..", "~"):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository = f"{owner}/{name}"
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except HFValidationError:
        return path
    except LocalEntryNotFoundError:
        pass  # not there yet
    with _fetching(source, what):
        return Path(hf_hub_download(repository, file, etag_timeout=TIMEOUT))


@contextmanager
def _fetching(source: str, what: str, repair: str = REPAIR) -> Iterator[None]:
    """Turn what the hub's client raises into errors for the user."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{what} {source} needs your consent on huggingface.co: accept it there, then log in"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{what} {source} does not exist on huggingface.co, or is private: check the id") from error
    except (HfHubHTTPError, OSError, EntryNotFoundError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(f"{what} {source}: huggingface.co has the repository, but not this file") from error
        if "No space left" in str(error):
            raise
        raise MachineError(
            f"{what} {source} is not on this machine and cannot be fetched from huggingface.co (no network?): {repair}"
        ) from error
