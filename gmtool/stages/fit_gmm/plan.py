"""The plan of a fit and its needs, resolved before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gmtool.artifacts.gmm import gmm_bytes
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.outputs import Output, output_of
from gmtool.data.fraction import part_of_data
from gmtool.errors import UserError
from gmtool.forecast import FileSize, Forecast
from gmtool.mixture.em import block_rows
from gmtool.mixture.patch_moments import ROW_BYTES, SUMS_BYTES, WORK_BYTES, PatchMemory, least_memory, share_memory
from gmtool.stages.assumed import AssumedLatents
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.plots import check_picture
from gmtool.words import human_bytes


@dataclass(frozen=True, eq=False)
class FitPlan:
    """The plan of a fit.

    config: the settings. latents, output: the files. file_bytes: of the latents' file. shape (C, H, W) and
    descriptor_size: of a sample. part: the rows of the file that are used (N,), ascending, of which ``mirrored`` are
    mirrored copies of others. held: which of them are held out, (N,) bool. top_k: modes kept for a sample, at most all.
    memory: how patch sums and data share it, in each of ``processes``. bytes: of the output.
    """

    config: FitGmmConfig
    latents: Path
    file_bytes: int
    output: Output
    shape: tuple[int, int, int]
    descriptor_size: int
    mirrored: int
    part: np.ndarray
    held: np.ndarray
    top_k: int
    memory: PatchMemory
    processes: int
    bytes: int

    @property
    def picture(self) -> Path:
        """The picture beside the output."""
        return _picture_of(self.output.path)

    @property
    def modes(self) -> int:
        """Components of the mixture."""
        return self.config.modes

    @property
    def samples(self) -> int:
        """Samples that are used."""
        return len(self.part)

    @property
    def held_out(self) -> int:
        """Samples that are kept out of k-means and EM."""
        return int(self.held.sum())

    @property
    def fitted(self) -> int:
        """Samples of k-means and EM."""
        return self.samples - self.held_out

    @property
    def blocks(self) -> int:
        """Blocks of modes, each of which reads the samples that keep one of its modes."""
        own = math.ceil(self.modes / self.processes)
        return self.processes * math.ceil(own / self.memory.modes)

    @property
    def passes(self) -> int:
        """How often a sample's latents are read at most."""
        return 1 if self.config.patch_assignment == "hard" else min(self.top_k, self.blocks)

    @property
    def latent_bytes(self) -> int:
        """Bytes of all latents, which one pass reads."""
        return 2 * self.samples * math.prod(self.shape)

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of memory for the descriptors, and for the mixture and a block of responsibilities."""
        rows = block_rows(self.modes, torch.device("cpu"))
        return 4 * (
            self.descriptor_size * (self.samples + 10 * self.modes) + rows * (self.modes + 2 * self.descriptor_size)
        )

    @property
    def patch_bytes(self) -> int:
        """Bytes of memory for the modes' sums and the latents just read."""
        modes, rows = self.memory.modes, min(self.memory.rows, self.samples)
        return math.prod(self.shape) * (SUMS_BYTES * modes + ROW_BYTES * rows + WORK_BYTES)

    def forecast(self) -> Forecast:
        """What ``--dry-run`` shows."""
        reads = "once each" if self.passes == 1 else f"up to {self.passes} times each"
        processes = f", in each of {self.processes} processes" if self.processes > 1 else ""
        return Forecast(
            title=f"Would fit {self.latents} -> {self.output.path}",
            reads=(FileSize(self.latents, self.file_bytes),),
            writes=(FileSize(self.output.path, self.bytes), FileSize(self.picture, None)),
            work=(
                ("images in the fit", f"{self.fitted:,} of {self.samples:,} ({self.mirrored:,} mirrored copies)"),
                ("images held out", f"{self.held_out:,}"),
                ("latents (C, H, W), descriptor size", f"{' x '.join(map(str, self.shape))}, {self.descriptor_size:,}"),
                ("modes, and kept for an image", f"{self.modes:,}, {self.top_k}"),
                ("descriptors to read, once", human_bytes(4 * self.samples * self.descriptor_size)),
                ("an EM iteration", f"{8e-12 * self.fitted * self.modes * self.descriptor_size:,.3g} TFLOP"),
                ("latents to read", f"{human_bytes(self.latent_bytes)}, {reads}: {self.blocks:,} blocks of modes"),
                ("memory of k-means and EM", human_bytes(self.descriptor_bytes) + processes),
                ("memory of the patch moments", human_bytes(self.patch_bytes) + processes),
            ),
            memory=max(self.descriptor_bytes, self.patch_bytes),
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """The latents of a fit, as far as the plan depends on them.

    bytes: of the file, which has ``samples``. part, mirrored: see `FitPlan`.
    """

    path: Path
    bytes: int
    shape: tuple[int, int, int]
    descriptor_size: int
    samples: int
    part: np.ndarray
    mirrored: int


def plan_fit(source: LatentsFile, output: Path, config: FitGmmConfig, processes: int) -> FitPlan:
    """The plan of a fit to ``source`` by ``processes`` processes.

    Raises UserError, naming the flag or file, where the output cannot be written, the latents are not finite or have no
    descriptors, there are fewer images than modes, or the memory is too small.
    """
    written = _written(output)
    if not (np.isfinite(source.mean).all() and np.isfinite(source.var).all()):
        raise UserError(f"{source.path} holds latents that are not finite; encode again with --precision float32")
    if not source.descriptor_size:
        raise UserError(f"{source.path} holds descriptors without entries, which cannot be clustered: encode again")
    part = part_of_data(source, config.fraction, config.seed)
    fitted = Fitted(
        path=source.path,
        bytes=source.path.stat().st_size,
        shape=source.shape,
        descriptor_size=source.descriptor_size,
        samples=len(source),
        part=part,
        mirrored=int(source.flipped[part].sum()),
    )
    images = np.unique(source.image_numbers()[part], return_inverse=True)[1]
    return _plan(fitted, images, written, config, processes)


def plan_of_imagenet(latents: AssumedLatents, output: Path, config: FitGmmConfig, processes: int) -> FitPlan:
    """The plan of a fit to latents of ImageNet, which are not there, for a forecast.

    Raises UserError as `plan_fit` does.
    """
    layout = latents.layout
    images = np.arange(round(config.fraction * latents.images)).repeat(latents.views)
    fitted = Fitted(
        path=latents.missing,
        bytes=layout.bytes(),
        shape=layout.shape,
        descriptor_size=layout.descriptor_size,
        samples=layout.capacity,
        part=np.arange(len(images)),
        mirrored=len(images) - len(images) // latents.views,
    )
    return _plan(fitted, images, _written(output), config, processes)


def _written(output: Path) -> Output:
    """The output. Raises UserError where it, or the picture beside it, cannot be written."""
    written = output_of(output, "gmm")
    check_picture(_picture_of(output), output)
    return written


def _plan(latents: Fitted, images: np.ndarray, written: Output, config: FitGmmConfig, processes: int) -> FitPlan:
    """The plan; images (N,): the number of each sample's image, from 0."""
    part, mirrored = latents.part, latents.mirrored
    if config.patches.mirror and mirrored:
        raise UserError(f"--mirror: {latents.path} holds mirrored copies already, which count as they are; remove it")
    held = _held_out(images, config.held_out, config.seed)
    fitted = int((~held).sum())
    if config.modes > fitted:
        raise UserError(
            f"--modes {config.modes} is more than the {fitted} images to fit ({latents.path} has {latents.samples}, "
            f"{len(part)} of them used, {len(part) - fitted} held out): lower --modes or --held-out"
        )
    top_k = 1 if config.assignment == "hard" else min(config.top_k, config.modes)
    return FitPlan(
        config=config,
        latents=latents.path,
        file_bytes=latents.bytes,
        output=written,
        shape=latents.shape,
        descriptor_size=latents.descriptor_size,
        mirrored=mirrored,
        part=part,
        held=held,
        top_k=top_k,
        memory=_patch_memory(latents.shape, math.ceil(config.modes / processes), config.memory * 2**30),
        processes=processes,
        bytes=gmm_bytes(config.modes, latents.descriptor_size, latents.samples, top_k, latents.shape),
    )


def _picture_of(output: Path) -> Path:
    """``gmm.h5`` -> ``gmm.png``."""
    return output.with_suffix(".png")


def _patch_memory(shape: tuple[int, int, int], modes: int, memory: float) -> PatchMemory:
    least = least_memory(shape)
    if memory < least:
        words = " x ".join(map(str, shape))
        raise UserError(
            f"--memory {memory / 2**30:.3g} is too small for one mode of {words}, which takes {human_bytes(least)}: "
            f"give {math.ceil(1000 * least / 2**30) / 1000:g} or more"
        )
    return share_memory(modes, shape, memory)


def _held_out(images: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which samples are held out, (N,) bool: a random share of the images, each with its mirrored copy.

    images (N,): the number of each sample's image, from 0.
    """
    count = int(images.max()) + 1
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return chosen[images]
