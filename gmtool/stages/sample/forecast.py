"""The cost of drawing samples, before it begins: ``gmtool sample --dry-run``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from gmtool.artifacts.outputs import output_of
from gmtool.data.mode_statistics import mode_bytes
from gmtool.forecast import Choice, FileSize, Forecast
from gmtool.nn.architecture import Architecture
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.sampling.plan import SamplePlan, make_plan, sampling_choices
from gmtool.sampling.sampler import evaluations_of
from gmtool.stages.assumed import assumed_latents
from gmtool.stages.presets import Preset
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.train.forecast import facts_of_preset
from gmtool.stages.train.plan import plan_training
from gmtool.throughput import device_name, known_speed, speed_row
from gmtool.tokenizers.table import family_of
from gmtool.training.cost import evaluation_flops, parameters_of


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


def forecast_of_imagenet(run: Path, folder: Path, config: SampleConfig, preset: Preset) -> Forecast:
    """What drawing from the run that a preset trains on ImageNet's latents would take; ``run`` does not exist.

    Raises UserError where the preset does not tell the latents' shape, where such a run cannot be drawn from as the
    settings say, and where the folder cannot be written.
    """
    written, encode = output_of(folder, "samples"), preset.config("encode")
    latents = assumed_latents(encode, run)
    gpu = resolve_device(config.device).type == "cuda"
    training = plan_training(preset.config("train"), facts_of_preset(preset, latents), gpu)
    parameters = parameters_of(training.architecture)
    modes = mode_bytes(training.facts.modes, latents.layout.shape) if training.method.uses_mode_statistics else 0
    hint = None if config.decoder is not None else family_of(encode.tokenizer.tokenizer).decoder_hint
    samples = Undrawn(
        folder=written.path,
        config=config,
        plan=make_plan(config.sampling, training.method, training.architecture.spectral, config.selection.seed),
        architecture=training.architecture,
        side=latents.image_size if hint is None else None,
        no_images=hint,
        model_bytes=4 * parameters + modes,
    )
    expected = samples.forecast(
        title=f"{written.path} from {run}",
        reads=(FileSize(run, 4 * parameters),),
        network=f"of a {training.model} of {parameters:,} parameters",
        choices=sampling_choices(config.sampling, training.method),
    )
    return replace(expected, work=(latents.row("RUN"), *expected.work))
