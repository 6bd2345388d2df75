"""What a fit will do and what it will take, settled before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gmtool.artifacts.files import human_bytes
from gmtool.artifacts.gmm import gmm_bytes
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.outputs import Output, output_of
from gmtool.errors import UserError
from gmtool.mixture.em import block_rows
from gmtool.mixture.patch_moments import ROW_BYTES, SUMS_BYTES, WORK_BYTES, PatchMemory, least_memory, share_memory
from gmtool.stages.fit_gmm.config import FitGmmConfig


@dataclass(frozen=True, eq=False)
class FitPlan:
    """What a fit will do.

    data: samples, of which ``mirrored`` are mirrored copies of others. held: which are held out (N,) bool. top_k: at
    most the modes. memory: how patch sums and data share it, in each of ``processes``. bytes: of the file it writes.
    """

    data: int
    mirrored: int
    fitted: int
    held_out: int
    modes: int
    top_k: int
    descriptor_size: int
    shape: tuple[int, int, int]
    memory: PatchMemory
    processes: int
    bytes: int
    output: Output
    held: np.ndarray

    @property
    def blocks(self) -> int:
        """Blocks of modes, each of which reads the data that keep one of its modes."""
        own = math.ceil(self.modes / self.processes)
        return self.processes * math.ceil(own / self.memory.modes)

    @property
    def passes(self) -> int:
        """How often a datum's latents are read at most."""
        return min(self.top_k, self.blocks)

    @property
    def latent_bytes(self) -> int:
        """Bytes of all latents, which one pass reads."""
        return 2 * self.data * math.prod(self.shape)

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of memory for the descriptors, and for the mixture and a block of responsibilities."""
        rows = block_rows(self.modes, torch.device("cpu"))
        return 4 * (
            self.descriptor_size * (self.data + 10 * self.modes) + rows * (self.modes + 2 * self.descriptor_size)
        )

    @property
    def patch_bytes(self) -> int:
        """Bytes of memory for the modes' sums and the latents just read."""
        each = self.memory
        return math.prod(self.shape) * (SUMS_BYTES * each.modes + ROW_BYTES * min(each.rows, self.data) + WORK_BYTES)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """The plan for people: what, and how much."""
        reads = "once each" if self.passes == 1 else f"up to {self.passes} times each"
        processes = f", in each of {self.processes} processes" if self.processes > 1 else ""
        return (
            ("images in the fit", f"{self.fitted:,} of {self.data:,} ({self.mirrored:,} of them mirrored copies)"),
            ("images held out", f"{self.held_out:,}"),
            ("latents (C, H, W), descriptor size", f"{' x '.join(map(str, self.shape))}, {self.descriptor_size:,}"),
            ("modes, and kept for an image", f"{self.modes:,}, {self.top_k}"),
            ("descriptors to read, once", human_bytes(4 * self.data * self.descriptor_size)),
            ("an EM iteration", f"{8e-12 * self.fitted * self.modes * self.descriptor_size:,.3g} TFLOP"),
            ("latents to read", f"{human_bytes(self.latent_bytes)}, {reads}: {self.blocks:,} blocks of modes"),
            ("memory of k-means and EM", human_bytes(self.descriptor_bytes) + processes),
            ("memory of the patch moments", human_bytes(self.patch_bytes) + processes),
            ("size of the file", human_bytes(self.bytes)),
        )


def prepare(source: LatentsFile, output: Path, config: FitGmmConfig, processes: int) -> FitPlan:
    """The plan. Raises UserError when it cannot be carried out."""
    written = output_of(output, "gmm")
    if not (np.isfinite(source.mean).all() and np.isfinite(source.var).all()):
        raise UserError(f"{source.path} holds latents that are not finite; encode again with --precision float32")
    mirrored = int(source.flipped.sum())
    if config.mirror and mirrored:
        raise UserError(f"--mirror: {source.path} holds mirrored copies already, which count as they are; leave it out")
    held = _held_out(source, config.held_out, config.seed)
    fitted = int((~held).sum())
    if config.modes > fitted:
        raise UserError(
            f"--modes {config.modes} is more than the {fitted} images to fit ({source.path} has {len(source)}, "
            f"{len(source) - fitted} of them held out): lower --modes or --held-out"
        )
    top_k = 1 if config.assignment == "hard" else min(config.top_k, config.modes)
    return FitPlan(
        data=len(source),
        mirrored=mirrored,
        fitted=fitted,
        held_out=len(source) - fitted,
        modes=config.modes,
        top_k=top_k,
        descriptor_size=source.descriptor_size,
        shape=source.shape,
        memory=_patch_memory(source, math.ceil(config.modes / processes), config.memory * 2**30),
        processes=processes,
        bytes=gmm_bytes(config.modes, source.descriptor_size, len(source), top_k, source.shape),
        output=written,
        held=held,
    )


def _patch_memory(source: LatentsFile, modes: int, memory: float) -> PatchMemory:
    least = least_memory(source.shape)
    if memory < least:
        shape = " x ".join(map(str, source.shape))
        raise UserError(
            f"--memory {memory / 2**30:.3g} is too small for one mode of {shape}, which takes {human_bytes(least)}: "
            f"give {math.ceil(1000 * least / 2**30) / 1000:g} or more"
        )
    return share_memory(modes, source.shape, memory)


def _held_out(source: LatentsFile, share: float, seed: int) -> np.ndarray:
    """Which data are held out, (N,) bool: a random share of the images, each with its mirrored copy."""
    images = np.arange(len(source))
    if source.flipped.any():
        images = np.unique(np.array(source.names()), return_inverse=True)[1]
    count = int(images.max()) + 1
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return chosen[images]
