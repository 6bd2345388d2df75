"""Sampling: draw latents in batches, decode them, and put together the samples folder.

The work goes to a hidden folder (`gmtool.artifacts.outputs`), a file per batch, so that the same command resumes what
was stopped; the batches stay until the folder of samples is in its place. Of several processes each draws its share of
the batches, and the first puts them together.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmtool.artifacts.files import check_space, remove_parts
from gmtool.artifacts.latents import Provenance, to_float16, write_latents
from gmtool.artifacts.manifest import Array, Input, Manifest, fingerprint
from gmtool.artifacts.outputs import Output, output_of
from gmtool.artifacts.run import open_run
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.artifacts.samples import GRID, IMAGES, LATENTS, MANIFEST, PICTURES
from gmtool.distributed import World, join
from gmtool.evaluation.plots import image_grid
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32, compute_dtype
from gmtool.sampling.decoder import decoder_of
from gmtool.sampling.drawing import Drawing, plan_drawing
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import SamplePlan
from gmtool.settings import as_flat
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.forecast import Undrawn, samples_bytes
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import image_size_of, missing_decoder
from gmtool.tokenizers.rae import decoder_inputs

GRID_IMAGES = 100
"""Images of the grid at most."""
REMOVE = "remove it, and run the same command again"
"""The remedy for a damaged batch."""
DIVERGED = "use a smaller --guidance-scale, or an earlier --checkpoint"
"""The remedy for samples that have diverged."""


@dataclass(frozen=True)
class SampleReport:
    """The folder, its number of images (or of latents without a decoder), how they were drawn, and why not decoded.

    has_reference: whether the record says which latents the run was trained on, for `gmtool eval` to compare with.
    """

    folder: Path
    count: int
    plan: SamplePlan
    step: int
    no_images: str | None
    has_reference: bool


@dataclass(frozen=True, eq=False)
class SampleJob:
    """The resolved plan of the samples to draw: which and how, where they go, what they are made from."""

    drawing: Drawing
    output: Output
    config: SampleConfig
    inputs: tuple[Input, ...]

    @property
    def part(self) -> Path:
        """The hidden folder until the samples are complete."""
        return self.output.part

    @cached_property
    def pieces(self) -> Path:
        """The folder of the batches that are drawn.

        It is that of this very plan: a process of another one, if it is still alive, writes elsewhere.
        """
        changing = {name: str(value) for name, value in self.settings.items() if name not in ("device", "checkpoint")}
        used = [entry.fingerprint for entry in self.inputs]
        text = json.dumps({"plan": asdict(self.plan), "inputs": used, "config": changing})
        return self.output.pieces / fingerprint([text])

    @property
    def plan(self) -> SamplePlan:
        """The sampling plan."""
        return self.drawing.plan

    @property
    def batches(self) -> list[range]:
        """The samples of each network call."""
        return self.drawing.batches(self.config.batch_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they are recorded."""
        recorded: dict[str, Any] = json.loads(json.dumps(as_flat(self.config), default=str))
        return recorded

    @property
    def no_images(self) -> str | None:
        """Why latents alone are written; None where images are."""
        return missing_decoder(self.drawing.run.tokenizer(), self.config.decoder)

    @property
    def side(self) -> int | None:
        """Side of the images, in pixels; None without images."""
        return None if self.no_images is not None else image_size_of(self.drawing.run.tokenizer())

    @property
    def bytes_needed(self) -> int:
        """Bytes on disk; see `samples_bytes`."""
        return samples_bytes(len(self.drawing), self.drawing.run.architecture.shape, self.side)

    def forecast(self) -> Forecast:
        """The cost of drawing the samples."""
        drawing = self.drawing
        return Undrawn(
            folder=self.output.path,
            config=self.config,
            plan=self.plan,
            architecture=drawing.run.architecture,
            side=self.side,
            no_images=self.no_images,
            model_bytes=drawing.model_bytes(),
        ).forecast(
            title=f"{self.output.path} from {drawing.weights}",
            reads=(FileSize(drawing.weights, drawing.weights.stat().st_size),),
            network=f"step {drawing.checkpoint.step:,}",
            notes=drawing.notes,
            choices=drawing.choices,
        )


def sample(run_path: Path, folder: Path, config: SampleConfig, progress: Progress) -> SampleReport:
    """Draw samples from a run into ``folder``, which replaces an earlier folder of samples.

    Raises UserError for what the run cannot do, naming the flag; MachineError when they will not fit on the disk, or
    the decoder cannot be fetched; NotFinite when samples are infinite or NaN.
    """
    job = plan_samples(run_path, folder, config)
    for line in job.drawing.notes:
        progress.note(line)
    allow_tf32(False)
    world = join(config.device)
    with ExitStack() as stack:
        precision = compute_dtype(config.precision, world.device)
        model = job.drawing.load(world.device, precision, config.compile, stack)
        with world.first_before_others():  # which may fetch the decoder
            tokenizer, no_images = decoder_of(job.drawing.run, config.decoder, world.device)
            job = replace(job, inputs=(*job.inputs, *decoder_inputs(config.decoder)))
        if no_images is not None:
            progress.note(f"latents alone will be written, and no images: {no_images}")
        check_space(job.output.target, job.bytes_needed, "the folder")
        stack.enter_context(job.output.locked(world.first))
        for choice in job.drawing.choices:
            progress.note(f"{choice.flag} {choice.value}: {choice.why}")
        if world.first:
            _prepare(job)
        world.barrier()
        _draw(job, model, tokenizer, world, progress)
        if world.first:
            _assemble(job, tokenizer)
            job.output.publish()
        world.barrier()
    has_reference = any(entry.role == "latents" for entry in job.inputs)
    return SampleReport(folder, len(job.drawing), job.plan, job.drawing.checkpoint.step, no_images, has_reference)


def plan_samples(run_path: Path, folder: Path, config: SampleConfig) -> SampleJob:
    """Settle everything about the samples; nothing is written. Raises UserError as `sample` does."""
    drawing = plan_drawing(open_run(run_path), config.sampling, config.selection, config.weights)
    return SampleJob(drawing, output_of(folder, "samples"), config, drawing.inputs())


def _prepare(job: SampleJob) -> None:
    """Make the unfinished folders, or keep them where the same job began them."""
    if job.part.is_dir() and job.pieces.is_dir():
        for folder in (job.part, job.pieces):
            remove_parts(folder)  # which a kill left
        return
    job.output.discard()
    job.part.mkdir(parents=True)
    job.pieces.mkdir(parents=True)


def _batch_file(job: SampleJob, batch: range) -> Path:
    return job.pieces / f"batch-{batch.start:08d}.safetensors"


def _draw(job: SampleJob, model: TrainedModel, tokenizer: Tokenizer | None, world: World, progress: Progress) -> None:
    """Draw and decode the batches that are not there yet, in rounds of one a process; return when all are done."""
    starts = set(world.tell([batch.start for batch in job.batches if not _batch_file(job, batch).exists()]))
    missing = [batch for batch in job.batches if batch.start in starts]
    done = len(job.drawing) - sum(map(len, missing))
    if tokenizer is not None:
        (job.pieces / PICTURES).mkdir(exist_ok=True)
    progress.begin("sample", len(job.drawing), "images", done)
    for start in range(world.rank, len(missing), world.size):
        _draw_batch(job, model, tokenizer, missing[start])
        progress.advance(sum(map(len, missing[start : start + world.size])))
    world.barrier()
    progress.end()


def _draw_batch(job: SampleJob, model: TrainedModel, tokenizer: Tokenizer | None, batch: range) -> None:
    """Draw and decode a batch into its file, and its pictures."""
    latents = job.drawing.draw(model, batch)
    arrays = {"latents": torch.from_numpy(to_float16(latents.cpu().numpy(), "the samples", DIVERGED))}
    if tokenizer is not None:
        images = tokenizer.decode(latents, truncate=job.plan.truncates)
        arrays["descriptors"] = tokenizer.describe(images)
        arrays["images"] = images.permute(0, 2, 3, 1)
        for index, image in zip(batch, arrays["images"].cpu().numpy(), strict=True):
            Image.fromarray(image).save(job.pieces / PICTURES / f"{index:06d}.png")
    write_tensors(_batch_file(job, batch), arrays)


def _assemble(job: SampleJob, tokenizer: Tokenizer | None) -> None:
    """Put the batches together: the pictures, latents.h5, samples.npz, the grid, and last the record."""
    run, part, labels, settings = job.drawing.run, job.part, job.drawing.labels, job.settings
    size = run.manifest.details["descriptor_size"]
    descriptors = (
        np.concatenate(list(_arrays(job, "descriptors")))
        if tokenizer is not None
        else np.full((len(labels), size), np.nan, np.float32)
    )
    latents = write_latents(
        part / LATENTS,
        patches=_arrays(job, "latents"),
        descriptors=descriptors,
        labels=labels,
        names=[f"{PICTURES}/{index:06d}.png" for index in range(len(labels))],
        classes=run.classes,
        tokenizer=run.tokenizer(),
        provenance=Provenance("sample", settings, job.inputs),
    )
    arrays = {"latents": Array((len(labels), *run.architecture.shape), "float16", "tokenizer output, not normalised")}
    if tokenizer is not None:
        _move_pictures(job)
        side = tokenizer.image_size
        arrays["arr_0"] = Array((len(labels), side, side, 3), "uint8", "RGB, 0 to 255")
        arrays["arr_1"] = Array((len(labels),), "int64", "index into classes, -1: none")
        _write_npz(part / IMAGES, arrays["arr_0"].shape, _arrays(job, "images"), labels)
        first = list(_arrays(job, "images", -(-GRID_IMAGES // len(job.batches[0]))))
        Image.fromarray(image_grid(np.concatenate(first)[:GRID_IMAGES])).save(part / GRID)
    manifest = Manifest(
        kind="samples",
        stage="sample",
        fingerprint=latents.fingerprint,
        config=settings,
        inputs=job.inputs,
        arrays=arrays,
        details={"plan": asdict(job.plan), "count": len(labels), "classes": list(run.classes)},
    )
    (part / MANIFEST).write_text(manifest.to_json())


def _move_pictures(job: SampleJob) -> None:
    """Move the pictures of the batches to their final folder, where those of an earlier try may be."""
    folder = job.part / PICTURES
    folder.mkdir(exist_ok=True)
    for picture in (job.pieces / PICTURES).iterdir():
        picture.replace(folder / picture.name)


def _arrays(job: SampleJob, name: str, count: int | None = None) -> Iterator[np.ndarray]:
    """An array of each of the first ``count`` batches; default: of all."""
    for batch in job.batches[:count]:
        yield read_tensors(_batch_file(job, batch), [name], REMOVE)[name].numpy()


def _write_npz(path: Path, shape: tuple[int, ...], images: Iterator[np.ndarray], labels: np.ndarray) -> None:
    """``arr_0`` images and ``arr_1`` labels, a batch at a time: ten gigabytes of images need not fit in memory."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for batch in images:
                stream.write(batch.tobytes())
        with archive.open("arr_1.npy", "w") as stream:
            np.lib.format.write_array(stream, labels)
