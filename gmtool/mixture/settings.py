"""Settings of k-means, EM and patch moments: in a file of their own, so that --help need not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gmtool.settings import Option, Settings


@dataclass(frozen=True)
class KMeansSettings(Settings):
    """k-means, which initialises EM."""

    TITLE = "k-means"

    iterations: Annotated[
        int,
        Option(
            "Maximum number of k-means iterations. Two suffice to initialise EM; use more with --em-iterations 0.",
            metavar="N",
            minimum=1,
            name="kmeans_iterations",
        ),
    ] = 2


@dataclass(frozen=True)
class EmSettings(Settings):
    """EM's stopping rule and regularisation."""

    TITLE = "EM"

    iterations: Annotated[
        int,
        Option(
            "Maximum number of EM iterations; 0 keeps the k-means clusters.",
            metavar="N",
            minimum=0,
            name="em_iterations",
        ),
    ] = 100
    tolerance: Annotated[
        float,
        Option(
            "EM stops when the mean log-likelihood per image improves by less than this, in nats.",
            metavar="NATS",
            minimum=0.0,
        ),
    ] = 1e-3
    variance_floor: Annotated[
        float, Option("Added to each descriptor variance, in squared descriptor units.", metavar="VAR", minimum=0.0)
    ] = 1e-6


@dataclass(frozen=True)
class PatchSettings(Settings):
    """Patch-space means and variances of modes; see `gmtool.mixture.patch_moments`."""

    TITLE = "Modes in patch space"

    covariance: Annotated[
        Literal["diagonal", "spherical"],
        Option("Patch-space variance of a mode: one per entry, or a scalar times the variance of all data."),
    ] = "diagonal"
    assignment: Annotated[
        Literal["soft", "hard"] | None,
        Option(
            "Assignment of images for the patch moments alone: soft (each kept mode, by its probability) or hard (the "
            "best one). MM-FM's released mixtures: hard, with --assignment soft. Default: as --assignment.",
            name="patch_assignment",
        ),
    ] = None
    mirror: Annotated[
        bool, Option("Also include each image's latents mirrored left to right in the modes' patch moments.")
    ] = False
    shrinkage: Annotated[
        float,
        Option(
            "Shrinkage of a mode's variance S_k to the global variance S, in images: (n S_k + W S) / (n + W).",
            metavar="W",
            minimum=0.0,
        ),
    ] = 4.0
