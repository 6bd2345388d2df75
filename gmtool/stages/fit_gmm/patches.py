"""The second half of a fit: mean and variance of the latents in each mode, block by block, into the mixture's file.

Under torchrun a round is one block of modes a process: each sums its own, and the first process writes all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import GmmWriter, KeptModes
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.run import VARIANCE_EPS
from gmtool.data.fraction import open_part
from gmtool.distributed import World
from gmtool.mixture.patch_moments import Distances, FittedMode, ModeBlock, PatchMode, mode_block, patch_moments
from gmtool.progress import Progress
from gmtool.settings import as_flat
from gmtool.stages.fit_gmm.checkpoints import Checkpoints, InPatches
from gmtool.stages.fit_gmm.plan import FitPlan
from gmtool.stages.fit_gmm.report import FitMetrics, distances_from_json, with_distances

MODES_A_MESSAGE = 4
"""Modes that a process gives to the first one at a time."""


class _Written(NamedTuple):
    """A mode that is in the file."""

    mode: int
    digest: str
    distances: Distances


def fit_patches(
    source: LatentsFile,
    part: Path,
    plan: FitPlan,
    state: InPatches,
    world: World,
    progress: Progress,
    checkpoints: Checkpoints,
) -> FitMetrics:
    """Write the modes that ``state`` does not count to the file ``part``, then its manifest; return the metrics.

    All processes call this together. Raises UserError when the latents are damaged, OSError when the disk is full.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(GmmWriter.reopen(part)) if world.first else None
        kept = _counted(_kept(writer, world), plan)
        data = open_part(source, plan.part, world, progress)
        rounds = _rounds(kept, plan, len(state.digests), world)
        progress.begin("patch moments", sum(len(block.rows) for block in rounds), "images")
        modes = patch_moments(
            data,
            kept.modes,
            kept.probabilities,
            rounds,
            plan.config.patches,
            floor=VARIANCE_EPS,
            memory=plan.memory,
            threads=torch.get_num_threads(),
            on_rows=progress.advance,
        )
        for block in rounds:
            messages = _messages(itertools.islice(modes, block.end - block.first), plan)
            gathered = [mode for message in messages for own in world.gather(message) for mode in _modes_in(own)]
            if writer is not None:
                state = _with_modes(state, sorted(_write(writer, mode) for mode in gathered))
                writer.flush()  # to the disk, before the state that counts them
                checkpoints.save(state, now=True)
        progress.end()
        distances = world.broadcast({"distances": torch.tensor(state.distances, dtype=torch.float64)})["distances"]
        metrics = with_distances(state.metrics, kept, distances.numpy())
        if metrics.populated < plan.modes:
            progress.note(
                f"{plan.modes - metrics.populated} of {plan.modes} modes hold no image: they get weight 0, and the "
                "mean and variance of all images"
            )
        if unchosen := metrics.populated - int((kept.population(plan.modes) > 0).sum()):
            progress.note(
                f"{unchosen} of {plan.modes} modes are no image's most probable one: they get the mean and variance of "
                "all images"
            )
        if writer is not None:
            latents = Input("latents", str(source.path), source.manifest.fingerprint)
            writer.finish(state.digests, "fit-gmm", latents, as_flat(plan.config), asdict(metrics))
    return metrics


def _kept(writer: GmmWriter | None, world: World) -> KeptModes:
    own = {} if writer is None else {name: torch.from_numpy(array) for name, array in vars(writer.kept).items()}
    return KeptModes(**{name: tensor.numpy() for name, tensor in world.broadcast(own).items()})


def _counted(kept: KeptModes, plan: FitPlan) -> KeptModes:
    """The modes in whose moments each sample counts: all that it keeps, or its most probable one."""
    if plan.config.patch_assignment == "soft":
        return kept
    return KeptModes(kept.modes[:, :1], (kept.probabilities[:, :1] > 0).astype(np.float32))


def _rounds(kept: KeptModes, plan: FitPlan, done: int, world: World) -> list[ModeBlock]:
    """This process's block in each of the rounds that are left; in the last rounds it may have no mode."""
    modes, at_once = plan.modes, plan.memory.modes
    own = [min(start + world.rank * at_once, modes) for start in range(done, modes, world.size * at_once)]
    return [mode_block(kept.modes, kept.probabilities, first, min(first + at_once, modes)) for first in own]


def _messages(modes: Iterator[FittedMode], plan: FitPlan) -> Iterator[dict[str, Tensor]]:
    """A block's modes, a few at a time; every process gives the same number of messages."""
    empty = torch.empty(0, *plan.shape)
    for _ in range(math.ceil(plan.memory.modes / MODES_A_MESSAGE)):
        few = list(itertools.islice(modes, MODES_A_MESSAGE))
        yield {
            "mode": torch.tensor([mode.patch.mode for mode in few], dtype=torch.int64),
            "mean": torch.stack([torch.from_numpy(mode.patch.mean) for mode in few]) if few else empty,
            "std": torch.stack([torch.from_numpy(mode.patch.std) for mode in few]) if few else empty,
            "distances": torch.tensor([mode.distances for mode in few], dtype=torch.float64),
        }


def _modes_in(message: Mapping[str, Tensor]) -> Iterator[FittedMode]:
    """The modes of a message."""
    parts = (message[name] for name in ("mode", "mean", "std", "distances"))
    for mode, mean, std, distances in zip(*parts, strict=True):
        yield FittedMode(PatchMode(int(mode), mean.numpy(), std.numpy()), distances_from_json(distances.tolist()))


def _write(writer: GmmWriter, mode: FittedMode) -> _Written:
    return _Written(mode.patch.mode, writer.write(mode.patch), mode.distances)


def _with_modes(state: InPatches, written: list[_Written]) -> InPatches:
    return replace(
        state,
        digests=(*state.digests, *(mode.digest for mode in written)),
        distances=(*state.distances, *(mode.distances for mode in written)),
    )
