"""The file that ``gmtool encode`` writes: the latents of a set of images, and all that later stages need of them.

HDF5, with N samples of shape (C, H, W)::

    patches    (N, C, H, W) float16   the latents, one after another, not normalised
    cls        (N, D) float32         one descriptor per image: DINOv2's [CLS] token, or its stand-in
    labels     (N,) int64             index into classes; -1 where there is none
    names      (N,) UTF-8             the image's path relative to the image root
    flipped    (N,) bool              whether the sample is the image mirrored left to right
    classes    (n,) UTF-8             class names, none for a flat folder
    mean, var  (C, H, W) float64      mean and population variance of the patches over samples
    tokenizer/*                       the tokenizer's fitted arrays
    checksums/patches, checksums/cls  (N,) uint64, of their rows (`gmtool.artifacts.hdf5`)
    manifest   attribute              the record (`gmtool.artifacts.manifest`)

Where images were skipped the first five are longer than the N of the manifest: what lies beyond is not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gmtool.artifacts.files import reading, written_aside
from gmtool.artifacts.hdf5 import (
    ROWS_AT_ONCE,
    Hdf5Reader,
    Hdf5Writer,
    Rows,
    allocate,
    allocate_manifest,
    allocate_rows,
    expect_arrays,
    open_artifact,
    read_column,
    read_manifest,
)
from gmtool.artifacts.manifest import Array, Input, Manifest, fingerprint
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.mixture.running_moments import RunningMoments

_UNFINISHED = ""
"""The fingerprint in the manifest of a file that is still being written."""
_REPAIR = "remove it, and make it again with `gmtool encode`"
_ENCODE_AGAIN = "encode with --precision float32, and check the tokenizer's weights"
"""The remedy for latents that the file cannot hold."""
_SAMPLES = ("patches", "cls", "labels", "flipped", "names")
"""The datasets with a row per sample."""
_CONTENT = ("names", "labels", "flipped", "cls")
"""The datasets that the fingerprint covers; the moments, which depend on every patch, stand for the patches."""


class LatentsFile(Hdf5Reader):
    """A latents file, opened for reading. Its small parts are read at once, patches and descriptors on demand."""

    def __init__(self, path: Path, manifest: Manifest, file: h5py.File) -> None:
        super().__init__(path, manifest, _REPAIR)
        arrays = manifest.arrays
        self.shape: tuple[int, int, int] = file["patches"].shape[1:]
        self.descriptor_size: int = file["cls"].shape[1]
        self.labels: np.ndarray = read_column(file, "labels", arrays)
        self.flipped: np.ndarray = read_column(file, "flipped", arrays)
        self.classes: tuple[str, ...] = tuple(name.decode() for name in read_column(file, "classes", arrays))
        self.mean: np.ndarray = read_column(file, "mean", arrays)
        self.var: np.ndarray = read_column(file, "var", arrays)
        self.tokenizer = _read_tokenizer(manifest, file)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.var).all() and (self.var >= 0).all()):
            raise ValueError("its mean or variance is NaN, infinite or negative")
        if ((self.labels < -1) | (self.labels >= max(len(self.classes), 1))).any():
            raise ValueError(f"a label is none of its {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def __enter__(self) -> LatentsFile:
        return self

    def patches(self, rows: Rows, out: np.ndarray | None = None) -> np.ndarray:
        """Latents float16 (n, C, H, W) of ``rows``, in their order. out, and what is raised: see `Hdf5Reader.read`."""
        return self.read("patches", rows, out)

    def descriptors(self, rows: Rows) -> np.ndarray:
        """Descriptors float32 (n, D) of ``rows``, in their order. Raises what `Hdf5Reader.read` does."""
        return self.read("cls", rows)

    def names(self) -> tuple[str, ...]:
        """Every sample's image, as a path relative to the image root. Raises UserError when the file is damaged."""
        with reading(self.path, _REPAIR):
            return tuple(name.decode() for name in self.column("names"))

    def image_numbers(self) -> np.ndarray:
        """A number for every sample's image, (N,) int64 from 0: mirrored copies have that of their image.

        Raises UserError when the file is damaged.
        """
        if not self.flipped.any():
            return np.arange(len(self))
        return np.unique(np.array(self.names()), return_inverse=True)[1]

    def verify_content(self) -> None:
        """Raise UserError unless names, labels, descriptors, moments and tokenizer are those that were written.

        This reads all but the patches, and holds for files of any version.
        """
        columns = {
            "names": _blocks_of(self.column("names")),
            "labels": _blocks_of(self.labels),
            "flipped": _blocks_of(self.flipped),
            "cls": (self.descriptors(rows) for rows in _row_blocks(len(self))),
        }
        if _content_fingerprint(columns, self.mean, self.var, self.tokenizer) != self.manifest.fingerprint:
            raise UserError(f"{self.path} was changed since it was written: {_REPAIR}")

    def verify(self) -> None:
        """`verify_content`, and read all patches.

        Raises UserError, also unless these are finite and have the file's mean and variance.
        """
        self.verify_content()
        moments = RunningMoments.empty(self.shape)
        for block in self.blocks("patches"):
            if not np.isfinite(block).all():
                raise UserError(f"{self.path} holds latents that are not finite: {_REPAIR}")
            moments = moments.update(block)
        for computed, known in ((moments.mean, self.mean), (moments.variance, self.var)):
            if not np.allclose(computed, known, rtol=1e-9, atol=1e-12):
                raise UserError(f"the latents of {self.path} were changed since they were written: {_REPAIR}")


def open_latents(path: Path) -> LatentsFile:
    """Open a latents file for reading.

    Raises UserError, naming the repair, when it is missing, unfinished, damaged, or something else.
    """
    path = Path(path)
    file, manifest = open_artifact(path, "latents", _REPAIR)
    with file:
        if manifest.fingerprint == _UNFINISHED:
            raise UserError(f"{path} is unfinished: run the same `gmtool encode` command again to finish it")
        with reading(path, _REPAIR):
            expect_arrays(file, path, manifest.arrays, _SAMPLES, _REPAIR)
            return LatentsFile(path, manifest, file)


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
    flipped: (N,) bool, default none. Raises UserError when patches are not finite or overflow float16, ValueError when
    there are not N of them, MachineError on a full disk.
    """
    batches = iter([patches] if isinstance(patches, np.ndarray) else patches)
    first = next(batches)
    count = len(labels)
    moments = RunningMoments.empty(first.shape[1:])
    flipped = np.zeros(count, bool) if flipped is None else flipped
    with written_aside(path) as part:
        layout = Layout(
            count, first.shape[1:], descriptors.shape[1], tuple(classes), max(len(name.encode()) for name in names)
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


def to_float16(patches: np.ndarray, whose: str, repair: str = _ENCODE_AGAIN) -> np.ndarray:
    """Latents (B, ...) as the file stores them. whose, repair: for messages.

    Raises UserError when one is NaN, infinite or beyond float16.
    """
    with np.errstate(over="ignore"):
        stored = patches.astype(np.float16)
    if not np.isfinite(stored).all():
        kind = "beyond the range of float16" if np.isfinite(patches).all() else "not finite (NaN or infinite)"
        raise UserError(f"the latents of {whose} are {kind}: {repair}")
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
        """Size of the file on disk: samples, their checksums, and a quarter MiB of other things."""
        values = int(np.prod(self.shape))
        sample = 2 * values + 8 + 4 * self.descriptor_size + 8 + 8 + 1 + self.name_size
        return self.capacity * sample + 16 * values + 2**18


class LatentsWriter(Hdf5Writer):
    """A latents file being written. ``create`` lays it out on disk, ``reopen`` resumes one that was laid out."""

    rows = _SAMPLES

    @classmethod
    def create(cls, path: Path, layout: Layout, tokenizer: TokenizerSpec, provenance: Provenance) -> LatentsWriter:
        """Lay out a new file; its structure is on disk when this returns. Raises MachineError on a full disk."""
        fitted = {
            f"tokenizer/{name}": Array(array.shape, str(array.dtype), "the tokenizer's fitted state")
            for name, array in tokenizer.arrays.items()
        }
        manifest = Manifest(
            kind="latents",
            stage=provenance.stage,
            fingerprint=_UNFINISHED,
            config=provenance.config,
            inputs=provenance.inputs,
            arrays={**layout.arrays(layout.capacity), **fitted},
            details={
                **provenance.details,
                "tokenizer": {"name": tokenizer.name, "settings": dict(tokenizer.settings)},
                "samples": layout.capacity,
            },
        )
        names, classes = (
            h5py.string_dtype("utf-8", max(size, 1))
            for size in (layout.name_size, max((len(name.encode()) for name in layout.classes), default=1))
        )

        def build(file: h5py.File) -> None:
            count, shape = layout.capacity, layout.shape
            allocate_rows(file, "patches", (count, *shape), np.dtype(np.float16))
            allocate_rows(file, "cls", (count, layout.descriptor_size), np.dtype(np.float32))
            allocate(file, "labels", (count,), np.dtype(np.int64))
            allocate(file, "flipped", (count,), np.dtype(bool))
            allocate(file, "names", (count,), names)
            encoded = np.array([name.encode() for name in layout.classes], classes)
            file.create_dataset("classes", data=encoded, dtype=classes)
            for name in ("mean", "var"):
                file.create_dataset(name, data=np.zeros(shape))
            for name, array in tokenizer.arrays.items():
                file.create_dataset(f"tokenizer/{name}", data=array)
            allocate_manifest(file, manifest)

        return cls.lay_out(path, layout.bytes(), build)

    @property
    def tokenizer(self) -> TokenizerSpec:
        """The tokenizer of the file."""
        return _read_tokenizer(self._manifest(), self._file)

    def patches(self, rows: slice) -> np.ndarray:
        """Latents float16 (n, C, H, W) that were written earlier, of consecutive rows."""
        return self._read_rows("patches", rows.start, rows.stop)

    def write(
        self,
        row: int,
        patches: np.ndarray,
        descriptors: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        flipped: np.ndarray,
    ) -> None:
        """Write samples from ``row`` on: float16 patches (B, C, H, W), descriptors (B, D), and B of each other.

        Raises OSError where the disk fails.
        """
        self._write_rows("patches", row, patches)
        self._write_rows("cls", row, descriptors)
        self._write_rows("labels", row, labels)
        self._write_rows("flipped", row, flipped)
        self._write_rows("names", row, np.array([name.encode() for name in names], np.bytes_))

    def finish(self, count: int, moments: RunningMoments, details: Mapping[str, Any] | None = None) -> Manifest:
        """Record that the file holds ``count`` samples, add the moments and the final manifest, flush; return it.

        moments: of the patches as they are stored. details: further ones.
        """
        self._file["mean"][...] = moments.mean
        self._file["var"][...] = moments.variance
        self._file.flush()
        first = self._manifest()
        columns = {name: self._blocks(name, count) for name in _CONTENT}
        return self._write_manifest(
            replace(
                first,
                fingerprint=_content_fingerprint(columns, moments.mean, moments.variance, self.tokenizer),
                arrays={
                    name: replace(array, shape=(count, *array.shape[1:])) if name in _SAMPLES else array
                    for name, array in first.arrays.items()
                },
                details={**first.details, "samples": count, **(details or {})},
            )
        )

    def _blocks(self, name: str, count: int) -> Iterator[np.ndarray]:
        return (self._read_rows(name, rows.start, rows.stop) for rows in _row_blocks(count))

    def _manifest(self) -> Manifest:
        return read_manifest(self._file, Path(self._file.filename))


def _row_blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE))


def _blocks_of(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[rows] for rows in _row_blocks(len(values)))


def _content_fingerprint(
    columns: Mapping[str, Iterator[np.ndarray]], mean: np.ndarray, var: np.ndarray, tokenizer: TokenizerSpec
) -> str:
    """Digest of the content: blocks of `ROWS_AT_ONCE` rows of each of `_CONTENT`, the moments, the tokenizer."""

    def parts() -> Iterator[str | np.ndarray]:
        for name in _CONTENT:
            yield from columns[name]
        yield mean
        yield var
        yield repr((tokenizer.name, sorted(tokenizer.settings.items())))
        for _, array in sorted(tokenizer.arrays.items()):
            yield array

    return fingerprint(parts())


def _read_tokenizer(manifest: Manifest, file: h5py.File) -> TokenizerSpec:
    recorded = manifest.details["tokenizer"]
    names = tuple(file["tokenizer"]) if "tokenizer" in file else ()
    arrays = {name: read_column(file, f"tokenizer/{name}", manifest.arrays) for name in names}
    return TokenizerSpec(recorded["name"], recorded["settings"], arrays)
