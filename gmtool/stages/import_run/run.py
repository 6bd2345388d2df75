"""A published network made a run: its files read as data, and written as gmtool's own.

The run is whole or not at all: it is made beside its final name and renamed. It records what it was made from, by the
fingerprints of those files, and is sampled and scored like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.files import check_space
from gmtool.artifacts.gmm import Assignments, DescriptorMixture, gmm_bytes, write_gmm
from gmtool.artifacts.manifest import Input, Manifest, fingerprint
from gmtool.artifacts.outputs import output_of
from gmtool.artifacts.run import CHECKPOINTS, MIXTURE, LatentStatistics, RunFolder, create_run, run_details
from gmtool.errors import UserError
from gmtool.foreign.gmflow import INDEX, is_gmflow
from gmtool.foreign.mixtures import ReleasedMixture, patch_modes
from gmtool.huggingface import hub_folder, local_or_hub_file
from gmtool.settings import as_flat
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.import_run.published import (
    STATISTICS,
    Published,
    check_weights,
    read_published_ditdh,
    read_published_gmflow,
)
from gmtool.stages.train.config import TrainConfig
from gmtool.tokenizers.build import latent_sizes
from gmtool.training.checkpoint import EMA, MODEL, Position, save_checkpoint


@dataclass(frozen=True)
class ImportReport:
    """The network in words, its parameters, what was found beside it, and flags for sampling it as published."""

    words: str
    parameters: int
    notes: tuple[str, ...]
    sampling: str


def import_run(source: str, path: Path, config: ImportConfig) -> ImportReport:
    """Write the run ``path`` of the network in ``source``.

    Raises UserError, naming the file or flag, for what cannot be read or does not fit together; MachineError when the
    tokenizer cannot be fetched or the run does not fit on the disk.
    """
    output = output_of(path, "run")
    place = _place(source)
    if is_gmflow(place):
        published = read_published_gmflow(place, config)
    else:
        published = read_published_ditdh(_checkpoint_in(place), config)
    parameters = check_weights(place, published)
    check_space(output.target, _bytes_needed(published, parameters), "the run")
    with output.locked():
        output.discard()
        try:
            _write(output.part, output.target, published, config, parameters)
            output.publish()
        except BaseException:
            output.discard()
            raise
    return _report(published, parameters)


def _place(source: str) -> Path:
    """The file or folder of SOURCE, fetched where it is on the hub."""
    place = local_or_hub_file(source, "SOURCE")
    if place.exists():
        return place
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source} does not exist, and is no hub id (owner/name, owner/name/file) either")
    files = (INDEX, "transformer/*", "spectrum_net/*", "scheduler/*", "vae/*")
    folder = hub_folder(source, "SOURCE", files)
    if not is_gmflow(folder):
        raise UserError(f"{source} is not laid out as GMFlow's on the hub: name a file in it, {source}/FILE")
    return folder


def _checkpoint_in(place: Path) -> Path:
    """The checkpoint that SOURCE names, or the one in the folder that it names."""
    if place.is_file():
        return place
    found = sorted(
        each for suffix in ("pt", "pth", "safetensors") for each in place.glob(f"*.{suffix}") if each.name != STATISTICS
    )
    if len(found) != 1:
        what = f"{len(found)} checkpoints ({found[0].name}, ...)" if found else "neither transformer/ nor a checkpoint"
        raise UserError(f"{place} holds {what}: name the .pt file, or give GMFlow's folder")
    return found[0]


def _bytes_needed(published: Published, parameters: int) -> int:
    weights = 4 * parameters * (1 if published.model is None else 2)
    if published.mixture is None:
        return weights
    count, _ = published.mixture.means.shape
    size = 0 if published.described is None else published.described.means.shape[1]
    return weights + gmm_bytes(count, size, 0, 1, published.architecture.shape)


def _write(part: Path, path: Path, published: Published, config: ImportConfig, parameters: int) -> RunFolder:
    """Write the run to the folder ``part``, which will be renamed to ``path``."""
    part.mkdir(parents=True)
    inputs, statistics = published.inputs, published.statistics
    if published.mixture is not None:
        manifest = _write_mixture(part / MIXTURE, published, published.mixture, config)
        inputs = (*inputs, Input("gmm", str(path / MIXTURE), manifest.fingerprint))
        weights = torch.from_numpy(published.mixture.weights).float().unsqueeze(0)
        statistics = LatentStatistics(statistics.mean, statistics.std, weights)
    files = {EMA: _float32(published.ema)}
    if published.model is not None:
        files[MODEL] = _float32(published.model)
    save_checkpoint(part / CHECKPOINTS, Position(published.step), files)
    settings: dict[str, Any] = asdict(_train_config(published, path))
    descriptor_size = latent_sizes(published.tokenizer, 1).descriptor
    manifest = Manifest(
        kind="run",
        stage="import",
        fingerprint=fingerprint([repr(sorted(settings.items())), *(each.fingerprint for each in inputs)]),
        config=settings,
        inputs=inputs,
        details=run_details(
            published.architecture, parameters, published.classes, published.tokenizer, descriptor_size
        ),
    )
    return create_run(part, manifest, statistics, published.tokenizer)


def _float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.float() for name, each in weights.items()}


def _write_mixture(path: Path, published: Published, mixture: ReleasedMixture, config: ImportConfig) -> Manifest:
    count = len(mixture.weights)
    described = published.described
    if described is None:  # descriptors of no numbers
        described = ReleasedMixture(mixture.weights, np.zeros((count, 0)), np.zeros((count, 1)))
    source = next(each for each in published.inputs if each.role == "mixture")
    return write_gmm(
        path,
        descriptors=DescriptorMixture(
            described.weights, described.means, np.broadcast_to(described.variances, described.means.shape)
        ),
        kept=Assignments(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)),
        patches=patch_modes(mixture, published.statistics),
        shape=published.architecture.shape,
        latents=Input("mixture", source.path, source.fingerprint),
        config={name: str(value) for name, value in as_flat(config).items()},
        details={"modes": count},
        weights=mixture.weights,
        stage="import",
    )


def _train_config(published: Published, path: Path) -> TrainConfig:
    """What the run was trained as, so far as sampling asks."""
    architecture, mixture = published.architecture, published.mixture is not None
    return TrainConfig(
        objective="gm-kl" if architecture.components else "fm",
        source="gmm" if mixture else "gaussian",
        coupling="mode" if mixture else "independent",
        condition=published.condition,
        gmm=path / MIXTURE if mixture else None,
        components=architecture.components or TrainConfig.components,
        constant_std=architecture.constant_std,
        spectral=architecture.spectral,
        patch_size=architecture.patch,
        steps=max(1, published.step),
        dropout=0.1 if published.condition == "class" else 0.0,
        time_shift=published.time_shift,
    )


def _report(published: Published, parameters: int) -> ImportReport:
    architecture = published.architecture
    kind = "DiTDH" if architecture.kind == "ditdh" else "GM-DiT"
    known = {"class": f"{architecture.classes} classes", "mode": f"{architecture.modes} modes", "none": "no condition"}
    source = "a Gaussian source" if published.mixture is None else f"a source of {len(published.mixture.weights)} modes"
    shape = " x ".join(map(str, architecture.shape))
    words = f"{kind} on latents of {shape}, {known[published.condition]}, {source}"
    sampling = "--steps 8 --guidance prob" if architecture.components else "--protocol rae --steps 50"
    return ImportReport(words, parameters, published.notes, sampling)
