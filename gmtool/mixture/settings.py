"""Settings of k-means, EM and patch moments: in a file of their own, so that --help need not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gmtool.settings import Option, Settings


@dataclass(frozen=True)
class KMeansSettings(Settings):
    """How long k-means runs."""

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
    """When EM stops, and what it adds to variances."""

    TITLE = "expectation maximisation"

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
            "EM stops when the mean log-likelihood of a sample gains less than this, in nats.",
            metavar="NATS",
            minimum=0.0,
        ),
    ] = 1e-3
    variance_floor: Annotated[
        float, Option("Added to each descriptor variance, in squared descriptor units.", metavar="VAR", minimum=0.0)
    ] = 1e-6


@dataclass(frozen=True)
class PatchSettings(Settings):
    """How a mode's mean and variance are made of its samples; see `gmtool.mixture.patch_moments`."""

    TITLE = "modes in patch space"

    covariance: Annotated[
        Literal["diagonal", "spherical"],
        Option("Patch-space variance of a mode: one an entry, or one number times the variance of all data."),
    ] = "diagonal"
    mirror: Annotated[
        bool, Option("Count every image a second time, its latents mirrored left to right, in the modes' patches.")
    ] = False
    shrinkage: Annotated[
        float,
        Option(
            "Weight, in images, of the global patch variance in each mode's own: (n S_k + W S) / (n + W).",
            metavar="W",
            minimum=0.0,
        ),
    ] = 4.0
