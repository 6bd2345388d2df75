"""Reconstruct images: encode, decode, and compare image by image and set by set."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmtool import __version__
from gmtool.artifacts.manifest import Input, Manifest, fingerprint, parse_manifest
from gmtool.artifacts.outputs import Output, output_of
from gmtool.artifacts.reconstruction import PAIRS, RECORD, TABLE, WORST
from gmtool.artifacts.resume import ResumeFile, ResumeState
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.image_sets import ImageSet, expect_outside, find_images, spread
from gmtool.data.images import ImageSample, batch_bytes, default_workers, image_batches
from gmtool.distributed import World, join
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import Described, choose_together, extractor_row
from gmtool.evaluation.features import Extractor, feature_statistics
from gmtool.evaluation.metrics.frechet_distance import frechet_distance
from gmtool.evaluation.plots import image_grid
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.reconstruction.perceptual import Lpips, load_lpips, vgg_file
from gmtool.reconstruction.quality import psnr, ssim
from gmtool.runtime import allow_tf32
from gmtool.settings import as_flat
from gmtool.stages.reconstruct.config import ReconstructConfig
from gmtool.stages.reconstruct.report import (
    LABELS,
    FeatureDistance,
    Quality,
    ReconstructionReport,
    WorstImage,
    parse_reconstruction,
)
from gmtool.stages.reconstruct.statistics_check import (
    NamedStatistics,
    expect_belonging,
    statistics_of,
    statistics_of_decoder,
)
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import (
    build_tokenizer,
    expect_use_of,
    facts_of_models,
    image_size_of,
    latent_sizes,
    missing_decoder,
)
from gmtool.tokenizers.choose import choose_tokenizer, fit_tokenizer
from gmtool.tokenizers.rae import decoder_inputs, recorded_encoder
from gmtool.tokenizers.settings import TokenizerSettings

CHECKED = 256
"""Latents at most that statistics are held against."""
SECONDS = 15.0
"""Longest download that nobody asked for."""
SMALLEST = 11
"""Side, in pixels, of SSIM's window."""


@dataclass(frozen=True, eq=False)
class ReconstructPlan:
    """The plan of a reconstruction. rows: of the images."""

    config: ReconstructConfig
    images: ImageSet
    rows: np.ndarray
    tokenizer: TokenizerSpec
    output: Output
    workers: int

    def forecast(self) -> Forecast:
        """The plan as ``--dry-run`` shows it."""
        return Forecast(
            title=f"{self.images.root}: {len(self.rows):,} of {len(self.images):,} images",
            reads=(FileSize(self.images.root, self.images.bytes),),
            writes=tuple(FileSize(self.output.path / name, None) for name in (PAIRS, WORST, TABLE, RECORD)),
            work=(
                ("tokenizer", str(self.tokenizer.settings.get("model", self.tokenizer.name))),
                *facts_of_models(self.tokenizer),
                ("decoder", self.config.decoder or "its own"),
            ),
            memory=batch_bytes(image_size_of(self.tokenizer), self.config.batch_size, self.workers),
            more_memory="the tokenizer, the extractors and their features",
        )

    @property
    def sample(self) -> ImageSample:
        """The images, as a tokenizer is fitted to them."""
        return ImageSample(self.images, self.rows, self.workers, self.config.skip_bad)


def plan_reconstruction(images: Path, folder: Path, config: ReconstructConfig, progress: Progress) -> ReconstructPlan:
    """The plan of a reconstruction; nothing is written.

    Raises UserError for what does not go together, MachineError when weights cannot be fetched.
    """
    output = output_of(folder, "reconstruction")
    expect_outside(folder, images)
    image_set = find_images(images)
    rows = spread(len(image_set), config.limit)
    workers = default_workers() if config.workers is None else config.workers
    sample = ImageSample(image_set, rows, workers, config.skip_bad)
    spec = None
    if config.decoder is not None and config.tokenizer == TokenizerSettings():
        spec = recorded_encoder(config.decoder)
        if spec is not None:
            progress.note(f"--tokenizer {spec.settings.get('model', spec.name)}: that of --decoder {config.decoder}")
    if spec is None:
        spec = choose_tokenizer(config.tokenizer, sample).spec
    if (hint := missing_decoder(spec, config.decoder)) is not None:
        raise UserError(f"--decoder is missing: {hint}")
    expect_use_of(config.decoder, spec)
    return ReconstructPlan(config, image_set, rows, spec, output, workers)


@dataclass
class _Results:
    """The results for this process's images: n figures by name, features, and the pairs that are shown.

    figures: no tensors, because small ones that stay would scatter over the memory that batches come and go in.
    shown: uint8 (n, 3, S, 2 S), the first pairs. worst: the same, with the figure by which they are the worst.
    """

    indices: list[int] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    real: dict[str, list[Tensor]] = field(default_factory=dict)
    made: dict[str, list[Tensor]] = field(default_factory=dict)
    shown: list[Tensor] = field(default_factory=list)
    worst: Tensor | None = None
    worst_values: Tensor | None = None


def reconstruct(images: Path, folder: Path, config: ReconstructConfig, progress: Progress) -> ReconstructionReport:
    """Reconstruct images, and write grids of pairs, a table of all images and the report into a folder.

    Raises what `plan_reconstruction` does, and UserError where the statistics do not belong to the latents, images are
    smaller than SSIM's window, or one cannot be read (without ``config.skip_bad``).
    """
    allow_tf32(False)  # figures are to be those of any other device
    world = join(config.device)
    plan = plan_reconstruction(images, folder, config, progress)
    with plan.output.locked(world.first):
        return _reconstruct_all(plan, world, progress)


def _reconstruct_all(plan: ReconstructPlan, world: World, progress: Progress) -> ReconstructionReport:
    """The work of a plan; the folder is this process's own meanwhile."""
    inputs = (
        Input("images", str(plan.images.root.absolute()), plan.images.fingerprint),
        *decoder_inputs(plan.config.decoder),
    )
    resume = ResumeFile(plan.output.target, _key(plan, inputs))
    complete = resume.load(progress) is not None and plan.output.part.is_dir()
    world.barrier()  # all have looked, before the first one writes
    if not complete:
        _make(plan, inputs, resume, world, progress)
    with world.first_before_others():
        if world.first:
            plan.output.publish()
    return _read_report(plan.output.target)


def _key(plan: ReconstructPlan, inputs: Sequence[Input]) -> str:
    """A digest of all that the folder depends on."""
    spec, settings = plan.tokenizer, sorted(as_flat(plan.config).items())
    return fingerprint(
        [__version__, spec.name, repr([spec.settings, settings]), *(used.fingerprint for used in inputs)]
    )


def _make(plan: ReconstructPlan, inputs: Sequence[Input], resume: ResumeFile, world: World, progress: Progress) -> None:
    """Reconstruct the images, and make the folder, which stays until it is in its place."""
    config = plan.config
    with world.first_before_others():
        spec = fit_tokenizer(plan.tokenizer, plan.sample)
        tokenizer = build_tokenizer(spec, world.device, config.precision, config.decoder)
    lpips = _lpips(config, world, progress)
    extractors = _extractors(config, spec, tokenizer, world, progress)
    if tokenizer.image_size < SMALLEST:
        raise UserError(
            f"images of {tokenizer.image_size} px are smaller than SSIM's window: use --image-size {SMALLEST}"
        )
    checked = _check_statistics(plan, tokenizer, spec)
    worst_by = "l1" if lpips is None else "lpips"
    results = _reconstruct(plan, tokenizer, lpips, extractors, worst_by, world, progress)
    parts = world.gather(_tensors(results))
    if world.first:
        report = _report(plan, parts, list(extractors), checked, worst_by, config)
        plan.output.discard()
        try:
            _write(plan, parts, report, inputs)
            resume.save(ResumeState({}))
        except BaseException:
            plan.output.discard()
            raise


def _lpips(config: ReconstructConfig, world: World, progress: Progress) -> Lpips | None:
    """LPIPS in all processes, or in none: the first one decides whether it can be had."""
    if config.perceptual == "none":
        return None

    def load(seconds: float | None) -> Lpips:
        return load_lpips(vgg_file(config.lpips_weights, progress, seconds), world.device)

    lpips = None
    if world.first:
        try:
            lpips = load(None if config.wants_lpips else SECONDS)
        except (MachineError, UserError) as error:
            if config.wants_lpips:
                raise
            progress.note(f"no LPIPS: {error}")
    there = world.tell(lpips is not None)
    return load(None) if there and not world.first else lpips


def _extractors(
    config: ReconstructConfig, spec: TokenizerSpec, tokenizer: Tokenizer, world: World, progress: Progress
) -> Mapping[str, Extractor]:
    """What features are compared by, by name, the same in all processes."""
    described = Described(spec, tokenizer.descriptor_size)
    chosen = choose_together(config.extractor, progress, world)
    for line in chosen.missing:
        progress.note(line)
    extractors = {}
    for choice in chosen.choices:
        progress.note(f"{choice.flag} {choice.value}: {choice.why}")
        family = extractor_row(choice.value).load()
        with world.first_before_others():
            extractors[choice.value] = family.open_extractor(config.extractor, described, world.device, progress)
    return extractors


def _check_statistics(plan: ReconstructPlan, tokenizer: Tokenizer, spec: TokenizerSpec) -> dict[str, float]:
    """The mean square of normalised latents, by the source of the statistics."""
    named: list[NamedStatistics] = []
    decoder = getattr(tokenizer, "decoder", None)  # of an encoder
    if decoder is not None and plan.config.decoder is not None:
        own = statistics_of_decoder(decoder.network, plan.config.decoder)
        named += [] if own is None else [own]
    if plan.config.statistics is not None:
        shape = latent_sizes(spec, len(plan.rows)).shape
        named.append(statistics_of(plan.config.statistics, spec, shape))
    if not named:
        return {}
    rows = plan.rows[spread(len(plan.rows), CHECKED)]
    batches = image_batches(
        *(plan.images, tokenizer.image_size, plan.config.batch_size),
        workers=plan.workers,
        skip_bad=plan.config.skip_bad,
        rows=rows,
    )
    latents = torch.cat(
        [tokenizer.encode(torch.from_numpy(batch.images)).patches.cpu() for batch in batches if len(batch.images)]
    )
    return {statistics.source: expect_belonging(latents.clone(), statistics) for statistics in named}


def _reconstruct(
    plan: ReconstructPlan,
    tokenizer: Tokenizer,
    lpips: Lpips | None,
    extractors: Mapping[str, Extractor],
    worst_by: str,
    world: World,
    progress: Progress,
) -> _Results:
    """Encode, decode and compare this process's share of the images."""
    config, results = plan.config, _Results()
    rows = plan.rows[world.rows(len(plan.rows))]
    progress.begin("reconstruct", len(rows), "images")
    for batch in image_batches(
        *(plan.images, tokenizer.image_size, config.batch_size),
        workers=plan.workers,
        skip_bad=config.skip_bad,
        rows=rows,
    ):
        if len(batch.images):
            images = torch.from_numpy(batch.images).to(world.device)
            made = tokenizer.decode(tokenizer.encode(images).patches)
            figures = _figures(images, made, lpips)
            results.indices += batch.indices.tolist()
            for name, values in figures.items():
                results.figures.setdefault(name, []).extend(values.tolist())
            for name, extractor in extractors.items():
                results.real.setdefault(name, []).append(extractor(images).vectors)
                results.made.setdefault(name, []).append(extractor(made).vectors)
            _show(results, torch.cat([images, made], 3).cpu(), figures[worst_by].cpu(), config.pairs)
            progress.advance(len(images), {name: values.mean().item() for name, values in figures.items()})
    progress.end()
    return results


def _figures(images: Tensor, made: Tensor, lpips: Lpips | None) -> dict[str, Tensor]:
    """PSNR, SSIM, L1 and LPIPS of images uint8 (B, 3, S, S), (B,) each."""
    figures = {
        "psnr": psnr(made, images),
        "ssim": ssim(made, images),
        "l1": (made.float() - images.float()).abs().flatten(1).mean(1) / 255,
    }
    if lpips is not None:
        with torch.inference_mode():
            figures["lpips"] = lpips(made.float() / 127.5 - 1, images.float() / 127.5 - 1)
    return figures


def _show(results: _Results, pairs: Tensor, values: Tensor, count: int) -> None:
    """Keep the first pairs, and the worst."""
    if sum(map(len, results.shown)) < count:
        results.shown.append(pairs[: count - sum(map(len, results.shown))])
    worst = pairs if results.worst is None else torch.cat([results.worst, pairs])
    worst_values = values if results.worst_values is None else torch.cat([results.worst_values, values])
    order = worst_values.argsort(descending=True, stable=True)[:count]
    results.worst, results.worst_values = worst[order], worst_values[order]


def _tensors(results: _Results) -> dict[str, Tensor]:
    """The results, for the journey to the first process."""
    tensors = {"indices": torch.tensor(results.indices, dtype=torch.int64)}
    tensors |= {f"figure.{name}": torch.tensor(values, dtype=torch.float64) for name, values in results.figures.items()}
    for kind, values in (("real", results.real), ("made", results.made)):
        tensors |= {f"{kind}.{name}": torch.cat(parts) for name, parts in values.items()}
    if results.worst is not None and results.worst_values is not None:
        tensors |= {"shown": torch.cat(results.shown), "worst": results.worst, "worst_values": results.worst_values}
    return tensors


def _names_of_figures(parts: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The names of the metrics that were computed; some processes may have had no image."""
    return [name for name in LABELS if any(f"figure.{name}" in part for part in parts)]


def _joined(parts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.cat([part[name] for part in parts if name in part])


def _report(
    plan: ReconstructPlan,
    parts: Sequence[Mapping[str, Tensor]],
    extractors: Sequence[str],
    checked: Mapping[str, float],
    worst_by: str,
    config: ReconstructConfig,
) -> ReconstructionReport:
    """The report of all processes' findings."""
    joined = partial(_joined, parts)
    indices = joined("indices").tolist()
    if not indices:
        raise UserError(f"{plan.images.root}: none of its images can be read: give others")
    names = _names_of_figures(parts)
    figures = {name: joined(f"figure.{name}") for name in names}
    distances = []
    for name in extractors if len(indices) > 1 else ():
        real, made = (feature_statistics(joined(f"{kind}.{name}")) for kind in ("real", "made"))
        distances.append(FeatureDistance(name, frechet_distance(real, made)))
    worst = figures[worst_by].argsort(descending=True, stable=True)[: config.pairs].tolist()
    return ReconstructionReport(
        images=str(plan.images.root),
        count=len(indices),
        tokenizer=str(plan.tokenizer.settings.get("model", plan.tokenizer.name)),
        decoder=config.decoder,
        qualities={
            name: Quality(values.mean().item(), values.std(correction=0).item()) for name, values in figures.items()
        },
        distances=tuple(distances),
        statistics=checked,
        worst_by=worst_by,
        worst=tuple(
            WorstImage(plan.images.names[indices[place]], {name: figures[name][place].item() for name in names})
            for place in worst
        ),
    )


def _write(
    plan: ReconstructPlan,
    parts: Sequence[Mapping[str, Tensor]],
    report: ReconstructionReport,
    inputs: Sequence[Input],
) -> None:
    """Write the folder, which is not in its place yet."""
    part = plan.output.part
    part.mkdir(parents=True)
    count = plan.config.pairs
    order = _joined(parts, "worst_values").argsort(descending=True, stable=True)[:count]
    for name, pairs in ((PAIRS, _joined(parts, "shown")[:count]), (WORST, _joined(parts, "worst")[order])):
        Image.fromarray(image_grid(pairs.permute(0, 2, 3, 1).contiguous().numpy())).save(part / name, format="PNG")
    names = _names_of_figures(parts)
    columns = (_joined(parts, f"figure.{name}").tolist() for name in names)
    rows = zip(_joined(parts, "indices").tolist(), *columns, strict=True)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["image", *names])
    table.writerows([plan.images.names[index], *values] for index, *values in rows)
    for name, text in ((TABLE, lines.getvalue()), (RECORD, f"{_manifest(plan, report, inputs).to_json()}\n")):
        (part / name).write_text(text, encoding="utf-8")


def _read_report(folder: Path) -> ReconstructionReport:
    """What the first process wrote."""
    return parse_reconstruction(parse_manifest((folder / RECORD).read_bytes(), folder / RECORD).details)


def _manifest(plan: ReconstructPlan, report: ReconstructionReport, inputs: Sequence[Input]) -> Manifest:
    """The report with what was reconstructed by what."""
    settings, details = as_flat(plan.config), asdict(report)
    digest = fingerprint([repr(sorted(details.items())), *(used.fingerprint for used in inputs)])
    return Manifest("reconstruction", "reconstruct", digest, settings, tuple(inputs), details=details)
