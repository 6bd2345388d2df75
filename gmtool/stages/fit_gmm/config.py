"""Settings of ``gmtool fit-gmm``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from gmtool.errors import UserError
from gmtool.mixture.settings import EmSettings, KMeansSettings, PatchSettings
from gmtool.settings import Decoder, Device, Fraction, Option, Seed, Settings

UNITS = {"": 1.0, "gib": 1.0, "mib": 2.0**-10, "tib": 2.0**10, "gb": 1e9 / 2**30, "mb": 1e6 / 2**30}
"""What a size may end with, in GiB."""


def gibibytes(size: str | float) -> float:
    """A size in GiB, given as ``8GiB``, ``512 MiB``, ``8`` or a number. Raises UserError for other texts."""
    if isinstance(size, (int, float)):
        return float(size)
    parts = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", size.lower())
    if parts is None or parts[2] not in UNITS:
        raise UserError(f"--memory must be a size such as 512MiB or 8GiB, not {size!r}")
    return float(parts[1]) * UNITS[parts[2]]


@dataclass(frozen=True)
class FitGmmConfig(Settings):
    """How the mixture is fitted to descriptors and transferred to patch space."""

    modes: Annotated[
        int,
        Option(
            "Number of modes, the components of the mixture (sample --modes lists some of them).",
            metavar="K",
            minimum=1,
        ),
    ] = 64
    assignment: Annotated[
        Literal["soft", "hard"],
        Option("Assignment of images to modes: soft (the --top-k most probable, renormalised) or hard (the best one)."),
    ] = "soft"
    top_k: Annotated[int, Option("Modes kept per image under soft assignment.", metavar="N", minimum=1)] = 8
    fraction: Fraction = 1.0
    held_out: Annotated[
        float,
        Option(
            "Fraction of the images held out of k-means and EM to report their log-likelihood; they are still "
            "assigned to modes.",
            metavar="SHARE",
            minimum=0.0,
            below=1.0,
        ),
    ] = 0.05
    kmeans: KMeansSettings = field(default_factory=KMeansSettings)
    em: EmSettings = field(default_factory=EmSettings)
    patches: PatchSettings = field(default_factory=PatchSettings)
    memory: Annotated[
        float,
        Option(
            "Memory per process for the patch sums of modes and the read buffers, such as 512MiB or 8GiB (a bare "
            "number is GiB). If the sums do not fit (16 bytes per mode and latent entry), modes are processed in "
            "blocks, and images that belong to several blocks are read again.",
            metavar="SIZE",
            minimum=0.0,
            reader=gibibytes,
        ),
    ] = 4.0
    decoder: Decoder = None
    device: Device = "auto"
    seed: Seed = 0

    def check(self) -> None:
        """See `Settings.check`."""
        if self.assignment == "hard" and self.patches.assignment == "soft":
            raise UserError("--assignment hard keeps one mode per image: remove --patch-assignment soft")

    @property
    def patch_assignment(self) -> Literal["soft", "hard"]:
        """How images count in the patch moments."""
        return self.patches.assignment or self.assignment
