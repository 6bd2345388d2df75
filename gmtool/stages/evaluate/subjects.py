"""What is scored: a folder of samples, or the images of any other tool; and where its report belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from gmtool.artifacts.files import check_writable, json_in, resolved
from gmtool.artifacts.run import CONFIG
from gmtool.artifacts.samples import IMAGES, LATENTS, MANIFEST, METRICS, SamplesFolder, open_samples
from gmtool.data.image_headers import Headers, read_headers
from gmtool.data.image_sets import find_images
from gmtool.errors import UserError
from gmtool.evaluation.array_reference import ArrayReference, open_npz, samples_images
from gmtool.evaluation.references import ImagesReference, Reference


@dataclass(frozen=True, eq=False)
class Subject:
    """Images that are scored.

    path: as the user named it. images: all of them; side: their side in pixels. folder: of the samples, where gmtool
    drew them. report: the file of the figures. notes: what a user should know of the images.
    """

    path: Path
    images: Reference
    side: int
    folder: SamplesFolder | None
    report: Path
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Digest of the images; of a folder of samples the one in its manifest."""
        return self.images.fingerprint if self.folder is None else self.folder.manifest.fingerprint


def open_subjects(paths: Sequence[Path]) -> tuple[Subject, ...]:
    """Open what is scored. Raises UserError for what is missing, damaged, given twice, or no images."""
    places = [resolved(path) for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{path} is given twice: remove one of them")
    return tuple(map(open_subject, paths))


def open_subject(path: Path) -> Subject:
    """Open one. Raises UserError, naming it, where it is missing, damaged, or holds no images."""
    if (path / CONFIG).is_file():
        raise UserError(f"{path} is a training run: draw samples from it with `gmtool sample`, and give these")
    if any((path / name).is_file() for name in (MANIFEST, IMAGES, LATENTS)):
        folder = open_samples(path)
        images = samples_images(folder)
        _, side = folder.image_shape()
        return Subject(path, images, side, folder, path / METRICS)
    if not path.exists():
        raise UserError(
            f"{path} does not exist: give what `gmtool sample` wrote, a folder or archive of images, or an .npz"
        )
    beside = Path.cwd() / path if path.name not in ("", "..") else path.resolve()  # "." has no name
    report = beside.with_name(f"{beside.name}.{METRICS}")
    if path.is_file() and h5py.is_hdf5(path):
        raise UserError(f"{path} holds no images but numbers (HDF5): give the samples' folder, images or an .npz")
    if path.is_file() and path.suffix.lower() == ".npz":
        array = open_npz(path, str(path))
        if array.images is None:
            raise UserError(f"{path} holds mu and sigma but no images: give it as --reference")
        return Subject(path, array, array.images.size[0], None, report, _notes_of_array(array))
    image_set = find_images(path)
    images_of = ImagesReference(path, image_set, np.arange(len(image_set)))
    headers = read_headers(image_set, images_of.rows)
    if headers.size is None:
        raise UserError(f"{path}: none of its {len(image_set)} images can be read: give others")
    side = min(headers.size)
    left_out = tuple(f"{path}: left out {kind}" for kind in image_set.left_out)
    return Subject(path, images_of, side, None, report, (*_notes_of_sizes(path, headers, side), *left_out))


def _notes_of_array(array: ArrayReference) -> tuple[str, ...]:
    assert array.images is not None
    if array.images.array.header.dtype == np.uint8:
        return ()
    return (f"{array.path}: {array.images.array.name} is read as {array.images.description}, rounded to 8 bits",)


def _notes_of_sizes(path: Path, headers: Headers, side: int) -> tuple[str, ...]:
    if len(headers.sizes) == 1 and headers.size == (side, side):
        return ()
    sizes = ", ".join(f"{width} x {height}" for (width, height), _ in headers.sizes[:3])
    more = ", ..." if len(headers.sizes) > 3 else ""
    return (f"{path} holds images of {sizes}{more} px, which are resized and cropped to {side} x {side}",)


def check_report(path: Path) -> None:
    """Raise UserError unless a report can be written to ``path``, where nothing but an earlier report may be."""
    check_writable(path, "metrics file")
    if not path.exists():
        return
    record = json_in(path)
    reports = record if isinstance(record, list) and record else [record]
    if all(isinstance(report, dict) and {"samples_fingerprint", "figures"} <= report.keys() for report in reports):
        return
    raise UserError(f"{path} exists, and the report would replace it: move it away, or choose another name by --output")
