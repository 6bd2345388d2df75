"""The folder that ``gmtool sample`` writes: pictures, the field's ``samples.npz``, the latents, a grid, the record.

samples/sampling.json   the manifest
samples/samples.npz     arr_0 uint8 (N, S, S, 3) RGB, arr_1 int64 (N,) labels; absent without a decoder
samples/latents.h5      the generated latents, a latents file like any other
samples/images/         the same images, 000000.png and on; samples/grid.png, a grid of the first ones
samples/metrics.json    what `gmtool eval` found
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmtool.artifacts.files import is_part
from gmtool.artifacts.manifest import RECORDS, Manifest, expect_kind, parse_manifest
from gmtool.artifacts.npz import npz_header, read_npz
from gmtool.errors import UserError, install

MANIFEST, IMAGES, PICTURES, LATENTS, GRID = RECORDS["samples"], "samples.npz", "images", "latents.h5", "grid.png"
METRICS = "metrics.json"

_OF_THE_SYSTEM = (".DS_Store", "Thumbs.db")
"""Files that file managers leave in the folders that they show."""
REPAIR = "run gmtool sample again"
"""The remedy for damaged samples."""


@dataclass(frozen=True)
class SamplesFolder:
    """A folder of samples, opened: its place and its record."""

    path: Path
    manifest: Manifest

    @property
    def latents(self) -> Path:
        """The latents file of the samples, which also holds the tokenizer."""
        return self.path / LATENTS

    def images(self) -> np.ndarray:
        """All images, uint8 (N, S, S, 3). Raises UserError when they were never decoded, or the file is damaged."""
        self.image_shape()
        return read_npz(self.path / IMAGES, "arr_0", REPAIR)

    def image_shape(self) -> tuple[int, int]:
        """Number N and side S of the images, in pixels, without reading them. Raises what `images` does."""
        file = self.path / IMAGES
        if not file.is_file():
            raise UserError(
                f"{self.path} holds latents but no images: sample again with --decoder (if diffusers is missing, "
                f"{install('rae')})"
            )
        header = npz_header(file, "arr_0", REPAIR)
        if header is None or header.dtype != np.uint8 or header.shape[1:] != (*header.shape[1:2] * 2, 3):
            raise UserError(f"{file} is damaged (it holds no square images of 8 bits): {REPAIR}")
        known = self.manifest.arrays.get("arr_0")
        if known is not None and known.shape != header.shape:
            raise UserError(f"{file} is damaged (it holds {header.shape[0]} images, not {known.shape[0]}): {REPAIR}")
        return header.shape[0], header.shape[1]


def open_samples(path: Path) -> SamplesFolder:
    """Open a folder of samples. Raises UserError when it is missing or something else, or its record is damaged."""
    record = path / MANIFEST
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: make samples with `gmtool sample`")
    if not record.is_file():
        raise UserError(f"{path} holds no {MANIFEST}: make samples with `gmtool sample`")
    manifest = parse_manifest(record.read_bytes(), record)
    expect_kind(manifest, "samples", path)
    return SamplesFolder(path, manifest)


def strangers(folder: Path) -> tuple[str, ...]:
    """What is in a folder of samples, by its path in it, that neither ``gmtool sample`` nor ``gmtool eval`` wrote."""
    own = {MANIFEST, IMAGES, LATENTS, GRID, METRICS, *_OF_THE_SYSTEM}
    foreign = [path for path in folder.iterdir() if path.name not in own and not is_part(path)]
    pictures = folder / PICTURES
    if pictures in foreign and pictures.is_dir() and not pictures.is_symlink():
        foreign.remove(pictures)
        foreign += [
            path
            for path in pictures.iterdir()
            if not re.fullmatch(r"\d{6,}\.png", path.name) and path.name not in _OF_THE_SYSTEM
        ]
    return tuple(sorted(str(path.relative_to(folder)) for path in foreign))
