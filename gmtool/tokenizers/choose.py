"""A tokenizer for new images: its record, with defaults settled by the images, then what has to be fitted to them."""

from __future__ import annotations

from dataclasses import replace

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.settings import as_flat, changed, flag
from gmtool.tokenizers.base import ImageSample, Settled
from gmtool.tokenizers.build import image_size_of
from gmtool.tokenizers.encoder import EncoderFamily
from gmtool.tokenizers.pretrained import model_config, model_folder
from gmtool.tokenizers.settings import TokenizerSettings
from gmtool.tokenizers.table import TOKENIZERS, family_of
from gmtool.tokenizers.vit import KNOWN, a_model
from gmtool.tokenizers.with_descriptor import described_spec, describer_spec, undescribed


def choose_tokenizer(settings: TokenizerSettings, images: ImageSample) -> Settled:
    """The record of the tokenizer that ``settings`` ask for, what they leave open settled by the images.

    It lacks what `fit_tokenizer` adds. Raises UserError for settings that do not go together and for a wrong model,
    MachineError when a model cannot be fetched.
    """
    known = settings.tokenizer in TOKENIZERS
    name = settings.tokenizer if known else _family_of_model(settings.tokenizer, "--tokenizer")
    for setting, value in as_flat(settings).items():
        owners = [other for other, row in TOKENIZERS.items() if setting in row.settings]
        if value is not None and owners and name not in owners:
            raise UserError(f"{flag(setting)} is a setting of --tokenizer {' or '.join(owners)}: remove the flag")
    family = TOKENIZERS[name].family()
    settled = family.settle(settings, None if known else settings.tokenizer, images)
    if settings.descriptor is None:
        return settled
    if family.content:
        raise UserError("--descriptor is for --tokenizer pixels or sd-vae: an encoder describes images itself")
    describer = encoder_spec(settings.descriptor, image_size_of(settled.spec), "--descriptor")
    return replace(settled, spec=described_spec(settled.spec, describer))


def fit_tokenizer(spec: TokenizerSpec, images: ImageSample) -> TokenizerSpec:
    """The record completed by what is fitted to the images, such as the PCA of ``pixels``.

    Raises UserError as `ImageSample.batches` does.
    """
    fitted, describer = family_of(spec.name).fit(undescribed(spec), images), describer_spec(spec)
    return fitted if describer is None else described_spec(fitted, describer)


def settled_settings(settings: TokenizerSettings, spec: TokenizerSpec) -> TokenizerSettings:
    """The settings with the values that the record holds."""
    values = undescribed(spec).settings
    return changed(settings, {name: values[name] for name in as_flat(settings) if name in values})


def encoder_spec(encoder: str, image_size: int, role: str) -> TokenizerSpec:
    """The record of an encoder, named as a tokenizer is: by its family, by a hub id or by a folder.

    image_size: side of the images, in pixels. role: what it serves as, for messages. Raises UserError for what is no
    encoder and for a size that it cannot take, MachineError when it cannot be fetched.
    """
    known = encoder in TOKENIZERS
    name = encoder if known else _family_of_model(encoder, role)
    family = TOKENIZERS[name].family()
    if not isinstance(family, EncoderFamily):
        encoders = [other for other, row in TOKENIZERS.items() if isinstance(row.family(), EncoderFamily)]
        raise UserError(f"{role} {encoder} is no encoder: give {', '.join(encoders)}, or the hub id or folder of one")
    return family.spec(None if known else encoder, image_size, role=role)


def _family_of_model(model: str, role: str) -> str:
    """The tokenizer whose kind of network a folder or hub id holds. Raises UserError when there is none."""
    folder = model_folder(model, role, pickled=True)
    config = model_config(folder, role)
    for name, row in TOKENIZERS.items():
        if row.family().recognises(config):
            return name
    raise UserError(f"{role} {folder} is {a_model(config)}: give a {KNOWN}, or an AutoencoderKL")
