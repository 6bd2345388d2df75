"""What a published network is in our terms: its weights under our names, and all that a run records of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import LatentStatistics
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.flow.times import shift_for
from gmtool.foreign.ditdh import ditdh_architecture, ditdh_weights, labels_of
from gmtool.foreign.gmflow import read_gmflow
from gmtool.foreign.mixtures import ReleasedMixture, read_mixture
from gmtool.foreign.torch_files import read_checkpoint, read_statistics
from gmtool.huggingface import local_or_hub_file
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.settings import flag
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.train.config import Condition
from gmtool.tokenizers import dinov2, sd_vae
from gmtool.tokenizers.build import latent_sizes, model_of

STATISTICS, PATCH_MIXTURE = "stat.pt", "spatial_gmm*.pkl"
"""What is looked for beside a checkpoint."""


@dataclass(frozen=True, eq=False)
class Published:
    """A published network in our terms.

    ema, model: weights under our names; model is None where there is one set alone. step: optimiser steps, 0 if
    unknown. mixture: the source over normalised latents, None for a Gaussian; described: the same modes over [CLS]
    tokens, None where that is not at hand. inputs: the files it was read from.
    """

    architecture: Architecture
    ema: Mapping[str, Tensor]
    model: Mapping[str, Tensor] | None
    step: int
    condition: Condition
    classes: tuple[str, ...]
    statistics: LatentStatistics
    tokenizer: TokenizerSpec
    time_shift: float
    inputs: tuple[Input, ...]
    mixture: ReleasedMixture | None = None
    described: ReleasedMixture | None = None
    notes: tuple[str, ...] = ()


def read_published_ditdh(file: Path, config: ImportConfig) -> Published:
    """A DiTDH of RAE or MM-FM. Raises UserError for what cannot be read or does not fit together."""
    checkpoint = read_checkpoint(file)
    notes = []
    statistics_file, mixture_file, described_file = (_named(config, each) for each in ("statistics", "gmm", "cls_gmm"))
    statistics_file = statistics_file or file.with_name(STATISTICS)
    if mixture_file is None and (beside := sorted(file.parent.glob(PATCH_MIXTURE))):
        if len(beside) > 1:
            raise UserError(f"{file.parent} holds {len(beside)} files {PATCH_MIXTURE}: choose one by --gmm")
        mixture_file = beside[0]
        notes.append(f"the source of the flow is {mixture_file}, found beside the checkpoint")
    mixture = None if mixture_file is None else read_mixture(mixture_file)
    described = None if described_file is None else _read_described(described_file, mixture)
    labels = labels_of(checkpoint.ema, config.condition, 0 if mixture is None else len(mixture.weights))
    try:
        architecture = ditdh_architecture(checkpoint.ema, labels)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{file} is no checkpoint of a DiTDH: it lacks {error}, or it is of another shape") from error
    statistics = read_statistics(statistics_file, architecture.shape)
    if mixture is not None:
        _check_size(mixture, architecture, str(mixture_file))
    files = {"weights": file, "statistics": statistics_file, "mixture": mixture_file, "[CLS] mixture": described_file}
    model, image_size = config.tokenizer or dinov2.DEFAULT_MODEL, architecture.shape[1] * dinov2.TOKEN_PIXELS
    return Published(
        architecture=architecture,
        ema=ditdh_weights(checkpoint.ema, labels),
        model=None if checkpoint.model is None else ditdh_weights(checkpoint.model, labels),
        step=checkpoint.step,
        condition=labels.condition,
        classes=tuple(map(str, range(labels.classes))),
        statistics=statistics,
        tokenizer=_checked_tokenizer(dinov2.dinov2_spec(model, image_size), architecture.shape),
        time_shift=config.time_shift or shift_for(int(np.prod(architecture.shape))),
        inputs=_inputs(files),
        mixture=mixture,
        described=described,
        notes=tuple(notes),
    )


def read_published_gmflow(folder: Path, config: ImportConfig) -> Published:
    """A GM-DiT of GMFlow. Raises UserError for what cannot be read or does not fit together."""
    for name in ("statistics", "gmm", "cls_gmm", "condition"):
        if getattr(config, name) is not None:
            raise UserError(f"{flag(name)} is for a DiTDH, and {folder} is GMFlow's: leave it out")
    found = read_gmflow(folder)
    shape = found.architecture.shape
    vae = config.tokenizer or (sd_vae.DEFAULT_MODEL if found.vae is None else str(found.vae))
    image_size = shape[1] * sd_vae.pixels_a_position(vae)
    return Published(
        architecture=found.architecture,
        ema=found.weights,
        model=None,
        step=0,
        condition="class",
        classes=found.classes,
        statistics=LatentStatistics(torch.zeros(shape), torch.ones(shape)),
        tokenizer=_checked_tokenizer(sd_vae.sd_vae_spec(vae, image_size), shape),
        time_shift=config.time_shift or found.shift,
        inputs=_inputs({f"weights {index}": file for index, file in enumerate(found.files)}),
    )


def _named(config: ImportConfig, name: str) -> Path | None:
    """The file that a flag names, fetched where it is on the hub; None where it names none."""
    file: Path | None = getattr(config, name)
    return None if file is None else local_or_hub_file(str(file), flag(name))


def _inputs(files: Mapping[str, Path | None]) -> tuple[Input, ...]:
    return tuple(
        Input(role, str(file.absolute()), file_fingerprint(file)) for role, file in files.items() if file is not None
    )


def _read_described(file: Path, patches: ReleasedMixture | None) -> ReleasedMixture:
    """The mixture over [CLS] tokens that belongs to the one in patch space."""
    found = read_mixture(file)
    if patches is None or len(found.weights) != len(patches.weights):
        others = "none in patch space: give it by --gmm" if patches is None else f"one of {len(patches.weights)} modes"
        raise UserError(f"--cls-gmm {file} is a mixture of {len(found.weights)} modes, and there is {others}")
    return found


def _check_size(mixture: ReleasedMixture, architecture: Architecture, whose: str) -> None:
    size = int(np.prod(architecture.shape))
    if mixture.means.shape[1] != size:
        raise UserError(
            f"{whose} is a mixture over {mixture.means.shape[1]} numbers, and the network's latents have {size}: give "
            "the one in patch space"
        )


def check_weights(source: Path, published: Published) -> int:
    """The number of parameters. Raises UserError unless names and shapes are those of the architecture."""
    with torch.device("meta"):
        network = build_network(published.architecture, seed=0)
    expected = {name: each.shape for name, each in network.state_dict().items()}
    for weights in (published.ema, published.model or published.ema):
        found = {name: each.shape for name, each in weights.items()}
        if missing := sorted(set(expected) - set(found)):
            raise UserError(f"{source} lacks the weight {missing[0]} of its network")
        if unknown := sorted(set(found) - set(expected)):
            raise UserError(f"{source} has the weight {unknown[0]}, which this network of gmtool does not know")
        if unfit := sorted(name for name in expected if expected[name] != found[name]):
            shapes = [" x ".join(map(str, each[unfit[0]])) for each in (found, expected)]
            raise UserError(f"{source}: the weight {unfit[0]} is of {shapes[0]}, and not of {shapes[1]}")
    return sum(each.numel() for each in network.parameters())


def _checked_tokenizer(spec: TokenizerSpec, shape: tuple[int, int, int]) -> TokenizerSpec:
    """The record of a tokenizer whose latents are of the network's shape. Raises UserError for another."""
    made = latent_sizes(spec, 1).shape
    if made != shape:
        sizes = [" x ".join(map(str, each)) for each in (made, shape)]
        raise UserError(
            f"the tokenizer {model_of(spec)} makes latents of {sizes[0]}, and the network takes {sizes[1]}: "
            "give its own by --tokenizer"
        )
    return spec
