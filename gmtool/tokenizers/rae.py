"""An encoder's latents to images, by the decoder of diffusers' ``AutoencoderRAE``: a ViT with a patch per token.

A decoder fits the latents that it was trained on: those of one encoder, and of one number k of its last blocks. A
folder says which in ``encoder.json`` (the record of the tokenizer, `record_encoder`); without it, ``config.json`` tells
the encoder's family. A decoder that says nothing of k is one of k = 1, as RAE's are. The record holds checksums, of
itself and of ``config.json``, and the weights beside it have their own: what was damaged is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gmtool.artifacts.decoder_run import CONFIG, WEIGHTS, WEIGHTS_REPAIR
from gmtool.artifacts.files import reading, written_aside
from gmtool.artifacts.manifest import CHECKSUM, KINDS, Input, file_fingerprint, fingerprint
from gmtool.artifacts.outputs import kind_of
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError, install
from gmtool.foreign.rae_decoder import POSITIONS, read_decoder
from gmtool.huggingface import local_or_hub_file
from gmtool.tokenizers.base import to_uint8
from gmtool.tokenizers.pretrained import model_config, model_folder, model_record
from gmtool.tokenizers.vit import VitFacts, facts_of

ENCODER_RECORD = "encoder.json"
"""In a decoder's folder: the record of the tokenizer whose latents it was trained on."""
_ROLE = "--decoder"


@dataclass(frozen=True, eq=False)
class Decoder:
    """network: an ``AutoencoderRAE``, of which only the decoder and the image mean and std are used."""

    network: Any

    @torch.inference_mode()
    def decode(self, latents: Tensor, image_size: int, truncate: bool = False) -> Tensor:
        """Images uint8 (B, 3, S, S), S = ``image_size``, of latents float32 (B, C, H, W), not normalised.

        See `Tokenizer.decode`. Raises UserError as `decode_float` does.
        """
        levels = self.decode_float(latents) * 255
        if levels.shape[-1] != image_size:
            size = (image_size, image_size)
            levels = functional.interpolate(levels, size=size, mode="bicubic", align_corners=False, antialias=True)
        return to_uint8(levels, truncate)

    def decode_float(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, S', S') nominally in [0, 1], not clamped; S' is the decoder's own size.

        latents: as in `decode`. Raises UserError when they have another number of channels than the decoder takes.
        """
        decoder = self.network.decoder
        expected = decoder.decoder_embed.in_features
        if latents.shape[1] != expected:
            raise UserError(
                f"{_ROLE} decodes latents of {expected} channels, not of {latents.shape[1]}: choose another"
            )
        patches = decoder(latents.flatten(2).transpose(1, 2)).logits
        return decoder.unpatchify(patches) * self.network.encoder_std + self.network.encoder_mean


def record_encoder(folder: Path, spec: TokenizerSpec) -> None:
    """Write ``encoder.json`` into a decoder's folder: the tokenizer whose latents it was trained on.

    Everything else must be there already. Raises OSError when the file cannot be written.
    """
    values = {"name": spec.name, "settings": dict(spec.settings), CONFIG: file_fingerprint(folder / CONFIG)}
    with written_aside(folder / ENCODER_RECORD) as part:
        part.write_text(json.dumps({**values, CHECKSUM: _checksum(values)}, indent=1) + "\n")


def _checksum(values: Mapping[str, Any]) -> str:
    return fingerprint([json.dumps(values, sort_keys=True)])


def recorded_encoder(source: str) -> TokenizerSpec | None:
    """The tokenizer whose latents a decoder was trained on, by the record in its folder; None where there is none.

    source: folder, hub id, or a file, which has no record. Raises UserError when the record is damaged, or ``source``
    is no model, or is another kind of gmtool's outputs; MachineError when it cannot be fetched.
    """
    file = local_or_hub_file(source, _ROLE)
    if (kind := kind_of(file)) is not None and kind in KINDS and kind != "decoder":
        raise UserError(f"{_ROLE} {source} is {KINDS[kind][0]}: give what `{KINDS['decoder'][1]}` writes")
    return None if file.is_file() else _read_record(model_folder(source, _ROLE))


def decoder_inputs(source: str | None) -> tuple[Input, ...]:
    """A decoder, if there is one, as a manifest records it: by a digest of its weights, which go on being trained.

    source: as in `load_decoder`. Raises UserError when it is no model, MachineError when it cannot be fetched.
    """
    if source is None:
        return ()
    file = local_or_hub_file(source, _ROLE)
    if not file.is_file():
        model = model_record(source, _ROLE)
        return (Input("decoder", model["model"], model["weights"]),)
    here = Path(source).expanduser()
    return (Input("decoder", str(here.resolve()) if here.exists() else source, file_fingerprint(file)),)


def _read_record(folder: Path) -> TokenizerSpec | None:
    record = folder / ENCODER_RECORD
    if not record.is_file():
        return None
    with reading(record, "restore it, or train the decoder again"):
        values = json.loads(record.read_text())
        if values.pop(CHECKSUM) != _checksum(values):
            raise ValueError("its checksum does not match")
        if values[CONFIG] != file_fingerprint(folder / CONFIG):
            raise UserError(f"{folder / CONFIG} was changed since gmtool wrote it: restore it, or train again")
        return TokenizerSpec(str(values["name"]), dict(values["settings"]))


def expect_encoder(folder: Path, spec: TokenizerSpec, source: str, flag: str = _ROLE) -> None:
    """Raise UserError unless the decoder in a folder was trained on latents of the encoder ``spec``.

    source, flag: what the user calls it, and by which flag it was given. Raises UserError also when its record is
    damaged.
    """
    known = _read_record(folder)
    family = model_config(folder, flag).get("encoder_type", spec.name) if known is None else known.name
    if family != spec.name:
        raise UserError(f"{flag} {source} is for latents of {family}, not of {spec.name}: give one trained for these")
    _expect_layers(1 if known is None else known.layers, spec, f"{flag} {source}")
    if known is not None and known.settings.get("weights") != spec.settings.get("weights"):
        raise UserError(
            f"{flag} {source} is for latents of another {family} ({known.settings.get('model')}, not "
            f"{spec.settings.get('model')}): give one trained for these"
        )


def _expect_layers(layers: int, spec: TokenizerSpec, decoder: str) -> None:
    if layers != spec.layers:
        raise UserError(
            f"{decoder} is for latents of --layers {layers}, and these are of --layers {spec.layers}: give one "
            "trained for these"
        )


def load_decoder(source: str, device: torch.device, encoder: TokenizerSpec, flag: str = _ROLE) -> Decoder:
    """The decoder of an ``AutoencoderRAE``, a folder or hub id, or of a ``.pt`` file of RAE or MM-FM.

    encoder: whose latents it is to decode; flag: by which ``source`` was given. Raises UserError without diffusers, and
    when ``source`` is something else, is damaged, or was trained on other latents; MachineError when it cannot be
    fetched.
    """
    try:
        from diffusers import AutoencoderRAE
        from diffusers.utils import logging
    except ImportError as error:
        raise UserError(f"{flag} needs diffusers: {install('rae')}") from error
    logging.set_verbosity_error()
    file = local_or_hub_file(source, flag)
    try:
        if file.is_file():
            _expect_layers(1, encoder, f"{flag} {source}")
            network = _from_checkpoint(file, AutoencoderRAE, facts_of(encoder), flag)
        else:
            folder = model_folder(source, flag)
            expect_encoder(folder, encoder, source, flag)
            if (folder / ENCODER_RECORD).is_file():
                read_tensors(folder / WEIGHTS, repair=WEIGHTS_REPAIR)  # for their checksums
            network = AutoencoderRAE.from_pretrained(  # type: ignore[no-untyped-call]  # diffusers has no types
                folder, use_safetensors=True, low_cpu_mem_usage=False
            )
            _restore_positions(network, folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag} {source} is not an AutoencoderRAE that can be loaded: {reason}") from error
    return Decoder(network.eval().requires_grad_(False).to(device))


def _from_checkpoint(file: Path, autoencoder: Any, encoder: VitFacts, flag: str) -> Any:
    """An ``autoencoder`` without encoder, whose decoder has the weights of a checkpoint of RAE or MM-FM.

    Its colours come out normalised as the encoder's go in.
    """
    decoder = read_decoder(file, flag)
    mean, std = encoder.statistics
    network = autoencoder(
        **decoder.sizes,
        encoder_num_hidden_layers=0,
        encoder_patch_size=encoder.patch,
        encoder_input_size=encoder.patch * decoder.grid,
        encoder_norm_mean=list(mean),
        encoder_norm_std=list(std),
    )
    network.decoder.load_state_dict(decoder.weights)
    network.decoder.decoder_pos_embed.copy_(decoder.positions)
    return network


def _restore_positions(network: Any, folder: Path) -> None:
    """Load the decoder's position embedding where the file has one: it was trained, but diffusers computes it anew."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            if f"decoder.{POSITIONS}" in weights.keys():  # noqa: SIM118  # it is no mapping
                network.decoder.decoder_pos_embed.copy_(weights.get_tensor(f"decoder.{POSITIONS}"))
