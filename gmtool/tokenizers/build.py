"""A tokenizer from its record in a latents file, a run or samples, and what the record alone tells.

Whatever looks at the record's family raises UserError for one that this version does not have
(`gmtool.tokenizers.table.family_of`).
"""

from __future__ import annotations

import torch

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.runtime import compute_dtype
from gmtool.settings import Precision
from gmtool.tokenizers.base import Fact, LatentSizes, Tokenizer
from gmtool.tokenizers.table import family_of
from gmtool.tokenizers.with_descriptor import WithDescriptor, describer_spec, undescribed


def build_tokenizer(
    spec: TokenizerSpec,
    device: torch.device,
    precision: Precision = "float32",
    decoder: str | None = None,
) -> Tokenizer:
    """The tokenizer that a latents file, a run or samples record.

    decoder: hub id or folder of an AutoencoderRAE, or a ``.pt`` file of RAE or MM-FM, for ``decode`` of an encoder's
    latents. Raises UserError when the tokenizer takes no decoder, or the given one is for other latents, and when the
    model's weights are no longer those of the record; MachineError when they cannot be fetched.
    """
    expect_use_of(decoder, spec)
    dtype = compute_dtype(precision, device)
    tokenizer = family_of(spec.name).open(undescribed(spec), device, dtype, decoder)
    describer = describer_spec(spec)
    if describer is None:
        return tokenizer
    return WithDescriptor(tokenizer, family_of(describer.name).open(describer, device, dtype, None))


def latent_sizes(spec: TokenizerSpec, images: int) -> LatentSizes:
    """The sizes of the latents and descriptors of the tokenizer, which is, or will be, fitted to ``images`` images.

    Raises UserError when one of them is 0, and as `TokenizerFamily.sizes` does.
    """
    sizes = family_of(spec.name).sizes(undescribed(spec), images)
    describer = describer_spec(spec)
    if describer is not None:
        sizes = LatentSizes(sizes.shape, family_of(describer.name).sizes(describer, images).descriptor)
    if min(*sizes.shape, sizes.descriptor) < 1:
        shape = " x ".join(map(str, sizes.shape))
        raise UserError(
            f"the tokenizer {model_of(spec) or spec.name} makes latents of {shape} and descriptors of "
            f"{sizes.descriptor} numbers: choose another --tokenizer"
        )
    return sizes


def expect_use_of(decoder: str | None, spec: TokenizerSpec) -> None:
    """Raise UserError where a decoder is given and the tokenizer takes none."""
    if decoder is not None and family_of(spec.name).decoder_hint is None:
        raise UserError(f"--decoder is for latents of an encoder; those of {spec.name} need none: remove the flag")


def missing_decoder(spec: TokenizerSpec, decoder: str | None) -> str | None:
    """How to get the decoder that images need, where none is given; None where images can be made."""
    return family_of(spec.name).decoder_hint if decoder is None else None


def decodes_exactly(spec: TokenizerSpec) -> bool:
    """Whether decoding the latents gives exactly the images that were encoded."""
    return family_of(spec.name).exact


def takes_grey(spec: TokenizerSpec) -> bool:
    """Whether the tokenizer's images must be grey."""
    return family_of(spec.name).takes_grey(spec)


def depends_on_precision(spec: TokenizerSpec) -> bool:
    """Whether a network with weights computes the latents or the descriptors."""
    return family_of(spec.name).weights or describer_spec(spec) is not None


def facts_of_models(spec: TokenizerSpec) -> tuple[Fact, ...]:
    """What the files of its networks settle, human-readable; see `TokenizerFamily.facts`."""
    describer = describer_spec(spec)
    own = family_of(spec.name).facts(undescribed(spec))
    if describer is None:
        return own
    return (*own, *((f"describing {name}", fact) for name, fact in family_of(describer.name).facts(describer)))


def model_of(spec: TokenizerSpec) -> str | None:
    """The folder or hub id of the tokenizer's network, None without one."""
    model: str | None = spec.settings.get("model")
    return model


def image_size_of(spec: TokenizerSpec) -> int:
    """Side, in pixels, of the images that the tokenizer takes."""
    return int(spec.settings["image_size"])
