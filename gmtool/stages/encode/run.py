"""Images to a latents file.

The file is laid out whole beside its final name, filled batch by batch in the order of the images, and renamed when it
is complete. Every few seconds what was written is brought to disk, and then a small state beside it says how far it
goes (`gmtool.artifacts.resume`); after any interruption the same command resumes from there. The batches cover fixed
blocks of images and the moments fixed blocks of samples, so the result does not depend on where it was interrupted.

Several processes encode a batch each in every round, and the first writes them in order: the file, the state and the
way back after an interruption are those of one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmtool.artifacts.files import check_space
from gmtool.artifacts.latents import LatentsWriter, Provenance, open_latents
from gmtool.artifacts.manifest import Input, Manifest
from gmtool.artifacts.resume import ResumeState
from gmtool.data.images import BadImage, bad_image_error, no_image_error
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.mixture.running_moments import RunningMoments
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32
from gmtool.stages.encode.batches import EncodedBatch, encoded_batches
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.plan import EncodePlan, class_counts, empty_classes, plan_encoding
from gmtool.tokenizers.build import facts_of_models, latent_sizes
from gmtool.tokenizers.choose import fit_tokenizer

SAVE_SECONDS = 5.0
"""Seconds of work that an interruption costs at most."""
DONE = "images done"
"""Beside the tokenizer's arrays, the number that the first process tells the others."""
MOMENTS_BLOCK = 64
"""Samples summed at a time for the moments."""
CLASS_COUNTS = "class_counts"
"""Key in the manifest's details: number of samples of each class, in the order of the classes."""


@dataclass(frozen=True)
class EncodeReport:
    """The result of an encoding.

    path: the latents file. samples: their number; shape: (C, H, W) of one; descriptor_size: D. classes: their number;
    empty_classes: those without a sample, in words. bytes: size of the file. seconds: of this call. skipped: images
    that could not be read. fresh: False when the file was there already.
    """

    path: Path
    samples: int
    shape: tuple[int, int, int]
    descriptor_size: int
    classes: int
    empty_classes: str
    bytes: int
    seconds: float
    skipped: tuple[BadImage, ...]
    fresh: bool


@dataclass(frozen=True, eq=False)
class EncodeState:
    """The progress of an encoding.

    images: done, bad ones included. samples: written. moments: of the first ``moments.count`` samples, a whole number
    of blocks; pending: the samples after them, float16. skipped: bad images. counts: samples of each class.
    """

    images: int
    samples: int
    moments: RunningMoments
    pending: np.ndarray
    skipped: tuple[BadImage, ...]
    counts: np.ndarray

    @classmethod
    def start(cls, plan: EncodePlan) -> EncodeState:
        """Nothing done."""
        shape = plan.layout.shape
        counts = np.zeros(len(plan.images.classes), np.int64)
        return cls(0, 0, RunningMoments.empty(shape), np.empty((0, *shape), np.float16), (), counts)

    @classmethod
    def read(cls, saved: ResumeState, writer: LatentsWriter) -> EncodeState:
        """What `saved` says, of the file that is being written. Raises KeyError or TypeError where it is incomplete."""
        record, arrays = saved.record, saved.arrays
        moments = RunningMoments(record["count"], arrays["mean"], arrays["m2"])
        skipped = tuple(BadImage(**values) for values in record["skipped"])
        pending = writer.patches(slice(record["count"], record["samples"]))
        return cls(record["images"], record["samples"], moments, pending, skipped, arrays["counts"])

    def saved(self) -> ResumeState:
        """The state for the disk; the pending samples are in the latents file itself."""
        record = {
            "images": self.images,
            "samples": self.samples,
            "count": self.moments.count,
            "skipped": [asdict(image) for image in self.skipped],
        }
        return ResumeState(record, {"mean": self.moments.mean, "m2": self.moments.m2, "counts": self.counts})


def encode_images(
    images: Path, output: Path, config: EncodeConfig, progress: Progress, save_seconds: float = SAVE_SECONDS
) -> EncodeReport:
    """Encode the images of a folder or archive to a latents file; see the module.

    A finished file of the same images and settings is left as it is; another one is replaced once the new one is
    whole. save_seconds: between two savings of the state. Raises UserError and MachineError as `plan_encoding` does,
    MachineError when the file does not fit on the disk, and UserError, with the image's name, for an image that cannot
    be read (without ``config.skip_bad``), a colour image where grey ones were announced, or latents that float16 cannot
    hold.
    """
    started = time.monotonic()
    allow_tf32(False)
    world = join(config.device)
    with world.first_before_others():  # which may fetch weights
        plan = plan_encoding(images, output, config)
    forecast = plan.forecast()
    progress.note(forecast.title)
    if forecast.choices:
        progress.note("defaults: " + " ".join(f"{choice.flag} {choice.value}" for choice in forecast.choices))
    for name, fact in facts_of_models(plan.tokenizer):
        progress.note(f"{name}: {fact}")
    for kind in plan.images.left_out:
        progress.note(f"left out: {kind}")
    with plan.output.locked(world.first):
        finished = _finished(plan)
        world.barrier()  # all have looked, before the first one writes
        if finished is not None:
            if world.first:
                plan.output.discard()  # what other settings had begun
            progress.note(f"{plan.output.path} already holds these images in this encoding: nothing to do")
            return _report(plan, finished, (), time.monotonic() - started, fresh=False)
        manifest, skipped = _write(plan, world, progress, save_seconds) if world.first else _help(plan, world)
        return _report(plan, manifest, skipped, time.monotonic() - started, fresh=True)


def _write(
    plan: EncodePlan, world: World, progress: Progress, save_seconds: float
) -> tuple[Manifest, tuple[BadImage, ...]]:
    """Make the file, of the batches of all processes; return its manifest, and the images that were left out."""
    with _open_part(plan, progress) as (writer, state):
        fitted = {name: torch.from_numpy(np.array(array)) for name, array in writer.tokenizer.arrays.items()}
        world.broadcast({DONE: torch.tensor(state.images), **fitted})
        progress.begin("encoding", len(plan.rows), "images", done=state.images)
        saved = time.monotonic()
        try:
            for batch in encoded_batches(plan, writer.tokenizer, state.images, world):
                state = _add(plan, writer, state, batch, world.device)
                progress.advance(len(batch.indices) + len(batch.bad))
                if time.monotonic() - saved > save_seconds:
                    _save(plan, writer, state)
                    saved = time.monotonic()
        except BaseException:
            with suppress(Exception):  # the error itself matters more; the last state stays valid
                _save(plan, writer, state)
            if not state.images:
                plan.output.discard()
            raise
        finally:
            progress.end()
        if not state.samples:
            plan.output.discard()
            raise no_image_error(plan.images)
        _save(plan, writer, state)
        total = state.moments.merge(_moments(state.pending, world.device))
        manifest = writer.finish(
            state.samples, total, {"skipped": len(state.skipped), CLASS_COUNTS: state.counts.tolist()}
        )
    plan.output.publish()
    world.barrier()
    return manifest, state.skipped


def _help(plan: EncodePlan, world: World) -> tuple[Manifest, tuple[BadImage, ...]]:
    """Encode this process's batches for the first one, which writes; return the manifest of the file that it made."""
    told = {name: tensor.numpy() for name, tensor in world.broadcast({}).items()}
    done = int(told.pop(DONE))
    for _ in encoded_batches(plan, replace(plan.tokenizer, arrays=told), done, world):
        raise AssertionError("batches go to the first process alone")
    world.barrier()
    with open_latents(plan.output.target) as latents:
        return latents.manifest, ()


def _add(
    plan: EncodePlan, writer: LatentsWriter, state: EncodeState, batch: EncodedBatch, device: torch.device
) -> EncodeState:
    """Write a batch; return the state after it."""
    images, moments, pending = plan.images, state.moments, state.pending
    if len(batch.patches):
        indices = batch.indices.repeat(plan.views)
        writer.write(
            state.samples,
            batch.patches,
            batch.descriptors,
            images.labels[indices],
            [images.names[index] for index in indices],
            np.tile(np.arange(plan.views) == 1, len(batch.indices)) | plan.mirrored[indices],
        )
        pending = np.concatenate([pending, batch.patches])
        while len(pending) >= MOMENTS_BLOCK:
            moments = moments.merge(_moments(pending[:MOMENTS_BLOCK], device))
            pending = pending[MOMENTS_BLOCK:]
    return EncodeState(
        images=state.images + len(batch.indices) + len(batch.bad),
        samples=state.samples + len(batch.patches),
        moments=moments,
        pending=pending,
        skipped=(*state.skipped, *batch.bad),
        counts=state.counts + class_counts(images.labels[batch.indices], len(images.classes), plan.views),
    )


def _moments(patches: np.ndarray, device: torch.device) -> RunningMoments:
    """The moments of samples (B, C, H, W) float16, in float64, summed on a GPU where there is one; B may be 0."""
    if not len(patches):
        return RunningMoments.empty(patches.shape[1:])
    if device.type == "cpu":  # where numpy takes a third of the time
        return RunningMoments.of(patches)
    values = torch.from_numpy(patches).to(device).double()
    mean = values.mean(0)
    return RunningMoments(len(patches), mean.cpu().numpy(), (values - mean).square_().sum(0).cpu().numpy())


def _save(plan: EncodePlan, writer: LatentsWriter, state: EncodeState) -> None:
    """Bring what was written to the disk, then the state that counts it."""
    writer.flush()
    plan.resume_file.save(state.saved())


def _finished(plan: EncodePlan) -> Manifest | None:
    """The manifest of the output, if it is a whole latents file that this plan would make again."""
    if not plan.output.target.exists():
        return None
    try:
        with open_latents(plan.output.target) as latents:
            manifest = latents.manifest
    except UserError:
        return None
    images = manifest.input("images")
    same = (
        manifest.details.get("key") == plan.key
        and (images is None or plan.images.is_known_by(images.fingerprint))
        and (plan.skip_bad or not manifest.details.get("skipped"))
    )
    return manifest if same else None


@contextmanager
def _open_part(plan: EncodePlan, progress: Progress) -> Iterator[tuple[LatentsWriter, EncodeState]]:
    """The file being written and how far it goes: an earlier one of the same plan, or a new one.

    Raises UserError where an earlier call skipped an image that this one must not skip; the file stays.
    """
    part, resume = plan.output.part, plan.resume_file
    writer = LatentsWriter.resume(part, progress) if part.exists() else None
    state = None if writer is None else resume.restore(partial(EncodeState.read, writer=writer), progress)
    if writer is not None and state is not None:
        progress.note(f"resuming after {state.images:,} images encoded earlier")
    else:
        if writer is not None:
            writer.close()
        plan.output.discard()
        writer, state = _create(plan, part), EncodeState.start(plan)
        resume.save(state.saved())
    with writer:
        if state.skipped and not plan.skip_bad:
            raise bad_image_error(plan.images, state.skipped[0])
        yield writer, state


def _create(plan: EncodePlan, part: Path) -> LatentsWriter:
    """Fit the tokenizer and lay out the file."""
    check_space(plan.output.target, plan.layout.bytes(), "the latents file")
    spec = fit_tokenizer(plan.tokenizer, plan.sample)
    layout = replace(plan.layout, descriptor_size=latent_sizes(spec, len(plan.rows)).descriptor)
    root = str(plan.images.root.resolve())
    details: dict[str, Any] = {
        "key": plan.key,
        "image_root": root,
        "images": len(plan.images),
        "flip": plan.settings["flip"],
        "skipped": 0,
        CLASS_COUNTS: plan.class_counts(),
    }
    provenance = Provenance("encode", plan.settings, (Input("images", root, plan.images.fingerprint),), details)
    return LatentsWriter.create(part, layout, spec, provenance)


def _report(
    plan: EncodePlan, manifest: Manifest, skipped: tuple[BadImage, ...], seconds: float, *, fresh: bool
) -> EncodeReport:
    arrays, classes = manifest.arrays, plan.images.classes
    _, channels, height, width = arrays["patches"].shape
    counts = manifest.details.get(CLASS_COUNTS, [1] * len(classes))  # files of older versions lack them
    return EncodeReport(
        path=plan.output.path,
        samples=arrays["patches"].shape[0],
        shape=(channels, height, width),
        descriptor_size=arrays["cls"].shape[1],
        classes=len(classes),
        empty_classes=empty_classes(classes, counts),
        bytes=plan.output.target.stat().st_size,
        seconds=seconds,
        skipped=skipped,
        fresh=fresh,
    )
