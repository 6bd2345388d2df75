"""Sampling: draw latents in batches, decode them, and put together the samples folder.

The work goes to a hidden folder (`gmtool.artifacts.outputs`), a file a batch, so that the same command resumes what was
stopped; the folder of samples appears when all is there. Of several processes each draws its share of the batches, and
the first puts them together.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gmtool.artifacts.files import check_space
from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, to_float16, write_latents
from gmtool.artifacts.manifest import Array, Input, Manifest, file_fingerprint
from gmtool.artifacts.outputs import output_of
from gmtool.artifacts.run import MIXTURE, RunFolder, open_run
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.artifacts.samples import GRID, IMAGES, LATENTS, MANIFEST, PICTURES
from gmtool.data.mode_statistics import ModeFrames
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.plots import image_grid
from gmtool.progress import Progress
from gmtool.runtime import compute_dtype
from gmtool.sampling.guide import open_weaker, weights_file
from gmtool.sampling.model import load_network
from gmtool.sampling.plan import Plan, make_plan
from gmtool.sampling.sampler import Model, generate
from gmtool.settings import as_flat
from gmtool.stages.sample.config import SampleConfig
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer, missing_decoder
from gmtool.training.checkpoint import find_checkpoint

GRID_IMAGES = 100
"""Images of the grid at most."""
PLAN = "plan.json"
"""What an unfinished folder is being made by."""


@dataclass(frozen=True)
class SampleReport:
    """The folder, its number of images (or of latents without a decoder), how they were drawn, and why not decoded."""

    folder: Path
    count: int
    plan: Plan
    step: int
    no_images: str | None


def sample(run_path: Path, folder: Path, config: SampleConfig, progress: Progress) -> SampleReport:
    """Draw samples from a run into ``folder``, which replaces an earlier folder of samples.

    Raises UserError for what the run cannot do, naming the flag; MachineError when they will not fit on the disk.
    """
    run = open_run(run_path)
    plan = make_plan(config, run.config)
    labels = choose_labels(config.classes, run, config.num)
    modes = choose_modes(config.modes, run, config.num)
    output = output_of(folder, "samples")
    checkpoint = find_checkpoint(run.checkpoints, config.checkpoint)
    weights = checkpoint.path / weights_file(config, run.config)
    world = join(config.device)
    guide = open_weaker(run, config)
    digest = file_fingerprint(weights)
    inputs = [Input("run", str(run_path.absolute()), digest), *(i for i in run.manifest.inputs if i.role == "latents")]
    if guide is not None:
        inputs.append(guide.input)
    with ExitStack() as stack:
        model = load_model(run, weights, config, world.device, stack)
        if guide is not None:
            model = replace(model, weaker=guide.load(config, world.device))
        with world.first_before_others():  # which may fetch the decoder
            tokenizer, no_images = decoder_of(run, config.decoder, world.device)
        check_space(output.target, _bytes_needed(run, config.num, tokenizer), "the folder")
        stack.enter_context(output.locked(world.first))
        part, made_from = output.part, [each.fingerprint for each in inputs]
        if world.first:
            _prepare(part, json.dumps({"plan": asdict(plan), "inputs": made_from, "config": _settings(config)}))
        world.barrier()
        batches = _batches(config.num, config.batch_size)
        _draw(model, plan, labels, modes, tokenizer, part, batches, world, progress)
        if world.first:
            _assemble(part, batches, labels, run, config, plan, tuple(inputs), tokenizer)
            output.publish()
        world.barrier()
    return SampleReport(folder, config.num, plan, checkpoint.step, no_images)


def choose_labels(wanted: str | None, run: RunFolder, count: int) -> np.ndarray:
    """The label of every sample, (count,) int64: the chosen classes in turn, so that they come equally often; else -1.

    wanted: class numbers or names, separated by commas; None for all. Raises UserError for a run that was trained
    without classes, and for a class it does not know.
    """
    if run.config.condition != "class":
        if wanted is not None:
            raise UserError(f"--classes: {run.path} was trained without classes (--condition {run.config.condition})")
        return np.full(count, -1, np.int64)
    chosen = (
        list(range(len(run.classes))) if wanted is None else [_class(each.strip(), run) for each in wanted.split(",")]
    )
    return np.array(chosen, np.int64)[np.arange(count) % len(chosen)]


def _class(word: str, run: RunFolder) -> int:
    if word in run.classes:
        return run.classes.index(word)
    if word.isdecimal() and int(word) < len(run.classes):
        return int(word)
    raise UserError(f"--classes: {word!r} is neither a class name nor a number below {len(run.classes)}")


def choose_modes(wanted: str | None, run: RunFolder, count: int) -> np.ndarray | None:
    """The mode of every sample, (count,) int64: the wanted numbers, separated by commas, in turn; None where they are
    drawn.

    Raises UserError for a run that no mode of a sample reaches, and for a mode that its mixture does not have.
    """
    if wanted is None:
        return None
    weights = run.statistics().mode_weights
    if weights is None or not (run.config.sees_modes or run.config.coupling == "mode"):
        raise UserError(f"--modes: {run.path} draws without modes; train with --coupling mode or --condition mode")
    number = weights.shape[1]
    words = [each.strip() for each in wanted.split(",")]
    for word in words:
        if not (word.isdecimal() and int(word) < number):
            raise UserError(f"--modes: {word!r} is not a number below {number}, the modes of {run.path}")
    return np.array([int(each) for each in words], np.int64)[np.arange(count) % len(words)]


def decoder_of(run: RunFolder, decoder: str | None, device: torch.device) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that turns the run's latents into images, or None and how to get one."""
    spec = run.tokenizer()
    if (hint := missing_decoder(spec, decoder)) is not None:
        return None, hint
    return build_tokenizer(spec, device, decoder=decoder), None


def load_model(run: RunFolder, weights: Path, config: SampleConfig, device: torch.device, stack: ExitStack) -> Model:
    """A run's network with the weights of a file, ready to draw; ``stack`` closes its mixture, which stays open.

    Raises UserError when the mixture is not the run's.
    """
    network = load_network(run.architecture, weights, config, device)
    statistics = run.statistics()
    frames = None
    if run.config.uses_frames:
        known = run.manifest.input("gmm")
        assert known is not None  # a run that uses a mixture names it
        beside = run.path / MIXTURE  # an imported run brings its own, and may have been moved since
        path = config.gmm or (beside if beside.exists() else Path(known.path))
        gmm = stack.enter_context(open_gmm(path))
        if known.fingerprint != gmm.manifest.fingerprint:
            raise UserError(f"{run.path} was trained with another mixture than {path}: give its own by --gmm")
        frames = ModeFrames(gmm, statistics, device, whitened=run.config.union)
    precision = compute_dtype(config.precision, device)
    return Model(network, run.config, statistics.to(device), frames, device, precision)


def _settings(config: SampleConfig) -> dict[str, str]:
    """The settings that change the images or their division into batches, as text."""
    return {name: str(value) for name, value in as_flat(config).items() if name not in ("device", "checkpoint")}


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _bytes_needed(run: RunFolder, count: int, tokenizer: Tokenizer | None) -> int:
    """Latents twice (the batches and the file), images three times (the batches, the array, the PNGs)."""
    image = 3 * tokenizer.image_size**2 if tokenizer is not None else 0
    return count * (4 * int(np.prod(run.architecture.shape)) + 3 * image)


def _prepare(part: Path, plan: str) -> None:
    """Make the unfinished folder, or keep it where the same plan began it."""
    record = part / PLAN
    if record.is_file() and record.read_text() == plan:
        return
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    record.write_text(plan)


def _batch_file(part: Path, batch: range) -> Path:
    return part / f"batch-{batch.start:08d}.safetensors"


def _draw(
    model: Model,
    plan: Plan,
    labels: np.ndarray,
    modes: np.ndarray | None,
    tokenizer: Tokenizer | None,
    part: Path,
    batches: Sequence[range],
    world: World,
    progress: Progress,
) -> None:
    """Draw and decode the batches that are not there yet, in rounds of one a process; return when all are done."""
    missing = [batch for batch in batches if not _batch_file(part, batch).exists()]
    world.barrier()  # until all have seen what is missing: some of it is about to be made
    done = sum(map(len, batches)) - sum(map(len, missing))
    if tokenizer is not None:
        (part / PICTURES).mkdir(exist_ok=True)
    progress.begin("sample", done + sum(map(len, missing)), "images", done)
    for start in range(world.rank, len(missing), world.size):
        batch = missing[start]
        classes = torch.from_numpy(labels[batch.start : batch.stop]).clamp(min=0)
        chosen = None if modes is None else torch.from_numpy(modes[batch.start : batch.stop])
        latents = generate(model, plan, batch, classes, chosen)
        if not torch.isfinite(latents).all():
            raise UserError("the samples are not finite: try --precision float32, or an earlier --checkpoint")
        arrays = {"latents": torch.from_numpy(to_float16(latents.cpu().numpy(), "the samples"))}
        if tokenizer is not None:
            images = tokenizer.decode(latents, truncate=plan.protocol == "rae")
            arrays["descriptors"] = tokenizer.describe(images)
            arrays["images"] = images.permute(0, 2, 3, 1)
            for index, image in zip(batch, arrays["images"].cpu().numpy(), strict=True):
                Image.fromarray(image).save(part / PICTURES / f"{index:06d}.png")
        write_tensors(_batch_file(part, batch), arrays)
        progress.advance(sum(map(len, missing[start : start + world.size])))
    world.barrier()
    progress.end()


def _assemble(
    part: Path,
    batches: Sequence[range],
    labels: np.ndarray,
    run: RunFolder,
    config: SampleConfig,
    plan: Plan,
    inputs: tuple[Input, ...],
    tokenizer: Tokenizer | None,
) -> None:
    """Put the batches together: latents.h5, samples.npz, the grid, and last the record."""
    spec = run.tokenizer()
    size = run.manifest.details["descriptor_size"]
    descriptors = (
        np.concatenate(list(_arrays(part, batches, "descriptors")))
        if tokenizer is not None
        else np.full((len(labels), size), np.nan, np.float32)
    )
    settings = json.loads(json.dumps(as_flat(config), default=str))
    latents = write_latents(
        part / LATENTS,
        patches=_arrays(part, batches, "latents"),
        descriptors=descriptors,
        labels=labels,
        names=[f"{PICTURES}/{index:06d}.png" for index in range(len(labels))],
        classes=run.classes,
        tokenizer=spec,
        provenance=Provenance("sample", settings, inputs),
    )
    arrays = {"latents": Array((len(labels), *run.architecture.shape), "float16", "tokenizer output, not normalised")}
    if tokenizer is not None:
        side = tokenizer.image_size
        arrays["arr_0"] = Array((len(labels), side, side, 3), "uint8", "RGB, 0 to 255")
        arrays["arr_1"] = Array((len(labels),), "int64", "index into classes, -1: none")
        _write_npz(part / IMAGES, arrays["arr_0"].shape, _arrays(part, batches, "images"), labels)
        first = np.concatenate(list(_arrays(part, batches[: -(-GRID_IMAGES // len(batches[0]))], "images")))
        Image.fromarray(image_grid(first[:GRID_IMAGES])).save(part / GRID)
    manifest = Manifest(
        kind="samples",
        stage="sample",
        fingerprint=latents.fingerprint,
        config=settings,
        inputs=inputs,
        arrays=arrays,
        details={"plan": asdict(plan), "count": len(labels), "classes": list(run.classes)},
    )
    (part / MANIFEST).write_text(manifest.to_json())
    for batch in batches:
        _batch_file(part, batch).unlink()
    (part / PLAN).unlink()


def _arrays(part: Path, batches: Sequence[range], name: str) -> Iterator[np.ndarray]:
    for batch in batches:
        yield read_tensors(_batch_file(part, batch), [name], "remove it, and run the same command again")[name].numpy()


def _write_npz(path: Path, shape: tuple[int, ...], images: Iterator[np.ndarray], labels: np.ndarray) -> None:
    """``arr_0`` images and ``arr_1`` labels, a batch at a time: ten gigabytes of images need not fit in memory."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for batch in images:
                stream.write(batch.tobytes())
        with archive.open("arr_1.npy", "w") as stream:
            np.lib.format.write_array(stream, labels)
