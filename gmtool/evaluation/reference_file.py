"""Reference files as ADM's evaluator reads and writes them: statistics of all images, and some of the images.

mu, sigma      mean and covariance of the features of all images, float64
mu_s, sigma_s  the same of spatial features (sFID), where the extractor has them
arr_0          at most 10,000 of the images, evenly spaced, uint8 (N, S, S, 3): precision and recall need them
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifacts.files import check_writable, written_aside
from gmtool.errors import UserError
from gmtool.evaluation.features import Features, feature_statistics
from gmtool.evaluation.metric import REFERENCES
from gmtool.evaluation.references import Reference

BATCH = 64
"""Images in memory at once."""


def check_reference_file(path: Path) -> None:
    """Raise UserError unless a reference can be written to ``path``, where nothing may be."""
    check_writable(path, "reference file")
    if path.exists():
        raise UserError(f"--write-reference {path} exists: choose another name, or remove it")
    if path.suffix.lower() != ".npz":
        raise UserError(f"--write-reference {path}: give a name that ends in .npz")


def write_reference_file(path: Path, features: Features, pictures: Reference | None, side: int) -> None:
    """Write the statistics of features, and some of the pictures that they are of, where these are known.

    side: of the pictures, in pixels. Raises OSError when the disk is full, UserError for pictures that cannot be read.
    """
    with written_aside(path) as part, zipfile.ZipFile(part, "w") as archive:
        for names, vectors in ((("mu", "sigma"), features.vectors), (("mu_s", "sigma_s"), features.spatial)):
            if vectors is not None:
                statistics = feature_statistics(vectors)
                _write(archive, names[0], statistics.mean)
                _write(archive, names[1], statistics.covariance)
        if pictures is not None and len(pictures):
            some = pictures.thinned(-(-len(pictures) // REFERENCES))
            shape = (len(some), side, side, 3)
            with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for batch in some.batches(side, BATCH, range(len(some))):
                    stream.write(batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes())


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray[Any, Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
