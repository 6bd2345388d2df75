"""The folder that ``gmtool sweep`` writes.

sweep/sweep.json            the manifest, whose details are the table (`gmtool.evaluation.sweep_table`)
sweep/sweep.csv             the same rows for a spreadsheet
sweep/score.png             score against network evaluations
sweep/precision-recall.png  precision against recall
sweep/saturation.png        saturation of the images
"""

from __future__ import annotations

from pathlib import Path

from gmtool.artifacts.files import is_part
from gmtool.artifacts.manifest import RECORDS

MANIFEST, TABLE = RECORDS["sweep"], "sweep.csv"
SCORE, PRECISION_RECALL, SATURATION = "score.png", "precision-recall.png", "saturation.png"
OWN = frozenset({MANIFEST, TABLE, SCORE, PRECISION_RECALL, SATURATION, ".DS_Store", "Thumbs.db"})
"""All files of the folder, and those that file managers leave."""


def strangers(folder: Path) -> tuple[str, ...]:
    """What is in the folder of a sweep, by its name, that ``gmtool sweep`` did not write."""
    others = (path for path in folder.iterdir() if path.name not in OWN)
    return tuple(sorted(path.name for path in others if not is_part(path)))
