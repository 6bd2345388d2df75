"""The folder that ``gmtool train`` writes.

    run/config.json             the manifest: resolved settings, architecture, tokenizer, classes, inputs
    run/statistics.safetensors  mean, std (C, H, W) of the latents; mode_weights; tokenizer.* arrays
    run/checkpoints/step-00001000/
        model.safetensors       the weights;  ema.safetensors  their moving average, which is what is sampled
        ema-NAME.safetensors    further averages, such as ema-0.9999 and ema-power-0.1
        optimizer.safetensors   the optimizer's moments;  state.json  the position, and the sizes of the other files
    run/metrics.jsonl           a line per step: loss, gradient norm, learning rate, steps skipped so far
    run/throughput.jsonl        how fast it went, now and then: images/s, share of the time spent waiting for data
    run/previews/               grids of samples with fixed noise
    run/lock                    locked while a process trains the run

Random numbers are functions of the seed and the step, so a checkpoint needs no random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.files import check_writable, is_part, remove_parts, written_aside
from gmtool.artifacts.manifest import KINDS, Manifest, expect_kind, parse_manifest
from gmtool.artifacts.method_record import MethodRecord, read_method
from gmtool.artifacts.outputs import held, kind_of
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import architecture_from_json, architecture_to_json

CONFIG, STATISTICS, METRICS, THROUGHPUT, PREVIEWS, CHECKPOINTS, LOCK, TENSORBOARD = (
    "config.json",
    "statistics.safetensors",
    "metrics.jsonl",
    "throughput.jsonl",
    "previews",
    "checkpoints",
    "lock",
    "tensorboard",
)
MIXTURE = "gmm.h5"
"""The mixture of an imported run; one that was trained here names the file that fit-gmm wrote."""
IMPORTED = "imported"
"""The detail of an imported run that keeps what `gmtool import` was told: its SOURCE and settings."""
VARIANCE_EPS = 1e-5
"""Added to the latents' variance under the root, as RAE does."""


@dataclass(frozen=True)
class LatentStatistics:
    """What turns latents into the network's coordinates and back, (x - mean) / std, and how often modes occur.

    mean, std (C, H, W) float32. mode_weights (R, K) float32: p(mode | class), a row per class, or one row for all; None
    where the run knows no modes.
    """

    mean: Tensor
    std: Tensor
    mode_weights: Tensor | None = None

    def to(self, device: torch.device) -> LatentStatistics:
        """The statistics with mean and std on a device; mode_weights stay on the CPU, where modes are drawn."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def normalise(self, latents: Tensor) -> Tensor:
        """(latents - mean) / std, float32 (..., C, H, W), of latents (..., C, H, W) on the same device."""
        return (latents.float() - self.mean) / self.std

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`: x std + mean, for x (..., C, H, W)."""
        return x * self.std + self.mean


class Moments(Protocol):
    """Mean and variance (C, H, W) of latents, float64: those of a file, or of a part of it."""

    @property
    def mean(self) -> np.ndarray:
        """See the class."""

    @property
    def var(self) -> np.ndarray:
        """See the class."""


def latent_statistics(latents: Moments, mode_weights: Tensor | None = None) -> LatentStatistics:
    """The statistics of latents with these moments (C, H, W): std = sqrt(var + 1e-5) of each entry.

    mode_weights: see `LatentStatistics`. Source: RAE, arXiv 2510.11690, its public implementation.
    """
    std = np.sqrt(latents.var + VARIANCE_EPS)
    return LatentStatistics(torch.as_tensor(latents.mean).float(), torch.as_tensor(std).float(), mode_weights)


@dataclass(frozen=True)
class Origin:
    """Where a run's latents come from: the names of their classes, their tokenizer, the size of its descriptors, and
    the images of each class that were trained on, None where they are not known.
    """

    classes: tuple[str, ...]
    tokenizer: TokenizerSpec
    descriptor_size: int
    class_counts: Sequence[int] | None = None


@dataclass(frozen=True)
class RunFolder:
    """A run, opened: its place, its record, and what the record says.

    method: what was learned. averages: names of the moving averages of the weights, the one to sample by default first.
    """

    path: Path
    manifest: Manifest
    method: MethodRecord
    architecture: Architecture
    classes: tuple[str, ...]
    averages: tuple[str, ...]

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def origin(self) -> Origin:
        """The origin of the run's latents."""
        size = self.manifest.details["descriptor_size"]
        return Origin(self.classes, self.tokenizer(), size, self.class_counts)

    @property
    def part(self) -> tuple[float, int]:
        """The fraction of its latents that the run was trained on, and the seed that chose it; all for an import."""
        return self.manifest.config.get("fraction", 1.0), self.manifest.config.get("seed", 0)

    @property
    def class_counts(self) -> Sequence[int] | None:
        """The images of each class that were trained on, None where the record does not say."""
        return self.manifest.details.get("class_counts")

    @property
    def sampled_classes(self) -> tuple[int, ...]:
        """The classes that had images in training; all, where the record does not say."""
        counts = self.class_counts
        return tuple(index for index in range(len(self.classes)) if counts is None or counts[index])

    def statistics(self) -> LatentStatistics:
        """The latents' statistics. Raises UserError when the file is damaged."""
        arrays = self._arrays()
        return LatentStatistics(arrays["mean"], arrays["std"], arrays.get("mode_weights"))

    def tokenizer(self) -> TokenizerSpec:
        """The tokenizer that made the latents. Raises UserError when the file of its arrays is damaged."""
        spec = self.manifest.details["tokenizer"]
        arrays = {
            name.removeprefix("tokenizer."): array.numpy()
            for name, array in self._arrays().items()
            if name.startswith("tokenizer.")
        }
        return TokenizerSpec(spec["name"], spec["settings"], arrays)

    def _arrays(self) -> dict[str, Tensor]:
        """All arrays in the file of statistics, which no checkpoint holds too."""
        again = f"run `gmtool {self.manifest.stage}` again into another folder"
        return read_tensors(self.path / STATISTICS, repair=f"restore a copy of it, or {again}")


def open_run(path: Path) -> RunFolder:
    """Open a run. Raises UserError when it is missing, damaged, something else, or of another version."""
    record = path / CONFIG
    if (kind := kind_of(path)) is not None and kind in KINDS and kind != "run":
        raise UserError(f"{path} is {KINDS[kind][0]}, not {KINDS['run'][0]}: give what `{KINDS['run'][1]}` writes")
    if not record.is_file():
        what = "holds no config.json" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: give the folder that `gmtool train` writes")
    manifest = parse_manifest(record.read_bytes(), record)
    expect_kind(manifest, "run", path)
    try:
        return RunFolder(
            path,
            manifest,
            read_method(manifest.details.get("method", manifest.config), str(record)),
            architecture_from_json(manifest.details["architecture"], str(record)),
            tuple(manifest.details["classes"]),
            _averages(manifest),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{record} was written by another gmtool version ({error}): train again") from error


def _averages(manifest: Manifest) -> tuple[str, ...]:
    """The names of a run's averages; earlier versions tell them by the settings alone."""
    if "averages" in manifest.details:
        return tuple(manifest.details["averages"])
    config = manifest.config
    return (*map(str, config["ema"]), *(f"power-{width}" for width in config["ema_power"]))


def is_unfinished(path: Path) -> bool:
    """Whether a folder without a record is empty, or holds only what `locked` and `create_run` write before it."""
    return all(entry in (path / LOCK, path / STATISTICS) or is_part(entry) for entry in path.iterdir())


def check_place(path: Path, record: str = CONFIG, what: str = "run") -> None:
    """Raise UserError unless a run can be written to ``path``: there is nothing there, or a run, whole or begun.

    record: the file that a run has, which is called ``what``.
    """
    check_writable(path, f"the {what}")
    if (path / record).exists():
        return
    if path.exists() and not (path.is_dir() and is_unfinished(path)):
        raise UserError(f"{path} exists and is not a {what}: choose another folder")


def create_run(path: Path, manifest: Manifest, statistics: LatentStatistics, tokenizer: TokenizerSpec) -> RunFolder:
    """Write a new run's record and statistics; the record comes last, so that a folder with one is complete.

    Raises OSError when the disk is full.
    """
    arrays = {"mean": statistics.mean, "std": statistics.std}
    if statistics.mode_weights is not None:
        arrays["mode_weights"] = statistics.mode_weights
    arrays |= {f"tokenizer.{name}": torch.as_tensor(np.array(array)) for name, array in tokenizer.arrays.items()}
    write_tensors(path / STATISTICS, arrays)
    with written_aside(path / CONFIG) as part:
        part.write_text(manifest.to_json())
    return open_run(path)


def run_details(
    architecture: Architecture,
    averages: Sequence[str],
    parameters: int,
    origin: Origin,
    method: MethodRecord | None = None,
) -> Mapping[str, Any]:
    """The manifest details of a run.

    averages: their names. origin: of its latents. method: where the settings do not say it, as those of a student.
    """
    tokenizer = origin.tokenizer
    counts = {} if origin.class_counts is None else {"class_counts": list(origin.class_counts)}
    own_method = {} if method is None else {"method": asdict(method)}
    return {
        "architecture": architecture_to_json(architecture),
        "averages": list(averages),
        "parameters": parameters,
        "classes": list(origin.classes),
        "descriptor_size": origin.descriptor_size,
        "tokenizer": {"name": tokenizer.name, "settings": dict(tokenizer.settings)},
        **counts,
        **own_method,
    }


def update_settings(run: RunFolder, settings: Mapping[str, Any]) -> RunFolder:
    """The run with other settings in its record, such as more steps; the file is not written if nothing changes."""
    manifest = replace(run.manifest, config=settings)
    rewrite(run.path / CONFIG, manifest)
    return replace(run, manifest=manifest)


def rewrite(record: Path, manifest: Manifest) -> None:
    """Write a record, unless it is already in the file."""
    text = manifest.to_json()
    if not record.exists() or text != record.read_text():
        with written_aside(record) as part:
            part.write_text(text)


@contextmanager
def locked(path: Path, record: str = CONFIG) -> Iterator[None]:
    """Keep a run, which need not be there yet, to this process. record: the file that a run has.

    What a killed process was writing there is removed. Raises UserError, saying who, when another process trains it.
    """
    with held(path / LOCK, f"{path} is being trained"):
        # other folders in it are those of other commands, which may be writing there
        for folder in (path, path / PREVIEWS, path / CHECKPOINTS):
            remove_parts(folder)
        try:
            yield
        finally:
            if not (path / record).exists():  # no run came of it
                (path / LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    path.rmdir()
