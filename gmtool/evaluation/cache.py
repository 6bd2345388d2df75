"""Features that were extracted before, kept on the disk under a digest of all that they depend on.

They lie in ``features/`` of gmtool's cache: the folder that the environment variable ``GMTOOL_CACHE`` names, else
``gmtool/`` in ``XDG_CACHE_HOME`` or ``~/.cache``. Errors there only cost time: a damaged file is made
again, and nothing is written to a full or read-only disk.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.manifest import fingerprint
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.errors import UserError
from gmtool.evaluation.features import Features, features_of
from gmtool.progress import Progress

LAYOUT = "1"
"""Changed with what the files mean: those of another layout are never found."""

GIB = 2**30


@dataclass(frozen=True)
class FeatureCache:
    """Features in a folder. size: the bytes that they may take together; 0 keeps and finds none."""

    folder: Path
    size: int

    def load(self, key: str) -> Features | None:
        """The features of a key; None where they are not there, or damaged."""
        path = self._path(key)
        if not self.size or not path.is_file():
            return None
        try:
            features = features_of(read_tensors(path))
        except (UserError, KeyError, OSError):
            return None
        with suppress(OSError):
            os.utime(path)  # the least recently used ones go first
        return features

    def save(self, key: str, features: Features, progress: Progress) -> None:
        """Keep features, and remove the least recently used ones; a note where that cannot be done."""
        tensors = features.tensors()
        if sum(tensor.nbytes for tensor in tensors.values()) > self.size:
            return
        try:
            write_tensors(self._path(key), tensors)
            self._trim()
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            progress.note(f"features are not kept for the next time: {self.folder}: {reason.lower()}")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _trim(self) -> None:
        """Remove the least recently used features until the others fit."""
        files = [path for path in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{32}\.safetensors", path.name)]
        known = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in files), reverse=True)
        total = 0
        for _, size, path in known:
            total += size
            if total > self.size:
                path.unlink(missing_ok=True)


NO_CACHE = FeatureCache(Path(), 0)


def feature_cache(gib: float) -> FeatureCache:
    """This user's cache, limited to ``gib`` GiB (2^30 bytes)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("GMTOOL_CACHE") or Path(base) / "gmtool"
    return FeatureCache(Path(home) / "features", int(gib * GIB))


def feature_key(extractor: str, images: str, side: int) -> str:
    """The key of features: a digest of those of the extractor and of the images, and of their ``side`` in pixels."""
    return fingerprint([LAYOUT, extractor, images, str(side)])
