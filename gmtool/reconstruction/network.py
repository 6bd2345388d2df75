"""The decoder as it is trained: that of diffusers' ``AutoencoderRAE``, from latents to images.

An ``AutoencoderRAE`` holds an encoder too; here it has none (no layers), since the latents come from a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmtool.artifacts.decoder_run import CONFIG, WEIGHTS
from gmtool.artifacts.files import written_aside
from gmtool.artifacts.safetensors_io import write_tensors
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError, install
from gmtool.foreign.rae_decoder import POSITIONS
from gmtool.streams import key_seed
from gmtool.tokenizers.rae import load_decoder, record_encoder
from gmtool.tokenizers.vit import facts_of

CLASS_TOKEN_STD = 0.02
"""Standard deviation of the initial class token, as in ViT-MAE."""


@dataclass(frozen=True)
class DecoderSize:
    """A ViT: width, blocks, attention heads, width of the MLPs."""

    width: int
    depth: int
    heads: int
    mlp: int


SIZES: Mapping[str, DecoderSize] = {
    "tiny": DecoderSize(192, 4, 3, 768),
    "B": DecoderSize(768, 12, 12, 3072),
    "L": DecoderSize(1024, 24, 16, 4096),
    "XL": DecoderSize(1152, 28, 16, 4096),
}


class DecoderNetwork(nn.Module):
    """Latents (B, C, h, w), not normalised, to images float32 (B, 3, S, S), nominally in [0, 1].

    sizes: what ``AutoencoderRAE`` is built of. checkpoint_activations: store the inputs of blocks only, and recompute
    their activations in the backward pass.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: Any, sizes: Mapping[str, Any], checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.decoder = autoencoder.decoder
        # part of the state: a decoder that is trained further may have come with positions of its own
        self.decoder.register_buffer(POSITIONS, self.decoder.decoder_pos_embed.clone(), persistent=True)
        self.register_buffer("mean", autoencoder.encoder_mean.clone(), persistent=False)
        self.register_buffer("std", autoencoder.encoder_std.clone(), persistent=False)
        self.checkpoint_activations = checkpoint_activations

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last layer, at which gradients are compared."""
        weight: nn.Parameter = self.decoder.decoder_pred.weight
        return weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        blocks: nn.ModuleList = self.decoder.decoder_layers
        return blocks

    def body(self, latents: Tensor) -> Tensor:
        """Tokens (B, N, D) of latents (B, C, h, w), after all but the last layer; N patches of an image."""
        decoder = self.decoder
        tokens = decoder.interpolate_latent(decoder.decoder_embed(latents.flatten(2).transpose(1, 2)))
        tokens = torch.cat([decoder.trainable_cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = tokens + decoder.decoder_pos_embed
        for block in decoder.decoder_layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return decoder.decoder_norm(tokens)[:, 1:]

    def head(self, tokens: Tensor) -> Tensor:
        """Images float32 (B, 3, S, S) of tokens (B, N, D): the last layer, and back from the encoder's colours."""
        levels = self.decoder.unpatchify(self.decoder.decoder_pred(tokens)).float()
        return levels * self.std + self.mean

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.body(latents))


def new_decoder(
    size: DecoderSize,
    encoder: TokenizerSpec,
    latent_shape: tuple[int, int, int],
    seed: int,
    *,
    checkpoint_activations: bool = False,
) -> DecoderNetwork:
    """A decoder with random weights for latents (C, h, w) of a tokenizer.

    encoder: the tokenizer's record. seed: of the weights. checkpoint_activations: see `DecoderNetwork`.
    Raises UserError when diffusers is missing, or the images' side is no multiple of the latents'.
    """
    channels, grid, _ = latent_shape
    side = int(encoder.settings["image_size"])
    check_sides(side, latent_shape)
    facts = facts_of(encoder)
    mean, std = facts.statistics
    sizes = {
        "encoder_hidden_size": channels,
        "encoder_num_hidden_layers": 0,
        "encoder_patch_size": facts.patch,
        "encoder_input_size": facts.patch * grid,
        "encoder_norm_mean": list(mean),
        "encoder_norm_std": list(std),
        "decoder_hidden_size": size.width,
        "decoder_num_hidden_layers": size.depth,
        "decoder_num_attention_heads": size.heads,
        "decoder_intermediate_size": size.mlp,
        "patch_size": side // grid,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, "decoder"))
        network = DecoderNetwork(_autoencoder()(**sizes), sizes, checkpoint_activations)
        # diffusers leaves the class token at 0, where the first LayerNorm, of eps 1e-12, has a slope of 1e6
        nn.init.normal_(network.decoder.trainable_cls_token, std=CLASS_TOKEN_STD)
        return network


def check_sides(side: int, latent_shape: tuple[int, int, int]) -> None:
    """Raise UserError unless images of a side can be cut into a patch for each token of latents (C, h, w)."""
    grid = latent_shape[1]
    if side % grid:
        raise UserError(f"--image-size {side} is no multiple of the {grid} tokens of a row: use {side // grid * grid}")


def decoder_from(source: str, encoder: TokenizerSpec, *, checkpoint_activations: bool = False) -> DecoderNetwork:
    """A decoder to train further, on the CPU: a folder, hub id or file; see `load_decoder`.

    checkpoint_activations: see `DecoderNetwork`. Raises UserError as that does, and for a decoder that makes images of
    another size than the encoder takes.
    """
    released = load_decoder(source, torch.device("cpu"), encoder, "--init").network
    names = [name for name in released.config if not name.startswith("_") and name != "encoder_type"]
    sizes = {name: released.config[name] for name in names} | {"encoder_num_hidden_layers": 0}
    sizes |= {"latents_mean": None, "latents_std": None}
    side = released.decoder_image_size
    if side != encoder.settings["image_size"]:
        raise UserError(
            f"--init {source} makes images of {side} px, not of {encoder.settings['image_size']}: use --image-size "
            f"{side}"
        )
    return DecoderNetwork(released.requires_grad_(True), sizes, checkpoint_activations).train()


def save_decoder(network: DecoderNetwork, folder: Path, encoder: TokenizerSpec) -> None:
    """Write what diffusers, and ``--decoder``, read: ``config.json``, the weights, and which encoder they are for.

    diffusers takes the position embedding that it computes; where the decoder has another one, it stands in the file
    for gmtool. It expects an encoder in the file too: there is none, so its weights are NaN, and latents that diffusers
    would encode with it are NaN instead of plausible numbers. Raises OSError when the disk is full, UserError without
    diffusers.
    """
    with torch.device("meta"):
        autoencoder = _autoencoder()(**network.sizes)
    weights = {
        name: torch.full(tensor.shape, torch.nan)
        for name, tensor in autoencoder.state_dict().items()
        if name.startswith("encoder.")
    }
    weights |= {f"decoder.{name}": tensor for name, tensor in network.decoder.state_dict().items()}
    weights |= {"encoder_mean": network.mean, "encoder_std": network.std}
    weights |= {"_latents_mean": torch.zeros(1), "_latents_std": torch.ones(1)}
    write_tensors(folder / WEIGHTS, weights)
    with written_aside(folder / CONFIG) as part:
        part.write_text(autoencoder.to_json_string())
    record_encoder(folder, encoder)


def _autoencoder() -> Any:
    try:
        from diffusers import AutoencoderRAE
        from diffusers.utils import logging
    except ImportError as error:
        raise UserError(f"decoders need diffusers: {install('rae')}") from error
    logging.set_verbosity_error()
    return AutoencoderRAE
