"""How far a fit has come: a small file beside the mixture that is being written, replaced in one step.

Iterations of k-means, then of EM, are kept in it whole; once the patches are on, the mixture's own file holds what was
found, and the state says how many modes of it are there.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from gmtool.artifacts.files import resolved, work_folder, written_aside
from gmtool.artifacts.resume import STATE
from gmtool.mixture.em import DiagonalMixture, Fit
from gmtool.mixture.patch_moments import Distances
from gmtool.stages.fit_gmm.report import distances_from_json

STATE_SECONDS = 5.0
"""Seconds between two states at least."""


@dataclass(frozen=True, eq=False)
class KMeansState:
    """centroids (K, D) float32 after the iterations of ``history``; see `gmtool.mixture.kmeans.Clusters`."""

    centroids: np.ndarray
    history: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class PatchState:
    """The modes that are in the file, in order: the digest of each and its distances to data; the figures of the
    mixture over descriptors, as JSON values.
    """

    digests: tuple[str, ...]
    distances: tuple[Distances, ...]
    found: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FitState:
    """key: digest of the data and settings. Each later part makes the earlier ones unnecessary."""

    key: str
    kmeans: KMeansState | None = None
    kmeans_iterations: int = 0
    fit: Fit | None = None
    patches: PatchState | None = None

    def text(self) -> str:
        """How far it is, in words; empty when nothing is done."""
        if self.patches is not None:
            return f"{len(self.patches.digests):,} modes' patch moments"
        if self.fit is not None:
            return f"{len(self.fit.history):,} iterations of EM"
        return f"{self.kmeans_iterations:,} iterations of k-means" if self.kmeans is not None else ""


def state_path(output: Path) -> Path:
    """Where the state of the fit of ``output`` is."""
    return work_folder(resolved(output)) / STATE


class StateKeeper:
    """Writes states of the fit of ``output``, at most one every `STATE_SECONDS`."""

    def __init__(self, output: Path) -> None:
        self._output, self._written = output, time.monotonic()

    def keep(self, state: FitState, now: bool = False) -> None:
        """Replace the state on disk, if it is time or ``now``."""
        if not now and time.monotonic() - self._written < STATE_SECONDS:
            return
        record: dict[str, Any] = {"key": state.key, "kmeans_iterations": state.kmeans_iterations}
        arrays: dict[str, np.ndarray] = {}
        if state.patches is not None:
            record["patches"] = vars(state.patches)
        elif state.fit is not None:
            fit = state.fit
            record["fit"] = {"history": fit.history, "held_out": fit.held_out, "converged": fit.converged}
            arrays = {name: each.cpu().numpy() for name, each in vars(fit.mixture).items()}
        elif state.kmeans is not None:
            record["kmeans"] = {"history": state.kmeans.history}
            arrays = {"centroids": state.kmeans.centroids}
        with written_aside(state_path(self._output)) as path, path.open("wb") as file:
            np.savez(file, record=np.array(json.dumps(record)), **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
            file.flush()
            os.fsync(file.fileno())
        self._written = time.monotonic()


def read_state(output: Path, key: str, device: torch.device) -> FitState:
    """The state on disk of the fit with this key; one of nothing done when there is none that can be read."""
    try:
        with np.load(state_path(output), allow_pickle=False) as arrays:
            record = json.loads(str(arrays["record"]))
            if record["key"] != key:
                return FitState(key)
            state = FitState(key, kmeans_iterations=record["kmeans_iterations"])
            if "patches" in record:
                known = record["patches"]
                distances = tuple(distances_from_json(each) for each in known["distances"])
                return replace(state, patches=PatchState(tuple(known["digests"]), distances, known["found"]))
            if "fit" in record:
                known = record["fit"]
                parts = (torch.from_numpy(arrays[name]).to(device) for name in ("weights", "means", "variances"))
                fit = Fit(
                    DiagonalMixture(*parts), tuple(known["history"]), tuple(known["held_out"]), known["converged"]
                )
                return replace(state, fit=fit)
            return replace(state, kmeans=KMeansState(arrays["centroids"], tuple(record["kmeans"]["history"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return FitState(key)
