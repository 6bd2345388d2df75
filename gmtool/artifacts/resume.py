"""The small file beside an output that keeps how far its making has come: one class for every stage that resumes.

It is written aside, brought to the disk and renamed, so that after a kill at any moment there is the last state or the
one before, never a part of one. It is an ``.npz`` of arrays and one JSON record, and belongs to one ``key``: a digest
of everything that the result depends on. A state of another key, or one that cannot be read, is as good as none, and
the user is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gmtool.artifacts.checksum import checksum
from gmtool.artifacts.files import reading, remove_parts, resolved, work_folder, written_aside
from gmtool.errors import UserError
from gmtool.progress import Progress

STATE = "state.npz"
"""The state's file in the hidden folder in which the output is made."""
T = TypeVar("T")

KEY, RECORD = "key", "record"
"""Names of the two texts beside the arrays."""


@dataclass(frozen=True, eq=False)
class ResumeState:
    """What was done: a record of JSON values, and arrays by name."""

    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ResumeFile:
    """The state of the making of ``output``, for one ``key``."""

    output: Path
    key: str

    @property
    def path(self) -> Path:
        """The path of the state."""
        return work_folder(resolved(self.output)) / STATE

    def load(self, progress: Progress) -> ResumeState | None:
        """The state on disk; None when there is none, and when it is of another key or damaged, which is noted."""
        if not self.exists():
            return None
        try:
            with reading(self.path, "starting over"), np.load(self.path, allow_pickle=False) as file:
                if str(file[KEY]) != self.key:
                    progress.note(f"{self.output} was begun with other inputs or settings: starting over")
                    return None
                arrays = {name: file[name] for name in file.files if name not in (KEY, RECORD)}
                saved = json.loads(str(file[RECORD]))
                if saved["checksums"] != _checksums(arrays):
                    raise ValueError("its checksums do not match")
                return ResumeState(saved["record"], arrays)
        except UserError as error:
            progress.note(str(error))
            return None

    def restore(self, read: Callable[[ResumeState], T], progress: Progress) -> T | None:
        """What ``read`` makes of the state; None where there is none, see `load`.

        ``read`` raises KeyError, TypeError or ValueError for a state of another version, which is noted, and as good as
        none.
        """
        saved = self.load(progress)
        try:
            return None if saved is None else read(saved)
        except (KeyError, TypeError, ValueError):
            progress.note(f"{self.path} was written by another version of gmtool: starting over")
            return None

    def exists(self) -> bool:
        """Whether there is a state, of whatever key."""
        return self.path.exists()

    def save(self, state: ResumeState) -> None:
        """Replace the state on disk. Raises OSError when the disk is full; the state before is then still there."""
        text = json.dumps({"record": state.record, "checksums": _checksums(state.arrays)})
        arrays: dict[str, Any] = {KEY: np.array(self.key), RECORD: np.array(text), **state.arrays}
        with written_aside(self.path) as path, path.open("wb") as file:
            np.savez(file, **arrays)

    def remove(self) -> None:
        """Forget the state, and one that was being written."""
        self.path.unlink(missing_ok=True)
        remove_parts(self.path.parent)


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: checksum(np.asarray(values)) for name, values in arrays.items()}
