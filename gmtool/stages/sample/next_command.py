"""The command that draws from a new run, for the stages that make one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from gmtool.artifacts.samples import open_samples
from gmtool.errors import UserError
from gmtool.stages.sample.config import SAMPLES


def sample_command(run: Path, default: bool = True) -> str:
    """The command that draws from a run into a folder where it replaces nothing but samples of the same run.

    default: whether that may be the folder that is written by default.
    """
    folder = next(path for path in _folders(run, default) if not path.exists() or _is_of(path, run))
    return shlex.join(["gmtool", "sample", str(run), *([] if folder == SAMPLES else [str(folder)])])


def _folders(run: Path, default: bool) -> Iterator[Path]:
    if default:
        yield SAMPLES
    name = f"{SAMPLES}-{run.resolve().name}"
    yield Path(name)
    yield from (Path(f"{name}-{number}") for number in count(2))


def _is_of(samples: Path, run: Path) -> bool:
    """Whether a folder holds samples of a run."""
    try:
        known = open_samples(samples).manifest.input("run")
    except UserError:
        return False
    return known is not None and known.path == str(run.absolute())
