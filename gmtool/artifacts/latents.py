"""The file that ``gmtool encode`` writes: the latents of a set of images, and all that later stages need of them.

HDF5, with N samples of shape (C, H, W)::

    patches    (N, C, H, W) float16   the latents, one sample a chunk, not normalised
    cls        (N, D) float32         one descriptor an image: DINOv2's [CLS] token, or its stand-in
    labels     (N,) int64             index into classes; -1 where there is none
    names      (N,) UTF-8             the image's path relative to the image root
    flipped    (N,) bool              whether the sample is the image mirrored left to right
    classes    (n,) UTF-8             class names, none for a flat folder
    mean, var  (C, H, W) float64      mean and population variance of the patches over samples
    tokenizer/*                       the tokenizer's fitted arrays
    manifest   attribute              the record (`gmtool.artifacts.manifest`)

A file is laid out whole when it is created: its storage is allocated and its structure is on disk before the first
sample, so that writing samples changes raw data only and a process killed at any moment leaves a readable part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.hdf5 import Hdf5Reader, Hdf5Writer, Rows, allocate, one_line, open_hdf5
from gmtool.artifacts.manifest import Array, Input, Manifest, expect_kind, fingerprint, parse_manifest
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.mixture.running_moments import RunningMoments

MANIFEST = "manifest"
_UNFINISHED = ""
"""The fingerprint in the manifest of a file that is still being written."""
_MANIFEST_SLACK = 1024
"""Bytes by which the final manifest may be longer than the first one: it is rewritten in place."""
_REPAIR = "make it again with `gmtool encode`"
_ROWS_A_BLOCK = 4096
"""Rows held in memory at once where whole columns are read."""


class LatentsFile(Hdf5Reader):
    """A latents file, opened for reading. Its small parts are read at once, patches and descriptors on demand."""

    def __init__(self, path: Path, manifest: Manifest, file: h5py.File) -> None:
        super().__init__(path, _REPAIR)
        self.manifest = manifest
        self.shape: tuple[int, int, int] = file["patches"].shape[1:]
        self.descriptor_size: int = file["cls"].shape[1]
        self.labels: np.ndarray = file["labels"][:]
        self.flipped: np.ndarray = file["flipped"][:]
        self.classes: tuple[str, ...] = tuple(file["classes"].asstr()[:])
        self.mean: np.ndarray = file["mean"][:]
        self.var: np.ndarray = file["var"][:]
        self.tokenizer = _read_tokenizer(manifest, file)

    def __len__(self) -> int:
        return len(self.labels)

    def __enter__(self) -> LatentsFile:
        return self

    def patches(self, rows: Rows, room: np.ndarray | None = None) -> np.ndarray:
        """Latents float16 (n, C, H, W) of ``rows``, in their order. room: see `Hdf5Reader.read`."""
        return self.read("patches", rows, room)

    def descriptors(self, rows: Rows) -> np.ndarray:
        """Descriptors float32 (n, D) of ``rows``, in their order."""
        return self.read("cls", rows)

    def names(self) -> tuple[str, ...]:
        """Every sample's image, as a path relative to the image root."""
        return tuple(name.decode() for name in self.read("names", slice(None)))


def open_latents(path: Path) -> LatentsFile:
    """Open a latents file for reading.

    Raises UserError, naming the repair, when it is missing, unfinished, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        where = "is a folder, not a latents file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {where}: make latents with `gmtool encode IMAGES`")
    with open_hdf5(path, _REPAIR) as file:
        if MANIFEST not in file.attrs:
            raise UserError(f"{path} was not written by gmtool: make latents with `gmtool encode IMAGES`")
        manifest = _read_manifest(file)
        expect_kind(manifest, "latents", path)
        if manifest.fingerprint == _UNFINISHED:
            raise UserError(f"{path} is unfinished: run the same `gmtool encode` command again to finish it")
        try:
            for name, array in manifest.arrays.items():
                if file[name].shape != tuple(array.shape):
                    shapes = f"{name} is {file[name].shape}, not {tuple(array.shape)}"
                    raise UserError(f"{path} is not as long as its record says ({shapes}): {_REPAIR}")
            return LatentsFile(path, manifest, file)
        except (KeyError, OSError, AttributeError, IndexError) as error:
            raise UserError(f"{path} is damaged ({one_line(error)}): {_REPAIR}") from error


@dataclass(frozen=True)
class Provenance:
    """Where latents come from: the part of their manifest that their maker knows.

    stage: the command. config: its resolved settings. inputs: what it read. details: further JSON values.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def write_latents(
    path: Path,
    *,
    patches: np.ndarray | Iterable[np.ndarray],
    descriptors: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    tokenizer: TokenizerSpec,
    provenance: Provenance,
    flipped: np.ndarray | None = None,
) -> Manifest:
    """Write a whole latents file aside, then rename it to ``path``; return its manifest.

    patches: (N, C, H, W), or batches of it in order, N >= 1. descriptors: (N, D). labels: (N,). names: N texts.
    flipped: (N,), default none. Raises UserError when patches are not finite or overflow float16.
    """
    batches = iter([patches] if isinstance(patches, np.ndarray) else patches)
    first = next(batches)
    count = len(labels)
    moments = RunningMoments.empty(first.shape[1:])
    flipped = np.zeros(count, bool) if flipped is None else flipped
    with written_aside(path) as part:
        layout = Layout(
            count, first.shape[1:], descriptors.shape[1], tuple(classes), max(len(each.encode()) for each in names)
        )
        with LatentsWriter.create(part, layout, tokenizer, provenance) as writer:
            for batch in itertools.chain([first], batches):
                rows = slice(moments.count, moments.count + len(batch))
                stored = to_float16(batch, str(path))
                writer.write(rows.start, stored, descriptors[rows], labels[rows], names[rows], flipped[rows])
                moments = moments.update(stored)
            if moments.count != count:
                raise ValueError(f"{moments.count} patches for {count} labels")
            return writer.finish(count, moments)


def to_float16(patches: np.ndarray, whose: str) -> np.ndarray:
    """Latents (B, ...) as the file stores them. Raises UserError when one is NaN, infinite or beyond float16."""
    with np.errstate(over="ignore"):
        stored = patches.astype(np.float16)
    if not np.isfinite(stored).all():
        kind = "beyond the range of float16" if np.isfinite(patches).all() else "not finite (NaN or infinite)"
        raise UserError(
            f"the latents of {whose} are {kind}: encode with --precision float32, and check the tokenizer's weights"
        )
    return stored


@dataclass(frozen=True)
class Layout:
    """Sizes of a file: samples at most, (C, H, W) and D of a sample, class names, bytes of the longest name."""

    capacity: int
    shape: tuple[int, int, int]
    descriptor_size: int
    classes: tuple[str, ...]
    name_size: int

    def arrays(self, count: int) -> dict[str, Array]:
        """Shape, type and unit of the arrays of a file of ``count`` samples, for the manifest."""
        return {
            "patches": Array((count, *self.shape), "float16", "tokenizer output, not normalised"),
            "cls": Array((count, self.descriptor_size), "float32", "tokenizer descriptor"),
            "labels": Array((count,), "int64", "index into classes, -1: none"),
            "names": Array((count,), "utf-8", "path relative to the image root"),
            "flipped": Array((count,), "bool", "mirrored left to right"),
            "classes": Array((len(self.classes),), "utf-8", "class name"),
            "mean": Array(self.shape, "float64", "as patches"),
            "var": Array(self.shape, "float64", "patches squared, population variance"),
        }

    def bytes(self) -> int:
        """Size of the file on disk: samples, the index of their chunks, and a quarter MiB of other things."""
        values = int(np.prod(self.shape))
        sample = 2 * values + 4 * self.descriptor_size + 8 + 1 + self.name_size
        return self.capacity * (sample + 64) + 16 * values + 2**18


class LatentsWriter(Hdf5Writer):
    """A latents file being written. ``create`` lays it out on disk, ``reopen`` goes on with one that was laid out."""

    datasets = ("patches", "cls", "labels", "flipped", "names", "mean", "var")

    @classmethod
    def create(cls, path: Path, layout: Layout, tokenizer: TokenizerSpec, provenance: Provenance) -> LatentsWriter:
        """Lay out a new file; its structure is on disk when this returns."""
        manifest = Manifest(
            kind="latents",
            stage=provenance.stage,
            fingerprint=_UNFINISHED,
            config=provenance.config,
            inputs=provenance.inputs,
            arrays=layout.arrays(layout.capacity),
            details={
                **provenance.details,
                "tokenizer": {"name": tokenizer.name, "settings": dict(tokenizer.settings)},
                "samples": layout.capacity,
            },
        )
        # the earliest file format keeps no "open for writing" mark, which would make a killed writer's file unreadable
        file = h5py.File(path, "w", libver="earliest")
        rows, shape = layout.capacity, layout.shape
        block = min(rows, _ROWS_A_BLOCK)
        allocate(file, "patches", (rows, *shape), np.dtype(np.float16), (1, *shape))
        allocate(file, "cls", (rows, layout.descriptor_size), np.dtype(np.float32), (min(rows, 256), None))
        allocate(file, "labels", (rows,), np.dtype(np.int64), (block,))
        allocate(file, "flipped", (rows,), np.dtype(bool), (block,))
        allocate(file, "names", (rows,), h5py.string_dtype("utf-8", max(layout.name_size, 1)), (block,))
        file.create_dataset(
            "classes", data=list(layout.classes), shape=(len(layout.classes),), dtype=h5py.string_dtype()
        )
        for name in ("mean", "var"):
            file.create_dataset(name, data=np.zeros(shape))
        for name, array in tokenizer.arrays.items():
            file.create_dataset(f"tokenizer/{name}", data=array)
        text = manifest.to_json().encode()
        room = h5py.string_dtype("utf-8", len(text) + _MANIFEST_SLACK)
        file.attrs.create(MANIFEST, text, dtype=room)
        file.close()  # which also drops the index of all chunks from memory
        writer = cls.reopen(path)
        writer.flush()
        return writer

    @property
    def tokenizer(self) -> TokenizerSpec:
        """The tokenizer of the file."""
        return _read_tokenizer(_read_manifest(self._file), self._file)

    def patches(self, rows: slice) -> np.ndarray:
        """Latents float16 (n, C, H, W) written earlier."""
        return self._file["patches"][rows]

    def write(
        self,
        row: int,
        patches: np.ndarray,
        descriptors: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        flipped: np.ndarray,
    ) -> None:
        """Write samples from ``row`` on: float16 patches (B, C, H, W), descriptors (B, D), and B of each other."""
        rows = np.s_[row : row + len(patches)]
        self._file["patches"][rows] = patches
        self._file["cls"][rows] = descriptors
        self._file["labels"][rows] = labels
        self._file["flipped"][rows] = flipped
        self._file["names"][rows] = [each.encode() for each in names]

    def finish(self, count: int, moments: RunningMoments, details: Mapping[str, Any] | None = None) -> Manifest:
        """Cut the file to its ``count`` samples, add the moments and the final manifest, flush; return the manifest."""
        if count < len(self._file["patches"]):
            for name in ("patches", "cls", "labels", "flipped", "names"):
                self._file[name].resize(count, axis=0)
        self._file["mean"][...] = moments.mean
        self._file["var"][...] = moments.variance
        first = _read_manifest(self._file)
        manifest = replace(
            first,
            fingerprint=self._fingerprint(),
            arrays={name: replace(array, shape=self._file[name].shape) for name, array in first.arrays.items()},
            details={**first.details, "samples": count, **(details or {})},
        )
        text = manifest.to_json().encode()
        attribute = self._file.attrs.get_id(MANIFEST)
        attribute.write(np.array(text, dtype=attribute.dtype))
        self.flush()
        return manifest

    def _fingerprint(self) -> str:
        """Digest of the content; the moments stand for the patches, since they depend on each of them."""
        tokenizer = self.tokenizer

        def parts() -> Iterator[str | np.ndarray]:
            for name in ("names", "labels", "flipped", "cls"):
                values = self._file[name]
                for start in range(0, len(values), _ROWS_A_BLOCK):
                    yield values[start : start + _ROWS_A_BLOCK]
            yield self._file["mean"][:]
            yield self._file["var"][:]
            yield repr((tokenizer.name, sorted(tokenizer.settings.items())))
            for _, array in sorted(tokenizer.arrays.items()):
                yield array

        return fingerprint(parts())


def _read_manifest(file: h5py.File) -> Manifest:
    """The manifest of an open file. It has a fixed length, which h5py gives as bytes, to be rewritten in place."""
    return parse_manifest(file.attrs[MANIFEST], Path(file.filename))


def _read_tokenizer(manifest: Manifest, file: h5py.File) -> TokenizerSpec:
    recorded = manifest.details["tokenizer"]
    arrays = {name: values[...] for name, values in file["tokenizer"].items()} if "tokenizer" in file else {}
    return TokenizerSpec(recorded["name"], recorded["settings"], arrays)
