"""What scoring a preset's samples would take: ``gmtool eval --preset NAME --dry-run`` without any samples."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifacts.samples import METRICS
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.evaluation.extractors import Described, choose_extractors, extractor_row
from gmtool.evaluation.feature_plan import FeaturePlan
from gmtool.evaluation.references import open_reference
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.stages.assumed import assumed_latents
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.presets import Preset


def forecast_of_imagenet(
    samples: Path, output: Path | None, config: EvaluateConfig, preset: Preset, progress: Progress
) -> Forecast:
    """What scoring as many samples as a preset draws would take; ``samples`` do not exist.

    They are compared with the images of the latents that the preset encodes, unless the settings name others. Which
    metrics these allow is known once they are there. Raises UserError where the preset does not tell the latents'
    shape, and for a reference that cannot be opened; MachineError when no features that were asked for can be had.
    """
    encode = preset.config("encode")
    latents, count = assumed_latents(encode, samples), preset.config("sample").selection.num
    given = None if config.reference is None else open_reference(config.reference)
    real = latents.layout.capacity if given is None else len(given)
    described = Described(TokenizerSpec(encode.tokenizer.tokenizer, {}), latents.layout.descriptor_size)
    chosen = choose_extractors(config.extractor, progress, fetch=False)
    features = [
        FeaturePlan(
            choice, extractor_row(choice.value).load().feature_size(config.extractor, described), (), None, None
        )
        for choice in chosen.choices
    ]
    return Forecast(
        title=f"Would score {samples} against {'latents.h5' if given is None else given.path}",
        reads=(FileSize(samples, None), *(() if given is None else (FileSize(given.path, None),))),
        writes=(FileSize(output or samples / METRICS, None),),
        work=(
            ("SAMPLES (assumed)", f"{count:,} images of the preset's: {samples} does not exist"),
            ("features", ", ".join(extractor_row(plan.name).title for plan in features)),
            ("samples", f"{count:,} images of {latents.image_size} x {latents.image_size} px"),
            ("reference", f"{real:,} images" if given is not None else f"ImageNet's by the preset, {latents.words}"),
            *(("left out", line) for line in chosen.missing),
        ),
        choices=chosen.choices if config.extractor.automatic else (),
        memory=max(plan.memory(count, real, config.intervals > 0) for plan in features),
        more_memory="the extractors",
    )
