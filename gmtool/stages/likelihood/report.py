"""The report of ``gmtool likelihood``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gmtool import __version__


@dataclass(frozen=True)
class LikelihoodReport:
    """Negative log-likelihoods of data in nats per dimension, each a mean over images and its standard error.

    An image and its mirrored copy count as one image, whose value is the mean of theirs.
    run, data: their paths; step: of the weights. count: images; dimensions: numbers of a latent. latents: of the
    latents as they are; normalised: of the network's coordinates. bound: whether these are upper bounds. velocity: of
    the network's mixture over the velocity, averaged over time; None where it predicts none. evaluations: of the
    network, per image or mirrored copy.
    """

    run: str
    step: int
    data: str
    data_fingerprint: str
    count: int
    dimensions: int
    bound: bool
    latents: tuple[float, float]
    normalised: tuple[float, float]
    velocity: tuple[float, float] | None
    evaluations: float
    probes: int
    tolerance: float
    seed: int
    gmtool: str = __version__

    def to_json(self) -> str:
        """The report as indented JSON text."""
        return json.dumps(asdict(self), indent=1)


def parse_likelihood(details: Mapping[str, Any]) -> LikelihoodReport:
    """The report in the details of a manifest. Raises KeyError or TypeError for those of something else."""
    pairs = {name: tuple(details[name]) for name in ("latents", "normalised")}
    velocity = details["velocity"]
    return LikelihoodReport(**{**details, **pairs, "velocity": None if velocity is None else tuple(velocity)})
