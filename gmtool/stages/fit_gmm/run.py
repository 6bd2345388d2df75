"""Latents to a fitted mixture: modes from the descriptors, then carried to the patches.

1. k-means on the descriptors (`gmtool.mixture.kmeans`), then EM to a diagonal mixture (`gmtool.mixture.em`), both
   without the held-out images. An image and its mirrored copy are on the same side of that split.
2. Every image, held out or not, keeps its most probable modes.
3. Mean and variance of the latents in each mode, streamed from disk (`gmtool.mixture.patch_moments`).

A state beside the file keeps what is done (`gmtool.stages.fit_gmm.checkpoints`): iterations of 1, and blocks of modes
of 3. After any interruption the same command resumes, and ends with the result of an uninterrupted one.

Several processes under torchrun share the images in 1 and 2 (but k-means is the first one's) and the modes in 3; the
first alone writes. A mode's patches are thus summed by one process, and EM's sums are float64 over the same blocks of
images, however many processes there are.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifacts.files import check_space
from gmtool.artifacts.gmm import GmmWriter, KeptModes, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import fingerprint
from gmtool.artifacts.resume import ResumeFile
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.forecast import Forecast
from gmtool.progress import Progress
from gmtool.settings import as_flat
from gmtool.stages.assumed import assumed_latents
from gmtool.stages.fit_gmm.checkpoints import Checkpoints, InPatches, State, load_state, shared_state
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.descriptors import fit_descriptors
from gmtool.stages.fit_gmm.patches import fit_patches
from gmtool.stages.fit_gmm.plan import FitPlan, plan_fit, plan_of_imagenet
from gmtool.stages.fit_gmm.plots import draw_fit
from gmtool.stages.fit_gmm.report import FitMetrics, FitReport, metrics_from_json
from gmtool.stages.presets import Preset

MACHINE_SETTINGS = frozenset({"device", "memory", "decoder"})
"""Settings that do not change the mixture."""

SAVE_SECONDS = 5.0
"""Seconds between two saved states at least."""


def forecast_fit(latents: Path, output: Path, config: FitGmmConfig, preset: Preset | None = None) -> Forecast:
    """What `fit_gmm` with these arguments would do; raises the errors that it would raise before its first step.

    preset: what the latents, which do not exist, would be encoded by; None where they do.
    """
    processes = join(config.device).size
    if preset is not None:
        imagenet = assumed_latents(preset.config("encode"), latents)
        expected = plan_of_imagenet(imagenet, output, config, processes).forecast()
        return replace(expected, work=(imagenet.row("LATENTS"), *expected.work))
    with open_latents(latents) as source:
        return plan_fit(source, output, config, processes).forecast()


def fit_gmm(
    latents: Path, output: Path, config: FitGmmConfig, progress: Progress, save_seconds: float = SAVE_SECONDS
) -> FitReport:
    """Fit a mixture to ``latents``, write it to ``output`` and draw it beside; see the module.

    Nothing is done when ``output`` is already what the same settings make of the same latents. Raises UserError when
    the latents are missing, damaged, changed or not finite, there are fewer images than modes, the memory is too small,
    or ``output`` is no place for it. save_seconds: between two states on disk, at least.
    """
    started = time.monotonic()
    world = join(config.device)
    with open_latents(latents) as source:
        plan = plan_fit(source, output, config, world.size)
        source.verify_content()
        with plan.output.locked(world.first):
            metrics = _finished(source, plan)
            world.barrier()  # all have looked, before the first one writes
            reused = metrics is not None
            if metrics is None:
                for name, amount in plan.forecast().work:
                    progress.note(f"{name}: {amount}")
                metrics = _fit(source, plan, world, progress, save_seconds)
            if world.first:
                plan.output.discard()  # what another fit had begun
                if not (reused and plan.picture.exists()):
                    draw_fit(output, plan.picture, source, metrics, config.decoder, world.device, progress)
            world.barrier()
    return FitReport(output, plan.picture, metrics, reused, time.monotonic() - started)


def _of_file(kept: KeptModes, plan: FitPlan, count: int) -> KeptModes:
    """The kept modes of all samples of the file: none of those outside the part that is used."""
    if len(plan.part) == count:
        return kept
    modes, probabilities = np.zeros((count, plan.top_k), np.int32), np.zeros((count, plan.top_k), np.float32)
    modes[plan.part], probabilities[plan.part] = kept.modes, kept.probabilities
    return KeptModes(modes, probabilities)


def _decisive(settings: Any) -> dict[str, Any]:
    """The settings that the mixture depends on; what earlier versions did not know is as it is by default."""
    known = {**as_flat(FitGmmConfig()), **settings}
    return {name: value for name, value in known.items() if name not in MACHINE_SETTINGS}


def _key(source: LatentsFile, config: FitGmmConfig) -> str:
    """A digest of all that the mixture depends on."""
    return fingerprint([source.manifest.fingerprint, repr(sorted(_decisive(as_flat(config)).items()))])


def _finished(source: LatentsFile, plan: FitPlan) -> FitMetrics | None:
    """The metrics in the output if it is what these settings make of these latents."""
    try:
        with open_gmm(plan.output.target) as gmm:
            manifest = gmm.manifest
        used = manifest.input("latents")
        same_data = used is not None and used.fingerprint == source.manifest.fingerprint
        if not same_data or _decisive(manifest.config) != _decisive(as_flat(plan.config)):
            return None
        return metrics_from_json(manifest.details)
    except (UserError, KeyError, TypeError):
        return None


def _fit(source: LatentsFile, plan: FitPlan, world: World, progress: Progress, save_seconds: float) -> FitMetrics:
    """Do what is left to do; the mixture is in its place when this returns."""
    part, resume = plan.output.part, ResumeFile(plan.output.target, _key(source, plan.config))
    begun = _resumable(load_state(resume, world.device, progress), part, progress) if world.first else None
    state = shared_state(begun, world)
    if state is not None:
        progress.note(f"resuming after {state.in_words()}")
    elif world.first:
        plan.output.discard()
        check_space(plan.output.target, plan.bytes, "the mixture")
    with Checkpoints(resume, save_seconds, writes=world.first) as checkpoints:
        if not isinstance(state, InPatches):
            fit = fit_descriptors(source, plan, state, world, progress, checkpoints)
            if world.first:
                GmmWriter.create(part, fit.mixture, _of_file(fit.kept, plan, len(source)), plan.shape).close()
            state = InPatches(fit.metrics)
            checkpoints.save(state, now=True)
        metrics = fit_patches(source, part, plan, state, world, progress, checkpoints)
    if world.first:
        plan.output.publish()
    world.barrier()  # the file is there for all
    return metrics


def _resumable(state: State | None, part: Path, progress: Progress) -> State | None:
    """The state, unless it counts on a file that is not there or damaged, which is noted."""
    if isinstance(state, InPatches):
        writer = GmmWriter.resume(part, progress)
        if writer is None:
            return None
        writer.close()
    return state
