"""About how long a sweep takes, by one batch of one of its points."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import torch

from gmtool.errors import MachineError
from gmtool.evaluation.extractors import extractor_row
from gmtool.evaluation.features import Extractor
from gmtool.progress import Progress
from gmtool.runtime import compute_dtype
from gmtool.stages.sweep.plan import SweepPlan
from gmtool.stages.sweep.run import open_tokenizers
from gmtool.throughput import seconds_of

FEW = 8
"""Images that are drawn first, to see whether a whole batch would take too long."""

LONGEST = 5.0
"""Seconds of a whole batch beyond which those few must do."""

AT_LEAST = 0.2
"""Seconds that a measurement takes."""


def seconds_of_sweep(plan: SweepPlan) -> float:
    """About the seconds that all samples and their features take; the metrics come on top.

    A batch of the point with the fewest evaluations is drawn, decoded, and passed through the extractors whose weights
    are on this machine. Raises UserError where the samples of a run cannot be decoded.
    """
    device, points = plan.world.device, plan.grid.points
    cheapest = min(points, key=lambda point: point.evaluations)
    drawing, config = cheapest.drawing, cheapest.config
    with ExitStack() as stack:
        model = drawing.load(device, compute_dtype(config.precision, device), config.compile, stack)
        tokenizer = open_tokenizers(plan)[drawing.run.path]
        extractors = _extractors_here(plan)

        def draw(size: int) -> float:
            return seconds_of(lambda: drawing.draw(model, range(size)), device, AT_LEAST) / size

        def look() -> None:
            images = tokenizer.decode(latents, truncate=drawing.plan.truncates)
            for extractor in extractors:
                extractor(images)

        few, whole = min(FEW, len(drawing)), min(plan.config.batch_size, len(drawing))
        size, drawn = few, draw(few)
        if drawn * whole <= LONGEST:
            size, drawn = whole, draw(whole)
        latents = drawing.draw(model, range(size))
        with torch.inference_mode():
            seen = seconds_of(look, device, AT_LEAST) / size
    work, images = sum(point.work for point in points), sum(len(point.drawing) for point in points)
    return (work * drawn / cheapest.evaluations + images * seen) / plan.world.size


def _extractors_here(plan: SweepPlan) -> list[Extractor]:
    """The extractors of the plan but those whose weights the sweep would have to download first."""
    extractors = []
    for feature in plan.features.features:
        family = extractor_row(feature.name).load()
        with suppress(FileNotFoundError, MachineError):
            extractors.append(
                family.open_extractor(plan.config.extractor, plan.described, plan.world.device, Progress())
            )
    return extractors
