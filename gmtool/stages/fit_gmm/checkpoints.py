"""The progress of a fit, and the file beside the output that stores it.

A fit goes through k-means, EM and the modes in patch space; each state makes those before it unnecessary. In the last
one the mixture's own file, as far as it is written, holds what was found, and the state counts the modes in it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from gmtool.artifacts.resume import ResumeFile, ResumeState
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.mixture.diagonal import DiagonalMixture
from gmtool.mixture.em import Fit
from gmtool.mixture.kmeans import Centroids
from gmtool.mixture.patch_moments import Distances
from gmtool.progress import Progress
from gmtool.stages.fit_gmm.report import DescriptorMetrics, descriptor_metrics_from_json, distances_from_json


@dataclass(frozen=True, eq=False)
class InKMeans:
    """Some iterations of k-means are done."""

    clusters: Centroids

    def in_words(self) -> str:
        """The progress, in words."""
        return f"{len(self.clusters.history):,} iterations of k-means"


@dataclass(frozen=True, eq=False)
class InEm:
    """k-means is done, in ``kmeans_iterations`` iterations, and so are some iterations of EM."""

    fit: Fit
    kmeans_iterations: int

    def in_words(self) -> str:
        """The progress, in words."""
        return f"{len(self.fit.history):,} iterations of EM"


@dataclass(frozen=True, eq=False)
class InPatches:
    """The mixture over descriptors is in the file, and the first modes in patch space: their digests and distances."""

    metrics: DescriptorMetrics
    digests: tuple[str, ...] = ()
    distances: tuple[Distances, ...] = ()

    def in_words(self) -> str:
        """The progress, in words."""
        return f"{len(self.digests):,} modes' patch moments"


State = InKMeans | InEm | InPatches


class Checkpoints:
    """Saves the states of a fit, at most one every so many seconds; in a ``with`` block that fails, also the last one.

    A process that does not write saves none. After a UserError other settings are needed, which no state fits.
    """

    def __init__(self, file: ResumeFile, seconds: float, writes: bool) -> None:
        self._file, self._seconds, self._writes = file, seconds, writes
        self._saved = time.monotonic()
        self._unsaved: State | None = None

    def save(self, state: State, now: bool = False) -> None:
        """Keep a state, on disk if it is time or ``now``. Raises OSError when the disk is full."""
        self._unsaved = state
        if self._writes and (now or time.monotonic() - self._saved >= self._seconds):
            self._file.save(_to_resume(state))
            self._saved, self._unsaved = time.monotonic(), None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, UserError) and self._unsaved is not None:
            self.save(self._unsaved, now=True)


def load_state(file: ResumeFile, device: torch.device, progress: Progress) -> State | None:
    """The state of the fit on disk; None when there is none that can be read, see `ResumeFile.restore`."""
    return file.restore(lambda saved: _from_resume(saved, device), progress)


def shared_state(state: State | None, world: World) -> State | None:
    """The first process's state in every process, on its device; what the others give is ignored."""
    saved = ResumeState({}) if state is None else _to_resume(state)
    arrays = world.broadcast({name: torch.from_numpy(values) for name, values in saved.arrays.items()})
    saved = ResumeState(world.tell(saved.record), {name: tensor.numpy() for name, tensor in arrays.items()})
    return _from_resume(saved, world.device) if saved.record else None


def _to_resume(state: State) -> ResumeState:
    if isinstance(state, InKMeans):
        return ResumeState(
            {"in": "k-means", "history": state.clusters.history}, {"centroids": state.clusters.centroids}
        )
    if isinstance(state, InEm):
        fit = state.fit
        record = {
            "in": "EM",
            "kmeans_iterations": state.kmeans_iterations,
            "history": fit.history,
            "held_out": fit.held_out,
            "converged": fit.converged,
        }
        return ResumeState(record, {name: values.cpu().numpy() for name, values in vars(fit.mixture).items()})
    return ResumeState(
        {
            "in": "patches",
            "metrics": asdict(state.metrics),
            "digests": state.digests,
            "distances": state.distances,
        }
    )


def _from_resume(saved: ResumeState, device: torch.device) -> State:
    record: Any = saved.record
    if record["in"] == "k-means":
        return InKMeans(Centroids(saved.arrays["centroids"], tuple(record["history"])))
    if record["in"] == "EM":
        mixture = {name: torch.from_numpy(values).to(device) for name, values in saved.arrays.items()}
        fit = Fit(DiagonalMixture(**mixture), tuple(record["history"]), tuple(record["held_out"]), record["converged"])
        return InEm(fit, record["kmeans_iterations"])
    return InPatches(
        descriptor_metrics_from_json(record["metrics"]),
        tuple(record["digests"]),
        tuple(distances_from_json(values) for values in record["distances"]),
    )
