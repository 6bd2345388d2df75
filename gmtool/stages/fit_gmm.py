"""Fit a Gaussian mixture to latents: modes are found among the descriptors and carried to the patches.

1. k-means on the descriptors (`gmtool.mixture.kmeans`), then EM to a diagonal mixture (`gmtool.mixture.em`), both
   without the held-out images. An image and its mirrored copy are on the same side of that split.
2. Every image, held out or not, keeps its most probable modes.
3. Mean and variance of the latents in each mode, streamed from disk (`gmtool.mixture.patch_moments`).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmtool.artifacts.files import check_space, check_writable
from gmtool.artifacts.gmm import DescriptorMixture, Kept, gmm_bytes, open_gmm, write_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.run import VARIANCE_EPS
from gmtool.config.fit_gmm import FitGmmConfig
from gmtool.device import resolve_device
from gmtool.errors import UserError
from gmtool.mixture.em import Blocks, Fit, block_rows, fit_em, label_moments, maximise, posterior
from gmtool.mixture.kmeans import kmeans, seed_centroids
from gmtool.mixture.patch_moments import mode_blocks, modes_at_once, patch_moments
from gmtool.progress import Progress

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Of the modes' populations, in the report."""

MACHINE_SETTINGS = frozenset({"device", "memory"})
"""Settings that change how fast the result comes, not the result."""


@dataclass(frozen=True)
class FitPlan:
    """What a fit will do: counts, sizes, and the bytes of the file it writes. top_k is capped to the modes."""

    data: int
    fitted: int
    held_out: int
    modes: int
    top_k: int
    descriptor_size: int
    shape: tuple[int, int, int]
    modes_at_once: int
    bytes: int


@dataclass(frozen=True)
class FitFigures:
    """What came out. Log-likelihoods are means over images, in nats, of the mixture over descriptors.

    population: its `QUANTILES` over modes, in images. populated: modes that at least one image keeps.
    """

    modes: int
    populated: int
    population: tuple[float, ...]
    data: int
    held_out: int
    descriptor_size: int
    log_likelihood: float
    held_out_log_likelihood: float | None
    kmeans_iterations: int
    em_iterations: int
    converged: bool


@dataclass(frozen=True)
class FitReport:
    """The file, its figures, whether it was there already (from the same data and settings), and seconds taken."""

    path: Path
    figures: FitFigures
    reused: bool
    seconds: float


def plan_fit(latents: Path, output: Path, config: FitGmmConfig) -> FitPlan:
    """What `fit_gmm` with these arguments will do; raises the errors that it would raise before its first step."""
    with open_latents(latents) as source:
        return _prepare(source, output, config)[0]


def fit_gmm(latents: Path, output: Path, config: FitGmmConfig, progress: Progress) -> FitReport:
    """Fit a mixture to ``latents`` and write it to ``output``.

    Nothing is done when ``output`` is already what the same settings make of the same latents. Raises UserError when
    the latents are missing, damaged or not finite, there are fewer images than modes, or ``output`` is no place for it.
    """
    started = time.monotonic()
    with open_latents(latents) as source:
        plan, held = _prepare(source, output, config)
        finished = _finished(output, source, config)
        if finished is not None:
            return FitReport(output, finished, True, time.monotonic() - started)
        check_space(output, plan.bytes, "the mixture")
        device = resolve_device(config.device)
        descriptors, kept, figures = _fit_modes(source, plan, held, config, device, progress)
        if figures.populated < plan.modes:
            progress.note(
                f"{plan.modes - figures.populated} of {plan.modes} modes hold no image: they get weight 0, and the "
                "mean and variance of all images"
            )
        blocks = mode_blocks(kept.modes, kept.probabilities, plan.modes, plan.modes_at_once)
        progress.begin("patch moments", sum(len(each.rows) for each in blocks), "images")
        write_gmm(
            output,
            descriptors=descriptors,
            kept=kept,
            patches=patch_moments(
                source,
                kept.modes,
                kept.probabilities,
                blocks,
                shrinkage=config.shrinkage,
                floor=VARIANCE_EPS,
                spherical=config.covariance == "spherical",
                memory=_memory_bytes(config),
                device=device,
                on_rows=progress.advance,
            ),
            shape=plan.shape,
            latents=Input("latents", str(latents), source.manifest.fingerprint),
            config=asdict(config),
            details=asdict(figures),
        )
        progress.end()
    return FitReport(output, figures, False, time.monotonic() - started)


def _prepare(source: LatentsFile, output: Path, config: FitGmmConfig) -> tuple[FitPlan, np.ndarray]:
    """The plan, and which data are held out (N,) bool. Raises UserError when it cannot be carried out."""
    check_writable(output, "the mixture")
    if output.is_dir():
        raise UserError(f"the mixture {output} cannot be written: it is a folder; name a file in it")
    if output.exists() and _is_latents(output):
        raise UserError(f"{output} is a latents file and would be overwritten: choose another output")
    held = _held_out(source, config.held_out, config.seed)
    fitted = int((~held).sum())
    if config.modes > fitted:
        raise UserError(
            f"--modes {config.modes} is more than the {fitted} images to fit ({source.path} has {len(source)}, "
            f"{len(source) - fitted} of them held out): lower --modes or --held-out"
        )
    top_k = 1 if config.assignment == "hard" else min(config.top_k, config.modes)
    plan = FitPlan(
        data=len(source),
        fitted=fitted,
        held_out=len(source) - fitted,
        modes=config.modes,
        top_k=top_k,
        descriptor_size=source.descriptor_size,
        shape=source.shape,
        modes_at_once=modes_at_once(config.modes, source.shape, _memory_bytes(config)),
        bytes=gmm_bytes(config.modes, source.descriptor_size, len(source), top_k, source.shape),
    )
    return plan, held


def _is_latents(path: Path) -> bool:
    try:
        open_latents(path).close()
    except UserError:
        return False
    return True


def _finished(output: Path, source: LatentsFile, config: FitGmmConfig) -> FitFigures | None:
    """The figures in ``output`` if it is what these settings make of these latents."""
    try:
        with open_gmm(output) as found:
            manifest = found.manifest
    except UserError:
        return None
    used = manifest.input("latents")
    same_data = used is not None and used.fingerprint == source.manifest.fingerprint
    if not same_data or _decisive(manifest.config) != _decisive(asdict(config)):
        return None
    return FitFigures(**{**manifest.details, "population": tuple(manifest.details["population"])})


def _decisive(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS}


def _memory_bytes(config: FitGmmConfig) -> float:
    return config.memory * 2**30


def _held_out(source: LatentsFile, share: float, seed: int) -> np.ndarray:
    """Which data are held out, (N,) bool: a random share of the images, each with its mirrored copy."""
    images = np.arange(len(source))
    if source.flipped.any():
        images = np.unique(np.array(source.names()), return_inverse=True)[1]
    count = int(images.max()) + 1
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return chosen[images]


def _load_descriptors(source: LatentsFile, order: np.ndarray) -> np.ndarray:
    """All descriptors (N, D) float32, datum ``order[i]`` in row i. Raises UserError when one is not finite."""
    data = np.empty((len(source), source.descriptor_size), np.float32)
    place = np.argsort(order)
    step = 1 << 14
    for start in range(0, len(data), step):
        rows = slice(start, start + step)
        block = source.descriptors(rows)
        broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(broken):
            name = source.names()[start + broken[0]]
            raise UserError(
                f"{source.path}: the descriptor of {name} is not finite; encode again with --precision float32"
            )
        data[place[rows]] = block
    return data


def _fit_modes(
    source: LatentsFile,
    plan: FitPlan,
    held: np.ndarray,
    config: FitGmmConfig,
    device: torch.device,
    progress: Progress,
) -> tuple[DescriptorMixture, Kept, FitFigures]:
    """The mixture over descriptors, the modes that each datum of the file keeps, and the figures of the fit."""
    order = np.argsort(held, kind="stable")  # the fitted data first
    data = _load_descriptors(source, order)
    centre = data[: plan.fitted].mean(axis=0, dtype=np.float64).astype(np.float32)
    data -= centre
    kmeans_iterations, fit = _fit_descriptors(data[: plan.fitted], config, device, progress)
    found = posterior(_blocks(data, config, device), fit.mixture, plan.top_k)
    weights, means, variances = (
        each.cpu().numpy() for each in (fit.mixture.weights, fit.mixture.means, fit.mixture.variances)
    )
    kept = Kept(_unordered(found.modes, order), _unordered(found.probabilities, order))
    figures = _figures(plan, kept, found.log_likelihood, kmeans_iterations, fit)
    return DescriptorMixture(weights, means + centre, variances), kept, figures


def _blocks(data: np.ndarray, config: FitGmmConfig, device: torch.device) -> Blocks:
    return Blocks(data, block_rows(config.modes, device), device)


def _fit_descriptors(
    data: np.ndarray, config: FitGmmConfig, device: torch.device, progress: Progress
) -> tuple[int, Fit]:
    """k-means and EM on centred descriptors (N, D): the iterations of the first, the fit of the second."""
    progress.begin("k-means++ seeds", config.modes, "seeds")
    seeds = seed_centroids(data, config.modes, seed=config.seed, device=device, on_seed=progress.advance)
    progress.end()
    progress.begin("k-means", config.kmeans_iterations, "iterations")
    clusters = kmeans(
        data,
        seeds,
        iterations=config.kmeans_iterations,
        device=device,
        on_iteration=lambda inertia: progress.advance(1, {"mean squared distance": inertia}),
    )
    progress.end()
    blocks = _blocks(data, config, device)
    labels = torch.from_numpy(clusters.labels).to(device)
    start = maximise(label_moments(blocks, labels, config.modes), None, config.variance_floor)
    progress.begin("EM", config.em_iterations, "iterations")
    fit = fit_em(
        blocks,
        start,
        iterations=config.em_iterations,
        tolerance=config.tolerance,
        floor=config.variance_floor,
        on_iteration=lambda fit: progress.advance(1, {"log-likelihood": fit.history[-1]}),
    )
    progress.end()
    return len(clusters.history), fit


def _unordered(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows back in the order of the file: row i of ``values`` is datum ``order[i]``."""
    result = np.empty_like(values)
    result[order] = values
    return result


def _figures(plan: FitPlan, kept: Kept, log_likelihood: np.ndarray, kmeans_iterations: int, fit: Fit) -> FitFigures:
    """``log_likelihood`` (N,): of the fitted data, then of those held out."""
    population = kept.population(plan.modes)
    held_out = log_likelihood[plan.fitted :]
    return FitFigures(
        modes=plan.modes,
        populated=int((population > 0).sum()),
        population=tuple(float(each) for each in np.quantile(population, QUANTILES)),
        data=plan.data,
        held_out=plan.held_out,
        descriptor_size=plan.descriptor_size,
        log_likelihood=float(log_likelihood[: plan.fitted].mean()),
        held_out_log_likelihood=float(held_out.mean()) if len(held_out) else None,
        kmeans_iterations=kmeans_iterations,
        em_iterations=len(fit.history),
        converged=fit.converged,
    )
