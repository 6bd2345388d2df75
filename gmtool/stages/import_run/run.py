"""A published network made a run: its files read as data, and written as gmtool's own.

The run is whole or not at all: it is made beside its final name and renamed. It records its source files by their
fingerprints, and is sampled and scored like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import DescriptorMixture, KeptModes, write_gmm
from gmtool.artifacts.manifest import Input, Manifest, file_fingerprint, fingerprint
from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.outputs import output_of
from gmtool.artifacts.run import CHECKPOINTS, IMPORTED, MIXTURE, LatentStatistics, Origin, create_run, run_details
from gmtool.foreign.mixtures import ReleasedMixture, patch_modes
from gmtool.settings import as_flat
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.import_run.plan import ImportPlan
from gmtool.stages.import_run.published import MIXTURE_FILE, Published
from gmtool.tokenizers.build import latent_sizes
from gmtool.training.checkpoint import EMA, MODEL, Position, save_checkpoint

AVERAGES = ("published",)
"""The name of the published weights, which are a moving average."""


def import_run(plan: ImportPlan) -> None:
    """Write the run of a plan. Raises OSError when the disk is full; nothing is left of it then."""
    output = output_of(plan.path, "run")
    with output.locked():
        output.discard()
        try:
            _write(output.part, output.target, plan)
            output.publish()
        except BaseException:
            output.discard()
            raise


def _write(part: Path, target: Path, plan: ImportPlan) -> None:
    """Write the run to the folder ``part``, which will be renamed to ``target``."""
    part.mkdir(parents=True)
    published, statistics = plan.network, plan.network.statistics
    inputs = [Input(role, str(file.absolute()), file_fingerprint(file)) for role, file in published.files.items()]
    if published.mixture is not None:
        source = next(used for used in inputs if used.role == MIXTURE_FILE)
        manifest = _write_mixture(part / MIXTURE, published, published.mixture, source, plan.config)
        inputs.append(Input("gmm", str(target / MIXTURE), manifest.fingerprint))
        weights = torch.from_numpy(published.mixture.weights).float().unsqueeze(0)
        statistics = LatentStatistics(statistics.mean, statistics.std, weights)
    files = {EMA: _float32(published.ema)}
    if published.model is not None:
        files[MODEL] = _float32(published.model)
    save_checkpoint(part / CHECKPOINTS, Position(published.step), files)
    settings = _settings(published, target)
    descriptor_size = latent_sizes(published.tokenizer, 1).descriptor
    manifest = Manifest(
        kind="run",
        stage="import",
        fingerprint=fingerprint([repr(sorted(settings.items())), *(used.fingerprint for used in inputs)]),
        config=settings,
        inputs=tuple(inputs),
        details={
            **run_details(
                published.architecture,
                AVERAGES,
                published.parameters,
                Origin(published.classes, published.tokenizer, descriptor_size),
            ),
            IMPORTED: _asked(plan),
        },
    )
    create_run(part, manifest, statistics, published.tokenizer)


def _float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in weights.items()}


def _write_mixture(
    path: Path, published: Published, mixture: ReleasedMixture, source: Input, config: ImportConfig
) -> Manifest:
    """The mixture's file, whose source is ``source``, a file."""
    count = len(mixture.weights)
    descriptors = published.descriptors
    if descriptors is None:  # descriptors of no numbers
        descriptors = ReleasedMixture(mixture.weights, np.zeros((count, 0)), np.zeros((count, 1)))
    return write_gmm(
        path,
        descriptors=DescriptorMixture(
            descriptors.weights,
            descriptors.means,
            np.broadcast_to(descriptors.variances, descriptors.means.shape),
        ),
        kept=KeptModes(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)),
        patches=patch_modes(mixture, published.statistics),
        shape=published.architecture.shape,
        latents=source,
        config=as_flat(config),
        details={"modes": count},
        weights=mixture.weights,
        stage="import",
    )


def _asked(plan: ImportPlan) -> dict[str, Any]:
    """What the command was told: its source and settings, from which it can be typed again."""
    told: dict[str, Any] = {"source": Path(plan.source), **as_flat(plan.config)}
    return {name: _place(value) if isinstance(value, Path) else value for name, value in told.items()}


def _place(path: Path) -> str:
    """The whole path of what is on this machine; what is on the hub as it was typed."""
    here = path.expanduser()
    return str(here.absolute() if here.exists() else path)


def _settings(published: Published, path: Path) -> dict[str, Any]:
    """What the run was trained as, so far as its files tell; see `gmtool.artifacts.method_record`."""
    mixture = published.mixture is not None
    method = MethodRecord(
        objective="gm-kl" if published.architecture.components else "fm",
        source="gmm" if mixture else "gaussian",
        coupling="mode" if mixture else "independent",
        condition=published.condition,
        mode_mean=False,
        transition_ratio=0.5 if published.architecture.components else None,
        time_distribution="logit-normal",
        time_shift=published.time_shift,
        dropout=0.1 if published.condition == "class" else 0.0,
    )
    return {**asdict(method), "gmm": str(path / MIXTURE) if mixture else None, "steps": published.step}
