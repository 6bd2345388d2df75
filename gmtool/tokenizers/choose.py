"""A tokenizer for new images: its record, with defaults settled by the images, then what has to be fitted to them."""

from __future__ import annotations

from dataclasses import replace

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.settings import as_flat, changed, flag
from gmtool.tokenizers.base import ImageSample, Settled
from gmtool.tokenizers.build import image_size_of
from gmtool.tokenizers.dinov2 import DEFAULT_MODEL, dinov2_spec
from gmtool.tokenizers.pretrained import model_config, model_folder
from gmtool.tokenizers.settings import TokenizerSettings
from gmtool.tokenizers.table import TOKENIZERS, family_of
from gmtool.tokenizers.with_descriptor import described_spec, describer_spec, undescribed


def choose_tokenizer(settings: TokenizerSettings, images: ImageSample) -> Settled:
    """The record of the tokenizer that ``settings`` ask for, what they leave open settled by the images.

    It lacks what `fit_tokenizer` adds. Raises UserError for settings that do not go together.
    """
    known = settings.tokenizer in TOKENIZERS
    name = settings.tokenizer if known else _family_of_model(settings.tokenizer)
    for other, row in TOKENIZERS.items():
        for setting in row.settings if other != name else ():
            if as_flat(settings)[setting] is not None:
                raise UserError(f"{flag(setting)} is a setting of --tokenizer {other}: remove the flag")
    family = TOKENIZERS[name].family()
    settled = family.settle(settings, None if known else settings.tokenizer, images)
    if settings.descriptor is None:
        return settled
    if family.content:
        raise UserError("--descriptor is for --tokenizer pixels or sd-vae: a DINOv2 describes images by its own [CLS]")
    named = TOKENIZERS.get(settings.descriptor)
    model = settings.descriptor if named is None or not named.family().content else DEFAULT_MODEL
    describer = dinov2_spec(model, image_size_of(settled.spec), "--descriptor")
    return replace(settled, spec=described_spec(settled.spec, describer))


def fit_tokenizer(spec: TokenizerSpec, images: ImageSample) -> TokenizerSpec:
    """The record completed by what is fitted to the images, such as the PCA of ``pixels``."""
    fitted, describer = family_of(spec.name).fit(undescribed(spec), images), describer_spec(spec)
    return fitted if describer is None else described_spec(fitted, describer)


def settled_settings(settings: TokenizerSettings, spec: TokenizerSpec) -> TokenizerSettings:
    """The settings with the values that the record holds."""
    values = undescribed(spec).settings
    return changed(settings, {name: values[name] for name in as_flat(settings) if name in values})


def _family_of_model(model: str) -> str:
    """The tokenizer whose kind of network a folder or hub id holds. Raises UserError when there is none."""
    folder = model_folder(model, "--tokenizer")
    config = model_config(folder, "--tokenizer")
    for name, row in TOKENIZERS.items():
        if row.family().recognises(config):
            return name
    kind = config.get("model_type") or config.get("_class_name") or "model of an unknown kind"
    raise UserError(f"--tokenizer {folder} is a {kind}: give a DINOv2 (with or without registers) or an AutoencoderKL")
