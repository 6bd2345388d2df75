"""The cost of drawing samples, before it begins: ``gmtool sample --dry-run``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gmtool.forecast import Choice, FileSize, Forecast
from gmtool.nn.architecture import Architecture
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.sampling.plan import SamplePlan
from gmtool.sampling.sampler import evaluations_of
from gmtool.stages.sample.config import SampleConfig
from gmtool.throughput import device_name, known_speed, speed_row
from gmtool.training.cost import evaluation_flops


def samples_bytes(count: int, shape: tuple[int, int, int], side: int | None) -> int:
    """Bytes on disk of ``count`` samples: latents twice (batches and file), images three times (batches, array, PNGs).

    shape: (C, H, W) of the latents. side: of the images, in pixels; None without images.
    """
    return count * (4 * math.prod(shape) + (0 if side is None else 9 * side**2))


@dataclass(frozen=True, eq=False)
class Undrawn:
    """Samples of a run that were not drawn.

    folder: to write. plan: how, from a network of this ``architecture``, in ``batches`` calls. side: of the images, in
    pixels; None where latents alone are written, which ``no_images`` then explains. model_bytes: memory of all that is
    loaded to draw.
    """

    folder: Path
    config: SampleConfig
    plan: SamplePlan
    architecture: Architecture
    side: int | None
    no_images: str | None
    model_bytes: int

    def forecast(
        self,
        title: str,
        reads: tuple[FileSize, ...],
        network: str,
        notes: tuple[str, ...] = (),
        choices: tuple[Choice, ...] = (),
    ) -> Forecast:
        """What drawing them would take. network: which, in words. notes: what a user should know, a line each."""
        config, shape, count = self.config, self.architecture.shape, self.config.selection.num
        device = resolve_device(config.device)
        precision = compute_dtype(config.precision, device)
        evaluations = evaluations_of(self.plan)
        flops = evaluations * evaluation_flops(self.architecture, precision)
        speed = known_speed(device_name(device), str(precision).removeprefix("torch."))
        guide = "" if config.sampling.guide is None else ", its guide taken for as large"
        return Forecast(
            title=title,
            reads=reads,
            writes=(FileSize(self.folder, samples_bytes(count, shape, self.side)),),
            work=(
                ("samples", f"{count:,} of {' x '.join(map(str, shape))}, {network}"),
                *((("no images", self.no_images),) if self.no_images is not None else ()),
                ("by", self.plan.words),
                ("network evaluations per sample", f"{evaluations}"),
                ("network calls", f"{-(-count // config.batch_size):,} batches of {evaluations}"),
                ("operations per sample", f"{flops / 1e12:,.4g} TFLOP{guide}"),
                speed_row(speed),
                *(("note", line) for line in notes),
            ),
            choices=choices,
            memory=self.model_bytes,
            seconds=None if speed is None or guide else count * flops / speed.train,
            more_memory="what the network computes of a batch" + ", and the decoder" * (self.side is not None),
            more_time="" if self.side is None else "the decoder's",
        )
