"""Images to a latents file.

The file is laid out whole beside its final name, filled batch by batch in the order of the images, and renamed when it
is complete. Every few seconds what was written is brought to disk, and then a small state beside it says how far it
goes (`gmtool.stages.encode.state`); after any interruption the same command goes on from there. The batches cover fixed
blocks of images and the moments fixed blocks of samples, so the result does not depend on where it was interrupted.

Several processes encode a batch each in every round, and the first writes them in order: the file, the state and the
way back after an interruption are those of one process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmtool.artifacts.files import check_space
from gmtool.artifacts.latents import LatentsWriter, Provenance, open_latents, to_float16
from gmtool.artifacts.manifest import Input, Manifest
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.images import BadImage, ImageBatch, image_batches, no_image_error
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.mixture.running_moments import RunningMoments
from gmtool.progress import Progress
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.plan import EncodePlan, plan_encoding
from gmtool.stages.encode.state import EncodeState, read_state, write_state
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.choose import check_colour, fit_tokenizer, latent_sizes

STATE_SECONDS = 5.0
"""Seconds of work that an interruption costs at most."""
DONE = "images done"
"""Beside the tokenizer's arrays, the number that the first process tells the others."""
MOMENTS_BLOCK = 64
"""Samples summed at a time for the moments."""


@dataclass(frozen=True)
class EncodeReport:
    """What came out. seconds: of this call. skipped: images that could not be read. fresh: False when it was there."""

    path: Path
    samples: int
    shape: tuple[int, int, int]
    descriptor_size: int
    classes: int
    bytes: int
    seconds: float
    skipped: tuple[BadImage, ...]
    fresh: bool


def encode_images(images: Path, output: Path, config: EncodeConfig, progress: Progress) -> EncodeReport:
    """Encode the images of a folder or archive to a latents file; see the module.

    A finished file of the same images and settings is left as it is; another one is replaced once the new one is
    whole. Raises UserError and MachineError as `plan_encoding` does, and UserError, with the image's name, for an
    image that cannot be read (without ``config.skip_bad``), a colour image where grey ones were announced, or latents
    that float16 cannot hold.
    """
    started = time.monotonic()
    world = join(config.device)
    with world.first_before_others():  # which may fetch weights
        plan = plan_encoding(images, output, config)
    for line in plan.lines():
        progress.note(line)
    with plan.output.locked(world.first):
        finished = _finished(plan)
        world.barrier()  # all have looked, before the first one writes
        if finished is not None:
            progress.note(f"{plan.output.path} already holds these images in this encoding: nothing to do")
            return _report(plan, finished, (), time.monotonic() - started, fresh=False)
        manifest, skipped = _write(plan, world, progress) if world.first else _help(plan, world)
        return _report(plan, manifest, skipped, time.monotonic() - started, fresh=True)


def _write(plan: EncodePlan, world: World, progress: Progress) -> tuple[Manifest, tuple[BadImage, ...]]:
    """Make the file, of the batches of all processes; return its manifest, and the images that were left out."""
    with _open_part(plan, progress) as (writer, state):
        fitted = {name: torch.from_numpy(np.array(each)) for name, each in writer.tokenizer.arrays.items()}
        world.broadcast({DONE: torch.tensor(state.images), **fitted})
        encoding = _Encoding(plan, writer, state)
        try:
            encoding.write(_encoded_batches(plan, writer.tokenizer, state.images, world), progress)
        except BaseException:
            with suppress(Exception):  # the error itself matters more; the last state stays valid
                encoding.save()
            if not encoding.state.images:
                plan.output.discard()
            raise
        if not encoding.state.samples:
            raise no_image_error(plan.images)
        encoding.save()
        state = encoding.state
        manifest = writer.finish(state.samples, encoding.total(), {"skipped": len(state.skipped)})
    plan.output.publish()
    world.barrier()
    return manifest, state.skipped


def _help(plan: EncodePlan, world: World) -> tuple[Manifest, tuple[BadImage, ...]]:
    """Encode this process's batches for the first one, which writes; return the manifest of the file that it made."""
    told = {name: each.numpy() for name, each in world.broadcast({}).items()}
    done = int(told.pop(DONE))
    for _ in _encoded_batches(plan, replace(plan.tokenizer, arrays=told), done, world):
        raise AssertionError("batches go to the first process alone")
    world.barrier()
    with open_latents(plan.output.target) as latents:
        return latents.manifest, ()


@dataclass(frozen=True, eq=False)
class _EncodedBatch:
    """indices (B,): rows of the set. patches float16 and descriptors float32 of their samples. bad: left out."""

    indices: np.ndarray
    patches: np.ndarray
    descriptors: np.ndarray
    bad: tuple[BadImage, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The batch as it travels to another process."""
        bad = np.frombuffer(json.dumps([asdict(each) for each in self.bad]).encode(), np.uint8)
        arrays = {"indices": self.indices, "patches": self.patches, "descriptors": self.descriptors, "bad": bad.copy()}
        return {name: torch.from_numpy(each) for name, each in arrays.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> _EncodedBatch:
        """The batch that travelled."""
        arrays = {name: each.numpy() for name, each in tensors.items()}
        bad = tuple(BadImage(**each) for each in json.loads(arrays.pop("bad").tobytes()))
        return cls(**arrays, bad=bad)


def _encoded_batches(plan: EncodePlan, spec: TokenizerSpec, done: int, world: World) -> Iterator[_EncodedBatch]:
    """The batches after the ``done`` first images, in order, for the first process; none for the others.

    In a round each process encodes a batch; the last round may lack some.
    """
    config, rest, size = plan.config, plan.rows[done:], plan.config.batch_size
    starts = range(0, len(rest), size)
    mine = [rest[start : start + size] for start in starts[world.rank :: world.size]]
    tokenizer = build_tokenizer(spec, world.device, config.precision)
    batches = image_batches(
        plan.images,
        tokenizer.image_size,
        size,
        workers=config.workers,
        skip_bad=config.skip_bad,
        rows=np.concatenate([rest[:0], *mine]),
    )
    for _ in starts[:: world.size]:
        batch = next(batches, None)
        for found in world.gather({} if batch is None else _encoded(plan, tokenizer, batch).tensors()):
            if found:
                yield _EncodedBatch.of(found)


def _encoded(plan: EncodePlan, tokenizer: Tokenizer, batch: ImageBatch) -> _EncodedBatch:
    """A batch, encoded: each image followed by its mirror image if wanted."""
    if not len(batch.indices):
        shape = plan.layout.shape
        nothing = np.empty((0, *shape), np.float16), np.empty((0, tokenizer.descriptor_size), np.float32)
        return _EncodedBatch(batch.indices, *nothing, batch.bad)
    images = torch.from_numpy(batch.images)
    views = [images, images.flip(-1)][: plan.views]
    check_colour(plan.tokenizer, plan.images, batch)
    encoded = [tokenizer.encode(view) for view in views]
    patches, descriptors = (
        torch.stack(parts, dim=1).flatten(0, 1).cpu().numpy()
        for parts in ([each.patches for each in encoded], [each.descriptors for each in encoded])
    )
    names = [plan.images.names[index] for index in batch.indices]
    whose = names[0] if len(names) == 1 else f"a batch of images from {names[0]} to {names[-1]}"
    if not np.isfinite(descriptors).all():
        raise UserError(f"the descriptors of {whose} are not finite: encode with --precision float32")
    return _EncodedBatch(batch.indices, to_float16(patches, whose), descriptors, batch.bad)


class _Encoding:
    """A file that is being written, and how far it goes."""

    def __init__(self, plan: EncodePlan, writer: LatentsWriter, state: EncodeState) -> None:
        self.plan, self.writer, self.state = plan, writer, state
        # the samples since the last whole block of the moments
        self._pending = writer.patches(slice(state.moments.count, state.samples))

    def write(self, batches: Iterable[_EncodedBatch], progress: Progress) -> None:
        """Write the batches after the state's, saving the state now and then."""
        saved = time.monotonic()
        progress.begin("encoding", len(self.plan.rows), "images", done=self.state.images)
        try:
            for batch in batches:
                self._add(batch)
                progress.advance(len(batch.indices) + len(batch.bad))
                if time.monotonic() - saved > STATE_SECONDS:
                    self.save()
                    saved = time.monotonic()
        finally:
            progress.end()

    def save(self) -> None:
        """Bring what was written to the disk, then the state that counts it."""
        self.writer.flush()
        write_state(self.plan.output.target, self.state)

    def total(self) -> RunningMoments:
        """RunningMoments of all samples."""
        return self.state.moments.update(self._pending)

    def _add(self, batch: _EncodedBatch) -> None:
        """Write a batch; the state changes last, at once."""
        state, moments, found = self.state, self.state.moments, self.plan.images
        if len(batch.patches):
            indices = batch.indices.repeat(self.plan.views)
            self.writer.write(
                state.samples,
                batch.patches,
                batch.descriptors,
                found.labels[indices],
                [found.names[index] for index in indices],
                np.tile(np.arange(self.plan.views) == 1, len(batch.indices)),
            )
            self._pending = np.concatenate([self._pending, batch.patches])
            while len(self._pending) >= MOMENTS_BLOCK:
                moments = moments.update(self._pending[:MOMENTS_BLOCK])
                self._pending = self._pending[MOMENTS_BLOCK:]
        self.state = replace(
            state,
            images=state.images + len(batch.indices) + len(batch.bad),
            samples=state.samples + len(batch.patches),
            moments=moments,
            skipped=(*state.skipped, *batch.bad),
        )


def _finished(plan: EncodePlan) -> Manifest | None:
    """The manifest of the output, if it is a whole latents file that this plan would make again."""
    if not plan.output.target.exists():
        return None
    try:
        with open_latents(plan.output.target) as latents:
            manifest = latents.manifest
    except UserError:
        return None
    same = manifest.details.get("key") == plan.key and (plan.config.skip_bad or not manifest.details.get("skipped"))
    return manifest if same else None


@contextmanager
def _open_part(plan: EncodePlan, progress: Progress) -> Iterator[tuple[LatentsWriter, EncodeState]]:
    """The file being written and how far it goes: an earlier one of the same plan, or a new one."""
    part, state = plan.output.part, read_state(plan.output.target)
    writer = _reopen(part, progress) if part.exists() else None
    if writer is not None and state is not None and state.key == plan.key:
        progress.note(f"going on after {state.images:,} images encoded earlier")
    else:
        if writer is not None:
            writer.close()
            if state is not None and state.key != plan.key:
                progress.note(f"{part} was begun with other images or settings: starting over")
        plan.output.discard()
        writer, state = _create(plan, part), EncodeState.start(plan.key, plan.layout.shape)
        write_state(plan.output.target, state)
    with writer:
        yield writer, state


def _reopen(part: Path, progress: Progress) -> LatentsWriter | None:
    try:
        return LatentsWriter.reopen(part)
    except (OSError, KeyError, RuntimeError, ValueError, UserError):
        progress.note(f"{part} is damaged: starting over")
        return None


def _create(plan: EncodePlan, part: Path) -> LatentsWriter:
    """Fit the tokenizer and lay out the file."""
    check_space(plan.output.target, plan.layout.bytes(), "the latents file")
    spec = fit_tokenizer(plan.tokenizer, plan.config, plan.images, plan.rows)
    _, descriptor_size = latent_sizes(spec, len(plan.rows))
    root = str(plan.images.root.resolve())
    details: dict[str, Any] = {
        "key": plan.key,
        "image_root": root,
        "images": len(plan.images),
        "flip": plan.config.flip,
        "skipped": 0,
    }
    provenance = Provenance("encode", asdict(plan.config), (Input("images", root, plan.images.fingerprint),), details)
    return LatentsWriter.create(part, replace(plan.layout, descriptor_size=descriptor_size), spec, provenance)


def _report(
    plan: EncodePlan, manifest: Manifest, skipped: tuple[BadImage, ...], seconds: float, *, fresh: bool
) -> EncodeReport:
    arrays = manifest.arrays
    _, channels, height, width = arrays["patches"].shape
    return EncodeReport(
        path=plan.output.path,
        samples=arrays["patches"].shape[0],
        shape=(channels, height, width),
        descriptor_size=arrays["cls"].shape[1],
        classes=len(plan.images.classes),
        bytes=plan.output.target.stat().st_size,
        seconds=seconds,
        skipped=skipped,
        fresh=fresh,
    )
