"""The file that ``gmtool fit-gmm`` writes: a Gaussian mixture over latents, and how each sample belongs to its modes.

HDF5, with K modes, N data, descriptors of size D and latents of shape (C, H, W)::

    weights        (K,) float64            probability of a mode in the source: the data's mean kept probability
    population     (K,) float64            N weights: the data that a mode holds
    cls_weights    (K,) float64            the mixture over descriptors: weights, 0 for an empty mode,
    cls_mean       (K, D) float64            means
    cls_var        (K, D) float64            and variances
    patch_mean     (K, C, H, W) float32    mean of the latents in a mode, not normalised
    patch_std      (K, C, H, W) float32    their standard deviation, never zero
    modes          (N, n) int32            the modes kept for a sample, most probable first (N = 0: not known),
    probabilities  (N, n) float32            and their probabilities, which sum to 1; both are 0 beyond the last
    checksums/patch_mean, checksums/patch_std  (K,) uint64, of their rows (`gmtool.artifacts.hdf5`)
    manifest       attribute               the record (`gmtool.artifacts.manifest`)

Drawing k from ``weights`` is drawing it from the kept modes of a random sample: what the source of a flow gives at
sampling time is what its coupling gave at training time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gmtool.artifacts.files import reading, written_aside
from gmtool.artifacts.hdf5 import (
    MANIFEST_BYTES,
    Hdf5Reader,
    Hdf5Writer,
    Rows,
    allocate_manifest,
    allocate_rows,
    expect_arrays,
    open_artifact,
    read_column,
)
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.manifest import Array, Input, Manifest, fingerprint
from gmtool.errors import UserError
from gmtool.mixture.patch_moments import PatchMode
from gmtool.settings import quoted

_REPAIR = "remove it, and make it again with `gmtool fit-gmm` (that of an imported run: import the run again)"
_PATCHES = ("patch_mean", "patch_std")
"""The datasets that are read mode by mode."""


@dataclass(frozen=True)
class KeptModes:
    """Modes (n, k) int32 of n data, and their probabilities (n, k) float32; both 0 beyond a sample's last kept mode."""

    modes: np.ndarray
    probabilities: np.ndarray

    def population(self, count: int) -> np.ndarray:
        """The data that each of ``count`` modes holds, (count,) float64: the sum of its probabilities over the data."""
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
        super().__init__(path, manifest, _REPAIR)
        arrays = manifest.arrays
        self.weights: np.ndarray = read_column(file, "weights", arrays)
        self.population: np.ndarray = read_column(file, "population", arrays)
        self.cls_weights: np.ndarray = read_column(file, "cls_weights", arrays)
        self.cls_mean: np.ndarray = read_column(file, "cls_mean", arrays)
        self.cls_var: np.ndarray = read_column(file, "cls_var", arrays)
        self.shape: tuple[int, int, int] = file["patch_mean"].shape[1:]
        self.top_k: int = file["modes"].shape[1]
        for name in ("weights", "population", "cls_weights", "cls_var"):
            values = getattr(self, name)
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{name} holds a number that is NaN, infinite or negative")
        if not np.isfinite(self.cls_mean).all():
            raise ValueError("cls_mean holds a number that is NaN or infinite")
        if not np.isclose(self.weights.sum(), 1.0, atol=1e-3):
            raise ValueError("weights do not sum to 1")

    def __len__(self) -> int:
        """The number of modes."""
        return len(self.weights)

    def __enter__(self) -> GmmFile:
        return self

    def patch_mean(self, modes: np.ndarray) -> np.ndarray:
        """Means float32 (n, C, H, W) of ``modes`` (n,), in any order, also repeated.

        Raises UserError when one is not finite, and as `Hdf5Reader.read` does.
        """
        means = self.read("patch_mean", modes)
        with reading(self.path, _REPAIR):
            if not np.isfinite(means).all():
                raise ValueError("patch_mean holds a number that is NaN or infinite")
        return means

    def patch_std(self, modes: np.ndarray) -> np.ndarray:
        """Standard deviations float32 (n, C, H, W) of ``modes`` (n,), in any order, also repeated.

        Raises UserError when one is not finite and positive, and as `Hdf5Reader.read` does.
        """
        stds = self.read("patch_std", modes)
        with reading(self.path, _REPAIR):
            if not (np.isfinite(stds).all() and (stds > 0).all()):
                raise ValueError("patch_std holds a number that is NaN, infinite or not positive")
        return stds

    def kept(self, rows: Rows) -> KeptModes:
        """The kept modes of some data: a slice with a positive step, or indices in any order, also repeated.

        Raises UserError when they are damaged: no modes of the mixture, or no probabilities.
        """
        modes, probabilities = self.column("modes"), self.column("probabilities")
        with reading(self.path, _REPAIR):
            if modes.size and not (modes.min() >= 0 and modes.max() < len(self)):
                raise ValueError(f"modes holds a number that is none of its {len(self)} modes")
            if not ((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all():
                raise ValueError("probabilities holds a number that is no probability")
        return KeptModes(modes[rows], probabilities[rows])

    def verify(self) -> None:
        """Read everything. Raises UserError unless it is what was written; this holds for files of any version."""
        self.kept(slice(None))
        digests = []
        for mode in range(len(self)):
            patch = self.patch_mean(np.array([mode]))[0], self.patch_std(np.array([mode]))[0]
            digests.append(fingerprint(patch))
        small = [self.column(name) for name in _UNITS if name not in _PATCHES]
        if fingerprint([*small, *digests]) != self.manifest.fingerprint:
            raise UserError(f"{self.path} was changed since it was written: {_REPAIR}")


def open_gmm(path: Path) -> GmmFile:
    """Open a fitted mixture. Raises UserError, naming the repair, when it is missing, damaged, or something else."""
    path = Path(path)
    file, manifest = open_artifact(path, "gmm", _REPAIR)
    with file, reading(path, _REPAIR):
        expect_arrays(file, path, manifest.arrays, (), _REPAIR)
        return GmmFile(path, manifest, file)


def expect_latents(gmm: GmmFile, latents: LatentsFile, repair: str | None = None) -> None:
    """Raise UserError unless the mixture was fitted to these latents.

    It ends in ``repair``; default: another mixture, or other latents.
    """
    fitted = gmm.manifest.input("latents")
    if fitted is None or fitted.fingerprint != latents.manifest.fingerprint:
        origin = "other latents" if fitted is None else f"other latents ({fitted.path}, as they were then)"
        raise UserError(
            f"{gmm.path} was fitted to {origin}, not to {latents.path}: "
            f"{repair or f'{fit_another(latents)}, or give the latents that it was fitted to'}"
        )


def fit_another(latents: LatentsFile, flags: str = "") -> str:
    """The advice to fit another mixture beside one that other runs may need. flags: those that are to differ."""
    command = f"gmtool fit-gmm {quoted(latents.path)} OTHER.h5 {flags}".rstrip()
    return f"fit another mixture (`{command}`, with its other settings) and give it by --gmm"


def gmm_bytes(modes: int, descriptor_size: int, data: int, top_k: int, shape: tuple[int, int, int]) -> int:
    """Size of a mixture's file on disk, to about one percent."""
    return modes * (16 * descriptor_size + 8 * int(np.prod(shape)) + 40) + 8 * data * top_k + MANIFEST_BYTES + (1 << 15)


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
    """A mixture being written. ``create`` lays its file out, ``reopen`` resumes one that was laid out."""

    rows = _PATCHES

    @classmethod
    def create(
        cls,
        path: Path,
        descriptors: DescriptorMixture,
        kept: KeptModes,
        shape: tuple[int, int, int],
        weights: np.ndarray | None = None,
    ) -> GmmWriter:
        """Lay out a new file for modes of ``shape`` (C, H, W); its structure is on disk when this returns.

        weights: see `write_gmm`. Raises MachineError on a full disk.
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

        def build(file: h5py.File) -> None:
            for name, values in small.items():
                file.create_dataset(name, data=values)
            for name in _PATCHES:
                allocate_rows(file, name, (modes, *shape), np.dtype(np.float32))
            allocate_manifest(file, Manifest("gmm", "fit-gmm", "", {}))

        return cls.lay_out(path, gmm_bytes(modes, descriptor_size, data, top_k, shape), build)

    @property
    def kept(self) -> KeptModes:
        """The kept modes of all data."""
        return KeptModes(self._file["modes"][:], self._file["probabilities"][:])

    def write(self, patch: PatchMode) -> str:
        """Write the mean and deviation (C, H, W) of one mode; return their digest. Raises OSError on a full disk."""
        self._write_rows("patch_mean", patch.mode, patch.mean[None])
        self._write_rows("patch_std", patch.mode, patch.std[None])
        return fingerprint([patch.mean, patch.std])

    def finish(
        self,
        digests: Sequence[str],
        stage: str,
        latents: Input,
        config: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> Manifest:
        """Add the manifest, flush; return it.

        digests: those that `write` returned, in the order of modes. For the rest see `write_gmm`. Raises ValueError
        unless there is one per mode.
        """
        modes = len(self._file["weights"])
        if len(digests) != modes:
            raise ValueError(f"{len(digests)} modes' latents for {modes} modes")
        small = [self._file[name][:] for name in _UNITS if name not in _PATCHES]
        arrays = {
            name: Array(self._file[name].shape, str(self._file[name].dtype), unit) for name, unit in _UNITS.items()
        }
        content = fingerprint([*small, *digests])
        return self._write_manifest(Manifest("gmm", stage, content, config, (latents,), arrays, details))


def write_gmm(
    path: Path,
    *,
    descriptors: DescriptorMixture,
    kept: KeptModes,
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
    Raises ValueError unless there are K patches, MachineError on a full disk.
    """
    with (
        written_aside(path) as part,
        GmmWriter.create(part, descriptors, kept, shape, weights) as writer,
    ):
        return writer.finish([writer.write(patch) for patch in patches], stage, latents, config, details)
