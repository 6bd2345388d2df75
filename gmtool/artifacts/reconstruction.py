"""The folder that ``gmtool reconstruct`` writes.

reconstruction/reconstruction.json  the manifest, whose details are the report
reconstruction/images.csv           a row per image
reconstruction/pairs.png            the first images, each left of its reconstruction
reconstruction/worst.png            the worst images, each left of its reconstruction
"""

from __future__ import annotations

from pathlib import Path

from gmtool.artifacts.files import is_part
from gmtool.artifacts.manifest import RECORDS

RECORD, TABLE = RECORDS["reconstruction"], "images.csv"
PAIRS, WORST = "pairs.png", "worst.png"
OWN = frozenset({RECORD, TABLE, PAIRS, WORST, ".DS_Store", "Thumbs.db"})
"""All files of the folder, and those that file managers leave."""


def strangers(folder: Path) -> tuple[str, ...]:
    """What is in the folder of a reconstruction, by its name, that ``gmtool reconstruct`` did not write."""
    others = (path for path in folder.iterdir() if path.name not in OWN)
    return tuple(sorted(path.name for path in others if not is_part(path)))
