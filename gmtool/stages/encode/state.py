"""How far an encoding has come: a small file beside the latents file that is being written, replaced in one step."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gmtool.artifacts.files import resolved, work_folder, written_aside
from gmtool.artifacts.resume import STATE
from gmtool.data.images import BadImage
from gmtool.mixture.running_moments import RunningMoments


@dataclass(frozen=True, eq=False)
class EncodeState:
    """key: digest of what is encoded and how. images: done, bad ones included. samples: written. moments: of the
    first ``moments.count`` samples, a whole number of blocks. skipped: bad images.
    """

    key: str
    images: int
    samples: int
    moments: RunningMoments
    skipped: tuple[BadImage, ...] = ()

    @classmethod
    def start(cls, key: str, shape: tuple[int, ...]) -> EncodeState:
        """Nothing done."""
        return cls(key, 0, 0, RunningMoments.empty(shape))


def state_path(output: Path) -> Path:
    """Where the state of the encoding to ``output`` is."""
    return work_folder(resolved(output)) / STATE


def write_state(output: Path, state: EncodeState) -> None:
    """Replace the state on disk."""
    record = {
        "key": state.key,
        "images": state.images,
        "samples": state.samples,
        "count": state.moments.count,
        "skipped": [asdict(each) for each in state.skipped],
    }
    with written_aside(state_path(output)) as path, path.open("wb") as file:
        np.savez(file, record=np.array(json.dumps(record)), mean=state.moments.mean, m2=state.moments.m2)
        file.flush()
        os.fsync(file.fileno())


def read_state(output: Path) -> EncodeState | None:
    """The state on disk; None when there is none that can be read."""
    try:
        with np.load(state_path(output), allow_pickle=False) as arrays:
            record = json.loads(str(arrays["record"]))
            moments = RunningMoments(record["count"], arrays["mean"], arrays["m2"])
        skipped = tuple(BadImage(**each) for each in record["skipped"])
        return EncodeState(record["key"], record["images"], record["samples"], moments, skipped)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
