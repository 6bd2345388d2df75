"""What a published network is in our terms: its weights under our names, and all that a run records of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.run import LatentStatistics
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.flow.names import Condition
from gmtool.flow.times import shift_for
from gmtool.forecast import Choice
from gmtool.foreign.ditdh import ditdh_architecture, ditdh_weights
from gmtool.foreign.gmflow import read_gmflow
from gmtool.foreign.labels import labels_of
from gmtool.foreign.mixtures import ReleasedMixture, read_mixture
from gmtool.foreign.reading import reading
from gmtool.foreign.torch_files import read_checkpoint, read_statistics
from gmtool.foreign.weights import check_weights
from gmtool.huggingface import local_or_hub_file
from gmtool.nn.architecture import TransformerArchitecture
from gmtool.settings import flag
from gmtool.stages.import_run.config import ImportConfig
from gmtool.tokenizers import sd_vae
from gmtool.tokenizers.build import latent_sizes, model_of
from gmtool.tokenizers.choose import encoder_spec
from gmtool.tokenizers.encoder import DINOV2, TOKEN_PIXELS

STATISTICS, PATCH_MIXTURE = "stat.pt", "spatial_gmm*.pkl"
"""What is looked for beside a checkpoint."""
MIXTURE_FILE = "mixture"
"""The role of the file that the mixture in patch space was read from."""


@dataclass(frozen=True, eq=False)
class Published:
    """A published network in our terms.

    family: its name. ema, model: weights under our names, checked; model is None where there is one set alone.
    step: optimizer steps, 0 if unknown. mixture: the source over normalised latents, None for a Gaussian; descriptors:
    the same modes over [CLS] tokens, None if not available. files: its source files, by role. choices:
    defaults resolved by the files. sampling: flags that sample it as published.
    """

    family: str
    architecture: TransformerArchitecture
    ema: Mapping[str, Tensor]
    model: Mapping[str, Tensor] | None
    parameters: int
    step: int
    condition: Condition
    classes: tuple[str, ...]
    statistics: LatentStatistics
    tokenizer: TokenizerSpec
    time_shift: float
    files: Mapping[str, Path]
    sampling: str
    choices: tuple[Choice, ...]
    mixture: ReleasedMixture | None = None
    descriptors: ReleasedMixture | None = None


def read_published_ditdh(file: Path, config: ImportConfig) -> Published:
    """A DiTDH of RAE or MM-FM.

    Raises UserError for what cannot be read or does not fit together, MachineError for what cannot be fetched.
    """
    named = _named(config, ("statistics", "gmm", "cls_gmm"))
    beside = _beside(file, named)
    files = {"weights": file, **named, **beside}
    checkpoint = read_checkpoint(file)
    mixture = read_mixture(files["gmm"]) if "gmm" in files else None
    descriptors = _read_descriptors(files["cls_gmm"], mixture) if "cls_gmm" in files else None
    with reading(file, "a checkpoint of a DiTDH"):
        labels = labels_of(checkpoint.ema, config.condition, 0 if mixture is None else len(mixture.weights))
        architecture = ditdh_architecture(checkpoint.ema, labels)
        ema = ditdh_weights(checkpoint.ema, architecture)
        model = None if checkpoint.model is None else ditdh_weights(checkpoint.model, architecture)
        parameters = check_weights(ema, architecture)
        if model is not None:
            check_weights(model, architecture)
    statistics = read_statistics(files["statistics"], architecture.shape)
    if mixture is not None:
        size = int(np.prod(architecture.shape))
        _check_size(mixture, size, files["gmm"], "the network's latents have", "the one in patch space")
    default, shift = DINOV2.model, shift_for(int(np.prod(architecture.shape)))
    spec = encoder_spec(config.tokenizer or default, architecture.shape[1] * TOKEN_PIXELS, "--tokenizer")
    tokenizer = _checked_tokenizer(spec, architecture.shape)
    if descriptors is not None:
        size = latent_sizes(tokenizer, 1).descriptor
        _check_size(descriptors, size, files["cls_gmm"], "the encoder's descriptors have", "the one over [CLS] tokens")
    choices = [Choice(flag(name), str(path), "found beside the checkpoint") for name, path in beside.items()]
    if config.condition is None:
        choices.append(Choice("--condition", labels.condition, "the only one that the weights allow"))
    roles = {"gmm": MIXTURE_FILE, "cls_gmm": "[CLS] mixture"}
    return Published(
        family="DiTDH",
        architecture=architecture,
        ema=ema,
        model=model,
        parameters=parameters,
        step=checkpoint.step,
        condition=labels.condition,
        classes=tuple(map(str, range(labels.classes))),
        statistics=statistics,
        tokenizer=tokenizer,
        time_shift=config.time_shift or shift,
        files={roles.get(name, name): path for name, path in files.items()},
        sampling="--protocol rae --steps 50",
        choices=(*choices, *_published_values(config, default, shift, "of the latents' dimension")),
        mixture=mixture,
        descriptors=descriptors,
    )


def read_published_gmflow(folder: Path, config: ImportConfig) -> Published:
    """A GM-DiT of GMFlow.

    Raises UserError for what cannot be read or does not fit together, MachineError for what cannot be fetched.
    """
    for name in ("statistics", "gmm", "cls_gmm", "condition"):
        if getattr(config, name) is not None:
            raise UserError(f"{flag(name)} is for a DiTDH, and {folder} is GMFlow's: remove the flag")
    released = read_gmflow(folder)
    shape = released.architecture.shape
    default = sd_vae.DEFAULT_MODEL if released.vae is None else str(released.vae)
    vae = config.tokenizer or default
    return Published(
        family="GM-DiT",
        architecture=released.architecture,
        ema=released.weights,
        model=None,
        parameters=released.parameters,
        step=0,
        condition="class",
        classes=released.classes,
        statistics=LatentStatistics(torch.zeros(shape), torch.ones(shape)),
        tokenizer=_checked_tokenizer(sd_vae.sd_vae_spec(vae, shape[1] * sd_vae.pixels_a_position(vae)), shape),
        time_shift=config.time_shift or released.shift,
        files={f"weights {index}": file for index, file in enumerate(released.files)},
        sampling="--steps 8 --guidance prob",
        choices=_published_values(config, default, released.shift, "of its scheduler"),
    )


def _named(config: ImportConfig, names: Sequence[str]) -> Mapping[str, Path]:
    """The files that flags name, fetched where they are on the hub."""
    given = {name: getattr(config, name) for name in names}
    return {name: local_or_hub_file(str(file), flag(name)) for name, file in given.items() if file is not None}


def _beside(file: Path, named: Mapping[str, Path]) -> Mapping[str, Path]:
    """The files beside a checkpoint that no flag names. Raises UserError where there is more than one mixture."""
    files = {} if "statistics" in named else {"statistics": file.with_name(STATISTICS)}
    if "gmm" not in named and (mixtures := sorted(file.parent.glob(PATCH_MIXTURE))):
        if len(mixtures) > 1:
            raise UserError(f"{file.parent} holds {len(mixtures)} files {PATCH_MIXTURE}: choose one by --gmm")
        files["gmm"] = mixtures[0]
    return files


def _published_values(config: ImportConfig, model: str, shift: float, whose: str) -> tuple[Choice, ...]:
    """The tokenizer and the shift of times, where no flag gives them."""
    tokenizer = Choice("--tokenizer", model, "as published")
    time_shift = Choice("--time-shift", f"{shift:.4g}", f"the shift {whose}")
    return tuple(
        choice for choice, given in ((tokenizer, config.tokenizer), (time_shift, config.time_shift)) if given is None
    )


def _read_descriptors(file: Path, patches: ReleasedMixture | None) -> ReleasedMixture:
    """The mixture over [CLS] tokens that belongs to the one in patch space."""
    mixture = read_mixture(file)
    if patches is None or len(mixture.weights) != len(patches.weights):
        others = "none in patch space: give it by --gmm" if patches is None else f"one of {len(patches.weights)} modes"
        raise UserError(f"--cls-gmm {file} is a mixture of {len(mixture.weights)} modes, and there is {others}")
    return mixture


def _check_size(mixture: ReleasedMixture, size: int, file: Path, data: str, right: str) -> None:
    """Raise UserError unless a file's mixture is over ``size`` numbers. data: whose numbers. right: what to give."""
    numbers = mixture.means.shape[1]
    if numbers != size:
        raise UserError(f"{file} is a mixture over {numbers} numbers, and {data} {size}: give {right}")


def _checked_tokenizer(spec: TokenizerSpec, shape: tuple[int, int, int]) -> TokenizerSpec:
    """The record of a tokenizer whose latents are of the network's shape. Raises UserError for another."""
    made = latent_sizes(spec, 1).shape
    if made != shape:
        sizes = [" x ".join(map(str, size)) for size in (made, shape)]
        raise UserError(
            f"the tokenizer {model_of(spec)} makes latents of {sizes[0]}, and the network takes {sizes[1]}: "
            "give its own by --tokenizer"
        )
    return spec
