"""``dinov2``, ``dinov3``, ``siglip2``, ``mae``: patch tokens of a vision transformer as latents, and a descriptor.

An image of size S in [0, 1] is resized (bicubic, no antialias, not clamped) so that the network's patches cut it into
S // 16 by S // 16 tokens, whatever the patch size: with patch 14, 256 becomes 224 and 512 becomes 448. It is normalised
as the network's own preprocessor does. With h_l the tokens after block l of L and LN the last LayerNorm, without scale
and shift (`gmtool.tokenizers.vit`), the latent is

    z = sum over the last k blocks of LN(h_l)        k = 1: LN(h_L), RAE (Zheng et al., arXiv 2510.11690)

of the patches alone; k > 1 is RAEv2's (Singh et al., arXiv 2605.18324), as the paper has it: its public code takes the
mean, for k = 7 over every other block, and adds the mean token. The descriptor is the last block's [CLS], or
what the network pools. Decoding is `gmtool.tokenizers.rae`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError, install
from gmtool.runtime import to_device
from gmtool.tokenizers.base import Encoded, Fact, ImageSample, LatentSizes, Settled, TokenizerFamily
from gmtool.tokenizers.pretrained import RECORDED, model_folder, model_record, recorded_folder
from gmtool.tokenizers.rae import Decoder, load_decoder
from gmtool.tokenizers.settings import TokenizerSettings
from gmtool.tokenizers.vit import VitFacts, facts_of, final_norm, load_vit, read_facts

DEFAULT_IMAGE_SIZE = 256
TOKEN_PIXELS = 16
"""Image pixels a token stands for, on each axis."""
_ROLE = "--tokenizer"


class Encoder:
    """The tokenizer; see the module. Parameters stay float32; lower precision is autocast."""

    def __init__(
        self,
        spec: TokenizerSpec,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        decoder: Decoder | None = None,
    ) -> None:
        """Raises UserError when the model of ``spec`` is gone or has other weights, MachineError without network."""
        self._spec = spec
        folder = recorded_folder(spec.settings, pickled=True)
        self._facts = read_facts(folder, RECORDED)
        self._network: Any = load_vit(folder, self._facts, RECORDED).to(device)
        self._mean, self._std = (torch.tensor(value, device=device).view(3, 1, 1) for value in self._facts.statistics)
        self._device, self._dtype, self._decoder = device, dtype, decoder

    @property
    def decoder(self) -> Decoder | None:
        """What turns its latents into images, if it was given."""
        return self._decoder

    @property
    def image_size(self) -> int:
        """See `Tokenizer.image_size`."""
        return int(self._spec.settings["image_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(width of a token, image_size // 16, image_size // 16)."""
        return latent_shape(self._facts, self.image_size)

    @property
    def descriptor_size(self) -> int:
        """The width of a token."""
        return self._facts.width

    def spec(self) -> TokenizerSpec:
        """See `EncoderFamily.spec`."""
        return self._spec

    def encode(self, images: Tensor) -> Encoded:
        """See `Tokenizer.encode`."""
        return self.encode_normalised(self.normalise(to_device(images, self._device).float() / 255))

    def describe(self, images: Tensor) -> Tensor:
        """See `Tokenizer.describe`."""
        return self.encode(images).descriptors

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        """See `Tokenizer.decode`."""
        if self._decoder is None:
            raise UserError(DECODER_HINT)
        return self._decoder.decode(latents.to(self._device, torch.float32), self.image_size, truncate)

    def normalise(self, images: Tensor) -> Tensor:
        """Images float32 (B, 3, S, S) in [0, 1] as the network takes them: (B, 3, h, h), h = `input_size`, normalised.

        They are resized (bicubic) if S is another size. All are on the encoder's device.
        """
        size = input_size(self._facts, self.image_size)
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        return (images - self._mean) / self._std

    @torch.inference_mode()
    def encode_normalised(self, pixels: Tensor) -> Encoded:
        """Latents and descriptors of normalised images float32 (B, 3, h, w), sides multiples of the patch size."""
        facts, layers = self._facts, self._spec.layers
        arguments = facts.design.arguments(pixels, facts.patch)
        with self._autocast():
            output = self._network(**arguments, output_hidden_states=layers > 1)
        last = output.last_hidden_state.float()
        tokens = last[:, facts.dropped :]
        if facts.design.class_token:
            descriptors = last[:, 0]
        else:
            descriptors = output.pooler_output.float() if facts.pools else tokens.mean(1)
        if layers > 1:
            norm = final_norm(self._network, facts)
            earlier = output.hidden_states[-layers:-1]
            tokens = tokens + sum(norm(state[:, facts.dropped :].float()) for state in earlier)
        grid = [side // facts.patch for side in pixels.shape[-2:]]
        return Encoded(tokens.transpose(1, 2).unflatten(2, grid).contiguous(), descriptors)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


DECODER_HINT = (
    f"latents of an encoder become images by a decoder trained for it: {install('rae')}, and give --decoder the hub "
    "id or folder of an AutoencoderRAE"
)


@dataclass(frozen=True)
class EncoderFamily(TokenizerFamily):
    """The `TokenizerFamily` of vision transformers of some designs.

    name: that records give. model: the hub id of the default. kinds: what ``config.json`` calls its models. random:
    makes the default with random weights.
    """

    name: str
    model: str
    kinds: tuple[str, ...]
    random: Callable[[Any], Any]

    decoder_hint = DECODER_HINT
    content = weights = True

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `TokenizerFamily.recognises`."""
        return config.get("model_type") in self.kinds

    def default_sizes(self, image_size: int) -> LatentSizes:
        """See `TokenizerFamily.default_sizes`: the default models have 768 numbers per token."""
        return LatentSizes((768, image_size // TOKEN_PIXELS, image_size // TOKEN_PIXELS), 768)

    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        """See `TokenizerFamily.settle`."""
        return Settled(self.spec(model, settings.image_size or DEFAULT_IMAGE_SIZE, settings.layers or 1))

    def spec(self, model: str | None, image_size: int, layers: int = 1, role: str = _ROLE) -> TokenizerSpec:
        """The record of an encoder.

        model: its folder or hub id; None for the default. image_size: side of the images, in pixels. layers: number of
        last blocks whose tokens are summed. role: what it serves as, for messages. Raises UserError for a wrong model,
        size or number of blocks, MachineError when the model cannot be fetched.
        """
        if image_size < TOKEN_PIXELS:
            raise UserError(f"--image-size must be at least {TOKEN_PIXELS} with --tokenizer {self.name}")
        model = model or self.model
        facts = read_facts(model_folder(model, role, pickled=True), role)
        if facts.kind not in self.kinds:
            raise UserError(f"{role} {model} is a {facts.kind}, and the record says {self.name}: encode again")
        if layers > max(facts.blocks, 1):
            raise UserError(f"--layers {layers}: {model} has {facts.blocks} blocks; use at most that many")
        # 1 goes without saying, as it did before there was a choice: records of then stay equal to those of now
        chosen = {"layers": layers} if layers > 1 else {}
        return TokenizerSpec(self.name, {**model_record(model, role, pickled=True), "image_size": image_size, **chosen})

    def facts(self, spec: TokenizerSpec) -> tuple[Fact, ...]:
        """See `TokenizerFamily.facts`."""
        facts = facts_of(spec)
        size, layers, (mean, std) = spec.settings["image_size"], spec.layers, facts.statistics
        _, height, width = latent_shape(facts, size)
        registers = facts.dropped - facts.design.class_token
        dropped = ["[CLS]"] * facts.design.class_token + [f"{registers} registers"] * bool(registers)
        pooled = "its attention pooling" if facts.pools else "the mean token, since it pools nothing"
        blocks = "the last block" if layers == 1 else f"the last {layers} blocks, summed,"
        pixels = input_size(facts, size)
        return (
            ("encoder", f"{facts.kind}, {facts.blocks} blocks of {facts.width}, patches of {facts.patch} px"),
            ("encoder input", f"{size} px resized to {pixels}, mean {_numbers(mean)}, std {_numbers(std)}"),
            (
                "latents",
                f"{height} x {width} tokens of {blocks} under the last LayerNorm without scale and shift; "
                f"{' and '.join(dropped) or 'no token'} dropped",
            ),
            ("descriptor", "[CLS] of the last block" if facts.design.class_token else pooled),
        )

    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        """See `TokenizerFamily.sizes`."""
        facts = facts_of(spec)
        return LatentSizes(latent_shape(facts, spec.settings["image_size"]), facts.width)

    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> Encoder:
        """See `TokenizerFamily.open`."""
        return Encoder(spec, device, dtype, None if decoder is None else load_decoder(decoder, device, spec))

    def save_random(self, folder: Path) -> None:
        """See `TokenizerFamily.save_random`."""
        import transformers

        self.random(transformers).save_pretrained(folder)


def _random_dinov2(library: Any) -> Any:
    return library.Dinov2WithRegistersModel(library.Dinov2WithRegistersConfig(patch_size=14, image_size=518))


def _random_dinov3(library: Any) -> Any:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4}
    return library.DINOv3ViTModel(library.DINOv3ViTConfig(**sizes))


def _random_siglip2(library: Any) -> Any:
    return library.SiglipVisionModel(library.SiglipVisionConfig(image_size=256))


def _random_mae(library: Any) -> Any:
    return library.ViTMAEModel(library.ViTMAEConfig())


DINOV2 = EncoderFamily(
    "dinov2", "facebook/dinov2-with-registers-base", ("dinov2", "dinov2_with_registers"), _random_dinov2
)
DINOV3 = EncoderFamily("dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", ("dinov3_vit",), _random_dinov3)
SIGLIP2 = EncoderFamily(
    "siglip2",
    "google/siglip2-base-patch16-256",
    ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    _random_siglip2,
)
MAE = EncoderFamily("mae", "facebook/vit-mae-base", ("vit_mae",), _random_mae)


def latent_shape(facts: VitFacts, image_size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents: one token per 16 x 16 pixels of the image."""
    grid = image_size // TOKEN_PIXELS
    return facts.width, grid, grid


def input_size(facts: VitFacts, image_size: int) -> int:
    """Side, in pixels, to which the images are resized for the network: its patch size times ``image_size`` // 16."""
    return image_size // TOKEN_PIXELS * facts.patch


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in values)
