"""Sets of images that are scored or compared with: a folder or archive, a latents file, an .npz, samples.

Every form gives its images in batches, in bounded memory; a latents file also holds descriptors, and an .npz may hold
(or be nothing but) the means and covariances of features of a larger set, as ADM's reference files do: ``mu`` and
``sigma``, and ``mu_s`` and ``sigma_s`` of spatial features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.run import CONFIG, RunFolder, open_run
from gmtool.artifacts.samples import MANIFEST, open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.fraction import part_of_data
from gmtool.data.image_sets import ImageSet, find_images
from gmtool.data.images import image_batches
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.evaluation.array_reference import ArrayReference, open_npz, samples_images, wrong_size
from gmtool.evaluation.cache import NO_CACHE, FeatureCache, feature_key
from gmtool.evaluation.extractors.tokenizer import TokenizerExtractor
from gmtool.evaluation.features import (
    Extractor,
    Features,
    expect_finite,
    extract_features,
    gather_features,
)
from gmtool.progress import Progress
from gmtool.tokenizers.base import is_grey
from gmtool.tokenizers.build import build_tokenizer, decodes_exactly, takes_grey


class Reference(Protocol):
    """Images, or what is known of them."""

    @property
    def path(self) -> Path:
        """Path of the reference."""

    @property
    def kind(self) -> str:
        """Kind of reference, in words."""

    @property
    def fingerprint(self) -> str:
        """Digest of its content; of an image folder, of the names and sizes of its files."""

    @property
    def digest(self) -> str:
        """Digest of exactly the images that it gives."""

    def __len__(self) -> int:
        """Number of images."""

    def batches(self, side: int, batch_size: int, rows: range) -> Iterator[Tensor]:
        """The images ``rows``, consecutive ones, as uint8 (B, 3, side, side).

        Raises UserError for images that cannot be read, or that are not resized and have another size.
        """

    def thinned(self, step: int) -> Reference:
        """Every ``step``-th image alone."""


@dataclass(frozen=True)
class ImagesReference:
    """Images of a folder or archive, those at ``rows``, cropped to the samples' size as ``gmtool encode`` does."""

    path: Path
    images: ImageSet
    rows: np.ndarray

    kind = "images"

    @property
    def fingerprint(self) -> str:
        """See `Reference`."""
        return self.images.fingerprint

    @property
    def digest(self) -> str:
        """See `Reference`."""
        return fingerprint(["cropped", self.images.fingerprint, self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, side: int, batch_size: int, rows: range) -> Iterator[Tensor]:
        """See `Reference`."""
        chosen = self.rows[rows.start : rows.stop]
        for batch in image_batches(self.images, side, batch_size, rows=chosen, skip_bad=True):
            for bad in batch.bad:
                raise UserError(
                    f"{self.path}: {bad.name} cannot be read as an image ({bad.reason}): repair or remove it"
                )
            yield torch.from_numpy(batch.images)

    def thinned(self, step: int) -> ImagesReference:
        """See `Reference`."""
        return replace(self, rows=self.rows[::step])


@dataclass(frozen=True)
class LatentsReference:
    """A latents file, every ``step``-th row of it: its descriptors, and the images that it was made from."""

    path: Path
    file: LatentsFile
    step: int = 1

    kind = "latents"

    @property
    def fingerprint(self) -> str:
        """See `Reference`."""
        return self.file.manifest.fingerprint

    @property
    def digest(self) -> str:
        """See `Reference`."""
        return fingerprint(["decoded", self.fingerprint, str(self.step)])

    def __len__(self) -> int:
        return -(-len(self.file) // self.step)

    def descriptors(self) -> Tensor:
        """The descriptors of all rows, (N, D) float32."""
        return torch.from_numpy(self.file.descriptors(slice(None, None, self.step)))

    def thinned(self, step: int) -> LatentsReference:
        """See `Reference`."""
        return replace(self, step=self.step * step)

    def batches(self, side: int, batch_size: int, rows: range) -> Iterator[Tensor]:
        """See `Reference`: the decoded latents."""
        tokenizer = build_tokenizer(self.file.tokenizer, torch.device("cpu"), "float32")
        if tokenizer.image_size != side:
            raise wrong_size(self.path, (tokenizer.image_size,) * 2, side)
        parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        return (tokenizer.decode(self.patches(part)).cpu() for part in parts)

    def patches(self, rows: range) -> Tensor:
        """The latents ``rows``, consecutive ones, (B, C, H, W) float32."""
        part = slice(rows.start * self.step, rows.stop * self.step, self.step)
        return torch.from_numpy(self.file.patches(part)).float()

    def pictures(self) -> LatentsReference | ImagesReference:
        """The source of the images: the latents if they decode exactly (``pixels``), else the encoded images.

        Raises UserError when those images are gone or have changed.
        """
        if decodes_exactly(self.file.tokenizer):
            return self
        recorded = self.file.manifest.input("images")
        if recorded is None or not Path(recorded.path).exists():
            where = "are not recorded" if recorded is None else f"are no longer at {recorded.path}"
            raise UserError(f"the images that {self.path} was made from {where}: give real images with --reference")
        images = find_images(Path(recorded.path))
        if not images.is_known_by(recorded.fingerprint):
            raise UserError(f"{recorded.path} has changed since {self.path} was made from it: give it as --reference")
        encoded = set(self.file.names())
        rows = np.array([row for row, name in enumerate(images.names) if name in encoded], dtype=np.int64)
        return ImagesReference(images.root, images, rows[:: self.step])


def open_reference(path: Path) -> ImagesReference | ArrayReference | LatentsReference:
    """Open what ``--reference`` names. Raises UserError when it is missing, damaged or nothing of the kind."""
    if not path.exists():
        raise UserError(
            f"--reference {path} does not exist: give a folder or archive of images, a latents file or .npz"
        )
    if path.is_file() and path.suffix.lower() == ".npz":
        return open_npz(path, f"--reference {path}")
    if path.is_file() and (path.suffix.lower() in (".h5", ".hdf5") or h5py.is_hdf5(path)):
        return LatentsReference(path, open_latents(path))
    if (path / MANIFEST).is_file():  # whose pictures also include a grid of themselves
        return samples_images(open_samples(path))
    if (path / CONFIG).is_file():
        raise UserError(f"--reference {path} is a training run, not real images: give a folder or archive of images")
    images = find_images(path)
    return ImagesReference(path, images, np.arange(len(images)))


class Made(Protocol):
    """A run, or samples: its place and its record, which names the latents that the run was trained on."""

    @property
    def path(self) -> Path:
        """Its path."""

    @property
    def manifest(self) -> Manifest:
        """The manifest."""


def _named(made: Made, role: str) -> RunFolder | None:
    """What a record names as ``run`` or ``teacher``; None where it names none. Raises UserError when it is gone."""
    known = made.manifest.input(role)
    if known is None:
        return None
    if not Path(known.path).exists():
        raise UserError(f"the {role} of {made.path}, {known.path}, is gone: give real images with --reference")
    return open_run(Path(known.path))


def _run_that_saw_images(made: Made) -> Made:
    """A run, or the run of samples; of a student without data its teacher. Samples that name no run are their own.

    Raises UserError when that run is gone.
    """
    run = made if isinstance(made, RunFolder) else _named(made, "run") or made
    if isinstance(run, RunFolder) and run.method.student is not None and run.method.student.data_free:
        return _named(run, "teacher") or run
    return run


def training_input(made: Made) -> Input | None:
    """The record of the latents that a run, or the run of samples, was trained on; a student without data, its teacher.

    None where none is recorded. Raises UserError when a student's teacher is gone.
    """
    return made.manifest.input("latents") or _run_that_saw_images(made).manifest.input("latents")


def open_training_latents(made: Made) -> LatentsReference:
    """The latents of `training_input`. Raises UserError when they, or a student's teacher, are gone or changed."""
    recorded = training_input(made)
    if recorded is None:
        raise UserError(f"{made.path} does not say what its run was trained on: give real images with --reference")
    path = Path(recorded.path)
    if not path.exists():
        raise UserError(f"the run was trained on {path}, which is gone: give real images with --reference")
    file = open_latents(path)
    if file.manifest.fingerprint != recorded.fingerprint:
        raise UserError(f"{path} is not what the run was trained on any more: give real images with --reference")
    return LatentsReference(path, file)


def trained_rows(made: Made, latents: LatentsFile) -> np.ndarray:
    """Rows (n,) int64 of the latents of `training_input` that were trained on, ascending.

    Raises UserError when the run of samples, or a student's teacher, is gone.
    """
    run = _run_that_saw_images(made)
    return part_of_data(latents, *(run.part if isinstance(run, RunFolder) else (1.0, 0)))


def trained_among(reference: Reference, made: Made) -> np.ndarray:
    """Which of a reference's images a run, or the run of samples, was trained on: their indices (n,), ascending.

    Known of that run's latents and of the images that these were made from; none of anything else, or of what is gone.
    """
    none = np.zeros(0, np.int64)
    try:
        file = open_training_latents(made).file
        rows = trained_rows(made, file)
    except UserError:
        return none
    if isinstance(reference, LatentsReference) and reference.fingerprint == file.manifest.fingerprint:
        return np.flatnonzero(np.isin(np.arange(0, len(file), reference.step), rows))
    encoded = file.manifest.input("images")
    if not isinstance(reference, ImagesReference) or encoded is None:
        return none
    if not reference.images.is_known_by(encoded.fingerprint):
        return none
    names = file.names()
    trained = {names[row] for row in rows}
    return np.flatnonzero([reference.images.names[row] in trained for row in reference.rows])


def same_tokenizer(first: TokenizerSpec, second: TokenizerSpec) -> bool:
    """Whether descriptors by the two may be compared: equal names, settings and fitted arrays."""
    return (
        first.name == second.name
        and dict(first.settings) == dict(second.settings)
        and first.arrays.keys() == second.arrays.keys()
        and all(np.array_equal(array, second.arrays[name]) for name, array in first.arrays.items())
    )


def reference_features(
    reference: Reference,
    extractor: Extractor,
    side: int,
    batch_size: int,
    world: World,
    progress: Progress,
    cache: FeatureCache = NO_CACHE,
) -> Features:
    """Features of the reference's images at the samples' size ``side``; descriptors in a latents file are not remade.

    Of several processes each takes its share, and the first has all in the end. Raises UserError when those descriptors
    are another tokenizer's, when the images of latents are gone, and as `image_features` does.
    """
    pictures = reference
    if isinstance(reference, LatentsReference):
        if not isinstance(extractor, TokenizerExtractor):
            pictures = reference.pictures()
        elif not same_tokenizer(reference.file.tokenizer, extractor.spec):
            raise UserError(
                f"{reference.path} was encoded by another tokenizer than the run's (its name, settings or fitted "
                "arrays differ): give its images as --reference"
            )
        else:
            stored = Features(reference.descriptors())
            expect_finite(stored, str(reference.path))
            return stored
    return image_features(pictures, extractor, side, batch_size, world, progress, "the reference", cache)


def image_features(
    images: Reference,
    extractor: Extractor,
    side: int,
    batch_size: int,
    world: World,
    progress: Progress,
    what: str,
    cache: FeatureCache = NO_CACHE,
) -> Features:
    """Features of all images at ``side`` pixels; ``what`` they are, for the progress bar. cache: of earlier features.

    Of several processes each takes its share, and the first has all in the end. Raises UserError, naming their path,
    for colour images where the extractor takes grey ones, and for features that are no numbers.
    """
    key = feature_key(_identity(extractor), images.digest, side)
    kept = cache.load(key) if world.first else None
    if world.any(kept is not None):
        return Features(torch.empty(0, extractor.size)) if kept is None else kept
    share = world.share(len(images))
    batches = images.batches(side, batch_size, share)
    if isinstance(extractor, TokenizerExtractor) and takes_grey(extractor.spec):
        batches = _grey_batches(batches, images.path)
    features = gather_features(extract_features(extractor, batches, len(share), what, progress), world)
    expect_finite(features, str(images.path))
    if world.first:
        cache.save(key, features, progress)
    return features


def _identity(extractor: Extractor) -> str:
    """Everything that an extractor's features depend on, as text."""
    if not isinstance(extractor, TokenizerExtractor):
        return extractor.name
    spec = extractor.spec
    arrays = [fingerprint([name, spec.arrays[name]]) for name in sorted(spec.arrays)]
    return fingerprint([spec.name, json.dumps(dict(spec.settings), sort_keys=True, default=str), *arrays])


def pictures_of(reference: Reference) -> Reference | None:
    """The source of a reference's images; None for statistics, and for latents whose images are gone."""
    if isinstance(reference, LatentsReference):
        try:
            return reference.pictures()
        except UserError:
            return None
    return reference if len(reference) else None


def some_images(
    reference: Reference, side: int, batch_size: int, most: int = 2000
) -> Callable[[], Iterator[Tensor]] | None:
    """A function that gives batches, uint8 (B, 3, side, side), of evenly spaced images of the reference.

    They are at most ``most`` images, and more than half of that where it has so many. None where it has no images.
    """
    pictures = pictures_of(reference)
    if pictures is None:
        return None
    thinned = pictures.thinned(-(-len(pictures) // most))
    return lambda: thinned.batches(side, batch_size, range(len(thinned)))


def array_batches(images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """Images uint8 (N, S, S, 3) in batches (B, 3, S, S)."""
    for start in range(0, len(images), batch_size):
        yield torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).contiguous()


def _grey_batches(batches: Iterator[Tensor], path: Path) -> Iterator[Tensor]:
    """The batches as they are. Raises UserError, naming ``path``, at one with a colour image."""
    for images in batches:
        if not is_grey(images).all():
            raise UserError(f"{path} holds colour images, but the run's are grey: give grey ones as --reference")
        yield images
