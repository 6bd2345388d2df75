"""The file that ``gmtool fit-gmm`` writes: a Gaussian mixture over latents, and how each datum belongs to its modes.

HDF5, with K modes, N data, descriptors of size D and latents of shape (C, H, W)::

    weights        (K,) float64            probability of a mode in the source: the data's mean kept probability
    population     (K,) float64            N weights: the data that a mode holds
    cls_weights    (K,) float64            the mixture over descriptors: weights, 0 for an empty mode,
    cls_mean       (K, D) float64            means
    cls_var        (K, D) float64            and variances
    patch_mean     (K, C, H, W) float32    mean of the latents in a mode, one mode a chunk, not normalised
    patch_std      (K, C, H, W) float32    their standard deviation, never zero
    modes          (N, n) int32            the modes kept for a datum, most probable first (N = 0: not known),
    probabilities  (N, n) float32            and their probabilities, which sum to 1; both are 0 beyond the last
    manifest       attribute               the record (`gmtool.artifacts.manifest`)

Drawing k from ``weights`` is drawing it from the kept modes of a random datum: what the source of a flow gives at
sampling time is what its coupling gave at training time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gmtool.artifacts.files import reserve, written_aside
from gmtool.artifacts.hdf5 import Hdf5Reader, Hdf5Writer, Rows, allocate, one_line, open_hdf5
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.manifest import Array, Input, Manifest, expect_kind, fingerprint, parse_manifest
from gmtool.errors import UserError
from gmtool.mixture.patch_moments import PatchMode

MANIFEST = "manifest"
_REPAIR = "make it again with `gmtool fit-gmm`"
_ROWS_A_CHUNK = 4096


@dataclass(frozen=True)
class Assignments:
    """Modes (n, k) int32 of n data, and their probabilities (n, k) float32; both 0 beyond a datum's last kept mode."""

    modes: np.ndarray
    probabilities: np.ndarray

    def population(self, count: int) -> np.ndarray:
        """The data that each of ``count`` modes holds, (count,) float64: its sum of probabilities."""
        return np.bincount(self.modes.ravel(), self.probabilities.ravel(), minlength=count)


@dataclass(frozen=True)
class DescriptorMixture:
    """The mixture over descriptors: weights (K,), means (K, D), variances (K, D), float64."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray


class GmmFile(Hdf5Reader):
    """A fitted mixture, opened for reading. Its small parts are read at once, modes' latents and data on demand."""

    def __init__(self, path: Path, manifest: Manifest, file: h5py.File) -> None:
        super().__init__(path, _REPAIR)
        self.manifest = manifest
        self.weights: np.ndarray = file["weights"][:]
        self.population: np.ndarray = file["population"][:]
        self.cls_weights: np.ndarray = file["cls_weights"][:]
        self.cls_mean: np.ndarray = file["cls_mean"][:]
        self.cls_var: np.ndarray = file["cls_var"][:]
        self.shape: tuple[int, int, int] = file["patch_mean"].shape[1:]
        self.top_k: int = file["modes"].shape[1]
        for name, array in manifest.arrays.items():
            if file[name].shape != array.shape:
                raise KeyError(f"{name} has shape {file[name].shape}, not {array.shape}")

    def __len__(self) -> int:
        """The number of modes."""
        return len(self.weights)

    def __enter__(self) -> GmmFile:
        return self

    def patch_mean(self, modes: np.ndarray) -> np.ndarray:
        """Means float32 (n, C, H, W) of ``modes`` (n,), in any order, also repeated."""
        return self.read("patch_mean", modes)

    def patch_std(self, modes: np.ndarray) -> np.ndarray:
        """Standard deviations float32 (n, C, H, W) of ``modes`` (n,), in any order, also repeated."""
        return self.read("patch_std", modes)

    def kept(self, rows: Rows) -> Assignments:
        """The kept modes of some data: a slice with a positive step, or indices in any order, also repeated."""
        return Assignments(self.read("modes", rows), self.read("probabilities", rows))


def open_gmm(path: Path) -> GmmFile:
    """Open a fitted mixture. Raises UserError, naming the repair, when it is missing, damaged, or something else."""
    path = Path(path)
    if not path.is_file():
        where = "is a folder, not a fitted mixture" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {where}: fit a mixture with `gmtool fit-gmm`")
    with open_hdf5(path, _REPAIR) as file:
        if MANIFEST not in file.attrs:
            raise UserError(f"{path} was not written by gmtool: fit a mixture with `gmtool fit-gmm`")
        manifest = parse_manifest(file.attrs[MANIFEST], path)
        expect_kind(manifest, "gmm", path)
        try:
            return GmmFile(path, manifest, file)
        except (KeyError, OSError, AttributeError, IndexError) as error:
            raise UserError(f"{path} is damaged ({one_line(error)}): {_REPAIR}") from error


def expect_latents(gmm: GmmFile, latents: LatentsFile) -> None:
    """Raise UserError, naming the repair, unless the mixture was fitted to these latents."""
    fitted = gmm.manifest.input("latents")
    if fitted is None or fitted.fingerprint != latents.manifest.fingerprint:
        origin = "other latents" if fitted is None else f"other latents ({fitted.path}, as they were then)"
        raise UserError(
            f"{gmm.path} was fitted to {origin}, not to {latents.path}: "
            f"run `gmtool fit-gmm {latents.path} {gmm.path}` again"
        )


def gmm_bytes(modes: int, descriptor_size: int, data: int, top_k: int, shape: tuple[int, int, int]) -> int:
    """Size of a mixture's file on disk, to about one percent."""
    return modes * (16 * descriptor_size + 8 * int(np.prod(shape)) + 152) + 8 * data * top_k + (1 << 16)


_UNITS = {
    "weights": "probability",
    "population": "data",
    "cls_weights": "probability",
    "cls_mean": "descriptor",
    "cls_var": "descriptor squared",
    "patch_mean": "latent, not normalised",
    "patch_std": "latent, not normalised",
    "modes": "index of a mode",
    "probabilities": "probability",
}


class GmmWriter(Hdf5Writer):
    """A mixture being written. ``create`` lays its file out, ``reopen`` goes on with one that was laid out.

    Storage is allocated and the structure is on disk before the first mode, so that writing modes changes raw data only
    and a process killed at any moment leaves a readable part.
    """

    datasets = tuple(_UNITS)

    @classmethod
    def create(
        cls,
        path: Path,
        descriptors: DescriptorMixture,
        kept: Assignments,
        shape: tuple[int, int, int],
        weights: np.ndarray | None = None,
    ) -> GmmWriter:
        """Lay out a new file for modes of ``shape`` (C, H, W); its structure is on disk when this returns.

        weights: see `write_gmm`.
        """
        modes, descriptor_size = descriptors.means.shape
        population = kept.population(modes)
        small = {
            "weights": population / population.sum() if weights is None else weights,
            "population": population,
            "cls_weights": descriptors.weights,
            "cls_mean": descriptors.means,
            "cls_var": descriptors.variances,
            "modes": kept.modes,
            "probabilities": kept.probabilities,
        }
        data, top_k = kept.modes.shape
        try:
            # HDF5 that meets a full disk floods the terminal and may crash: a full disk shows here, before it begins
            reserve(path, gmm_bytes(modes, descriptor_size, data, top_k, shape))
            with h5py.File(path, "w", libver="earliest") as file:
                for name, values in small.items():
                    chunks = (min(len(values), _ROWS_A_CHUNK), *values.shape[1:]) if values.size else None
                    file.create_dataset(name, data=values, chunks=chunks)
                for name in ("patch_mean", "patch_std"):
                    allocate(file, name, (modes, *shape), np.dtype(np.float32), (1, *shape))
            reserve(path, path.stat().st_size)  # HDF5 cut the file, and allocated without writing
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        writer = cls.reopen(path)
        writer.flush()
        return writer

    @property
    def kept(self) -> Assignments:
        """The kept modes of all data."""
        return Assignments(self._file["modes"][:], self._file["probabilities"][:])

    def write(self, patch: PatchMode) -> str:
        """Write one mode's latents; return their digest."""
        self._file["patch_mean"][patch.mode] = patch.mean
        self._file["patch_std"][patch.mode] = patch.std
        return fingerprint([patch.mean, patch.std])

    def finish(
        self,
        digests: Sequence[str],
        stage: str,
        latents: Input,
        config: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> Manifest:
        """Add the manifest, flush; return it. digests: of all latents, by mode. For the rest see `write_gmm`."""
        modes = len(self._file["weights"])
        if len(digests) != modes:
            raise ValueError(f"{len(digests)} modes' latents for {modes} modes")
        small = [self._file[name][:] for name in _UNITS if not name.startswith("patch_")]
        manifest = Manifest(
            kind="gmm",
            stage=stage,
            fingerprint=fingerprint([*small, *digests]),
            config=config,
            inputs=(latents,),
            arrays={name: Array(values.shape, str(values.dtype), _UNITS[name]) for name, values in self._file.items()},
            details=details,
        )
        self._file.attrs[MANIFEST] = manifest.to_json()
        self.flush()
        return manifest


def write_gmm(
    path: Path,
    *,
    descriptors: DescriptorMixture,
    kept: Assignments,
    patches: Iterable[PatchMode],
    shape: tuple[int, int, int],
    latents: Input,
    config: Mapping[str, Any],
    details: Mapping[str, Any],
    weights: np.ndarray | None = None,
    stage: str = "fit-gmm",
) -> Manifest:
    """Write a whole mixture aside, then rename it to ``path``; return its manifest.

    patches: the modes in order, of shape (C, H, W) = ``shape``; each is written as it comes. kept: of all N data.
    latents: what the mixture was fitted to. config: resolved settings, details: figures, both as JSON values.
    weights: of the modes (K,), which sum to 1; None for their shares of the data. stage: the command that writes.
    """
    with (
        written_aside(path) as part,
        GmmWriter.create(part, descriptors, kept, shape, weights) as writer,
    ):
        return writer.finish([writer.write(each) for each in patches], stage, latents, config, details)
