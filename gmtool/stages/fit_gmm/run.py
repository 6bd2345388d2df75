"""Latents to a fitted mixture: modes from the descriptors, then carried to the patches.

1. k-means on the descriptors (`gmtool.mixture.kmeans`), then EM to a diagonal mixture (`gmtool.mixture.em`), both
   without the held-out images. An image and its mirrored copy are on the same side of that split.
2. Every image, held out or not, keeps its most probable modes.
3. Mean and variance of the latents in each mode, streamed from disk (`gmtool.mixture.patch_moments`).

A state beside the file keeps what is done (`gmtool.stages.fit_gmm.state`): iterations of 1, and blocks of modes of 3.
After any interruption the same command goes on from there, to the result of an uninterrupted one.

Several processes under torchrun share the images in 1 and 2 (but k-means is the first one's) and the modes in 3; the
first alone writes. A mode's patches are thus summed by one process, and EM's sums are float64 over the same blocks of
images, however many processes there are.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.files import check_space
from gmtool.artifacts.gmm import Assignments, DescriptorMixture, GmmWriter, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import Input, fingerprint
from gmtool.artifacts.run import VARIANCE_EPS
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.mixture.em import (
    Blocks,
    DiagonalMixture,
    Fit,
    block_rows,
    fit_em,
    label_moments,
    maximise,
    posterior,
    start_from_clusters,
)
from gmtool.mixture.kmeans import kmeans, seed_centroids
from gmtool.mixture.patch_moments import Distances, FittedMode, ModeBlock, PatchMode, Rule, mode_block, patch_moments
from gmtool.progress import Progress
from gmtool.settings import as_flat
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.plan import FitPlan, prepare
from gmtool.stages.fit_gmm.plots import check_picture, draw_fit, picture_path
from gmtool.stages.fit_gmm.report import (
    FitFigures,
    descriptor_figures,
    descriptor_figures_from_json,
    distances_from_json,
    figures_from_json,
    with_distances,
)
from gmtool.stages.fit_gmm.state import FitState, KMeansState, PatchState, StateKeeper, read_state

MACHINE_SETTINGS = frozenset({"device", "memory", "decoder"})
"""Settings that do not change the mixture."""

MODES_A_MESSAGE = 4
"""Modes that a process gives to the first one at a time."""


@dataclass(frozen=True)
class FitReport:
    """The file, its picture, its figures, whether it was there already (of the same data and settings), seconds."""

    path: Path
    picture: Path
    figures: FitFigures
    reused: bool
    seconds: float


def plan_fit(latents: Path, output: Path, config: FitGmmConfig) -> FitPlan:
    """What `fit_gmm` with these arguments will do; raises the errors that it would raise before its first step."""
    with open_latents(latents) as source:
        return prepare(source, output, config, join(config.device).size)


def fit_gmm(latents: Path, output: Path, config: FitGmmConfig, progress: Progress) -> FitReport:
    """Fit a mixture to ``latents``, write it to ``output`` and draw it beside; see the module.

    Nothing is done when ``output`` is already what the same settings make of the same latents. Raises UserError when
    the latents are missing, damaged, changed or not finite, there are fewer images than modes, the memory is too small,
    or ``output`` is no place for it.
    """
    started = time.monotonic()
    world = join(config.device)
    with open_latents(latents) as source:
        plan = prepare(source, output, config, world.size)
        source.verify_content()
        with plan.output.locked(world.first):
            figures = _finished(output, source, config)
            world.barrier()  # all have looked, before the first one writes
            reused = figures is not None
            if figures is None:
                check_picture(output)
                for name, text in plan.rows():
                    progress.note(f"{name}: {text}")
                _Fitting(source, plan, config, world, progress).run()
                figures = _finished(output, source, config)
                assert figures is not None
            elif world.first:
                plan.output.discard()
            if world.first and not (reused and picture_path(output).exists()):
                draw_fit(output, source, figures, config.decoder, world.device, progress)
            world.barrier()
    return FitReport(output, picture_path(output), figures, reused, time.monotonic() - started)


def _finished(output: Path, source: LatentsFile, config: FitGmmConfig) -> FitFigures | None:
    """The figures in ``output`` if it is what these settings make of these latents."""
    try:
        with open_gmm(output) as found:
            manifest = found.manifest
        used = manifest.input("latents")
        same_data = used is not None and used.fingerprint == source.manifest.fingerprint
        if not same_data or _decisive(manifest.config) != _decisive(as_flat(config)):
            return None
        return figures_from_json(manifest.details)
    except (UserError, KeyError, TypeError):
        return None


def _decisive(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS}


class _Fitting:
    """A fit on its way: what this process does of it, and the state that the first one keeps on disk."""

    def __init__(
        self, source: LatentsFile, plan: FitPlan, config: FitGmmConfig, world: World, progress: Progress
    ) -> None:
        self.source, self.plan, self.config, self.world, self.progress = source, plan, config, world, progress
        self.part = plan.output.part
        self._keeper = StateKeeper(plan.output.target)
        key = fingerprint([source.manifest.fingerprint, repr(sorted(_decisive(as_flat(config)).items()))])
        self.state = read_state(plan.output.target, key, world.device)
        if self.state.patches is not None and not _readable(self.part):
            self.state = FitState(key)

    def run(self) -> None:
        """Do what is left to do; the mixture is in its place when this returns."""
        self.world.barrier()  # all have read what the first one will now replace
        begun = self.state.text()
        if begun:
            self.progress.note(f"going on after {begun}")
        elif self.world.first:
            self.plan.output.discard()
            check_space(self.plan.output.target, self.plan.bytes, "the mixture")
        try:
            if self.state.patches is None:
                self._fit_descriptors()
            self._fit_patches()
        except BaseException:
            if self.state.text():
                self._save(self.state, now=True)
            raise
        if self.world.first:
            self.plan.output.publish()
        self.world.barrier()  # the file is there for all

    def _save(self, state: FitState, now: bool = False) -> None:
        self.state = state
        if self.world.first:
            self._keeper.keep(state, now)

    def _fit_descriptors(self) -> None:
        """The mixture over descriptors and each datum's modes, in a new file; the state says so."""
        plan, held = self.plan, self.plan.held
        order = np.argsort(held, kind="stable")  # the fitted data first
        data = _load_descriptors(self.source, order)
        centre = data[: plan.fitted].mean(axis=0, dtype=np.float64).astype(np.float32)
        data -= centre
        fit = self._climb(data)
        found = posterior(self._blocks(data), fit.mixture, plan.top_k)
        parts = self.world.gather({name: torch.from_numpy(each) for name, each in vars(found).items()})
        if not self.world.first:
            return
        modes, probabilities, likelihood = (
            _unordered(torch.cat([part[name] for part in parts]).numpy(), order)
            for name in ("modes", "probabilities", "log_likelihood")
        )
        kept = Assignments(modes, probabilities)
        figures = descriptor_figures(kept, held, likelihood, fit, self.state.kmeans_iterations)
        weights, means, variances = (each.cpu().numpy() for each in vars(fit.mixture).values())
        descriptors = DescriptorMixture(weights, means + centre, variances)
        GmmWriter.create(self.part, descriptors, kept, plan.shape).close()
        self._save(replace(self.state, patches=PatchState((), (), asdict(figures))), now=True)

    def _blocks(self, data: np.ndarray) -> Blocks:
        """This process's part of data (n, D), whole blocks of them."""
        rows = block_rows(self.plan.modes, self.world.device)
        share = self.world.share(math.ceil(len(data) / rows))
        return Blocks(data[share.start * rows : share.stop * rows], rows, self.world.device)

    def _climb(self, data: np.ndarray) -> Fit:
        """EM on centred descriptors (N, D), those held out last."""
        config, progress = self.config, self.progress
        fitted = data[: self.plan.fitted]
        start = self.state.fit
        if start is None:
            clusters = self.world.broadcast(vars(self._cluster(fitted)) if self.world.first else {})
            start = Fit(DiagonalMixture(**{name: each.to(self.world.device) for name, each in clusters.items()}))
        progress.begin("EM", config.em_iterations, "iterations", len(start.history))

        def heard(fit: Fit) -> None:
            figures = {"log-likelihood": fit.history[-1]}
            progress.advance(1, {**figures, "held-out": fit.held_out[-1]} if fit.held_out else figures)
            self._save(replace(self.state, fit=fit))

        fit = fit_em(
            self._blocks(fitted),
            start,
            iterations=config.em_iterations,
            tolerance=config.tolerance,
            floor=config.variance_floor,
            held_out=self._blocks(data[self.plan.fitted :]),
            total=self.world.sum,
            on_iteration=heard,
        )
        progress.end()
        return fit

    def _cluster(self, data: np.ndarray) -> DiagonalMixture:
        """k-means on centred descriptors (N, D), as a mixture: where EM starts, or the clusters themselves."""
        config, device, progress = self.config, self.world.device, self.progress
        begun = self.state.kmeans
        if begun is None:
            progress.begin("k-means++ seeds", config.modes, "seeds")
            seeds = seed_centroids(data, config.modes, seed=config.seed, device=device, on_seed=progress.advance)
            progress.end()
            begun = KMeansState(seeds, ())

        def heard(centroids: np.ndarray, history: tuple[float, ...]) -> None:
            progress.advance(1, {"mean squared distance": history[-1]})
            self._save(replace(self.state, kmeans=KMeansState(centroids, history), kmeans_iterations=len(history)))

        progress.begin("k-means", config.kmeans_iterations, "iterations", len(begun.history))
        clusters = kmeans(
            data,
            begun.centroids,
            iterations=config.kmeans_iterations,
            device=device,
            history=begun.history,
            on_iteration=heard,
        )
        progress.end()
        blocks = Blocks(data, block_rows(config.modes, device), device)
        moments = label_moments(blocks, torch.from_numpy(clusters.labels).to(device), config.modes)
        if config.em_iterations:
            return start_from_clusters(torch.from_numpy(clusters.centroids).to(device), moments, config.variance_floor)
        return maximise(moments, None, config.variance_floor)

    def _fit_patches(self) -> None:
        """Sum the latents in each mode, block by block, into the file, and complete it."""
        with ExitStack() as stack:
            writer = stack.enter_context(GmmWriter.reopen(self.part)) if self.world.first else None
            kept = self._kept(writer)
            rounds = self._rounds(kept)
            self.progress.begin("patch moments", sum(len(each.rows) for each in rounds), "images")
            modes = self._modes(kept, rounds)
            for block in rounds:
                found: list[_Written] = []
                for message in self._messages(itertools.islice(modes, block.end - block.first)):
                    received = self.world.gather(message)
                    found += [_write(writer, part, index) for part in received for index in range(len(part["mode"]))]
                if writer is not None:
                    self._keep_block(writer, found)
            self.progress.end()
            if writer is not None:
                self._finish(writer, kept)

    def _kept(self, writer: GmmWriter | None) -> Assignments:
        """The first process's, who has the file."""
        own = {} if writer is None else {name: torch.from_numpy(each) for name, each in vars(writer.kept).items()}
        return Assignments(**{name: each.numpy() for name, each in self.world.broadcast(own).items()})

    def _rounds(self, kept: Assignments) -> list[ModeBlock]:
        """This process's block in each of the rounds that are left; in the last rounds it may have no mode."""
        modes, at_once = self.plan.modes, self.plan.memory.modes
        done = torch.tensor(len(self.state.patches.digests) if self.state.patches is not None else 0)
        starts = range(int(self.world.broadcast({"done": done})["done"]), modes, self.world.size * at_once)
        own = [min(start + self.world.rank * at_once, modes) for start in starts]
        return [mode_block(kept.modes, kept.probabilities, each, min(each + at_once, modes)) for each in own]

    def _modes(self, kept: Assignments, rounds: list[ModeBlock]) -> Iterator[FittedMode]:
        """The modes of all blocks, in order."""
        config = self.config
        return patch_moments(
            self.source,
            kept.modes,
            kept.probabilities,
            rounds,
            rule=Rule(config.shrinkage, VARIANCE_EPS, config.covariance == "spherical", config.mirror),
            memory=self.plan.memory,
            threads=torch.get_num_threads(),
            on_rows=self.progress.advance,
        )

    def _messages(self, found: Iterator[FittedMode]) -> Iterator[dict[str, Tensor]]:
        """A block's modes, a few at a time; every process gives the same number of messages."""
        empty = torch.empty(0, *self.plan.shape)
        for _ in range(math.ceil(self.plan.memory.modes / MODES_A_MESSAGE)):
            few = list(itertools.islice(found, MODES_A_MESSAGE))
            yield {
                "mode": torch.tensor([each.patch.mode for each in few], dtype=torch.int64),
                "mean": torch.stack([torch.from_numpy(each.patch.mean) for each in few]) if few else empty,
                "std": torch.stack([torch.from_numpy(each.patch.std) for each in few]) if few else empty,
                "distances": torch.tensor([each.distances for each in few], dtype=torch.float64),
            }

    def _keep_block(self, writer: GmmWriter, found: list[_Written]) -> None:
        """Bring a round's modes to the disk, then the state that counts them."""
        writer.flush()
        state = self.state.patches
        assert state is not None
        found.sort(key=lambda each: each.mode)
        digests = (*state.digests, *(each.digest for each in found))
        distances = (*state.distances, *(each.distances for each in found))
        self._save(replace(self.state, patches=replace(state, digests=digests, distances=distances)), now=True)

    def _finish(self, writer: GmmWriter, kept: Assignments) -> None:
        state = self.state.patches
        assert state is not None
        figures = with_distances(descriptor_figures_from_json(state.found), kept, state.distances)
        if figures.populated < self.plan.modes:
            self.progress.note(
                f"{self.plan.modes - figures.populated} of {self.plan.modes} modes hold no image: they get weight 0, "
                "and the mean and variance of all images"
            )
        latents = Input("latents", str(self.source.path), self.source.manifest.fingerprint)
        writer.finish(state.digests, "fit-gmm", latents, as_flat(self.config), asdict(figures))


class _Written(NamedTuple):
    """A mode that is in the file."""

    mode: int
    digest: str
    distances: Distances


def _write(writer: GmmWriter | None, part: dict[str, Tensor], index: int) -> _Written:
    assert writer is not None  # who receives writes
    mode = int(part["mode"][index])
    digest = writer.write(PatchMode(mode, part["mean"][index].numpy(), part["std"][index].numpy()))
    return _Written(mode, digest, distances_from_json(part["distances"][index].tolist()))


def _readable(part: Path) -> bool:
    """Whether a mixture that was laid out can be gone on with."""
    try:
        GmmWriter.reopen(part).close()
    except (OSError, KeyError, RuntimeError, ValueError):
        return False
    return True


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


def _unordered(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows back in the order of the file: row i of ``values`` is datum ``order[i]``."""
    result = np.empty_like(values)
    result[order] = values
    return result
