"""A small decoder and discriminator, in memory, and what trains them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from golden import DATA
from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.reconstruction.augmentation import Augmentation
from gmtool.reconstruction.discriminator import DinoFeatures, Discriminator
from gmtool.reconstruction.network import DecoderNetwork, DecoderSize, new_decoder
from gmtool.reconstruction.settings import Phases
from gmtool.reconstruction.state import DecoderState, make_discriminator_state
from gmtool.reconstruction.step import DecoderStepper, DiscriminatorLoss
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.encoder import DINOV2
from gmtool.training.schedule import Schedule
from gmtool.training.settings import AverageSettings, OptimizerSettings
from gmtool.training.state import make_state

CPU = torch.device("cpu")
SIZE = DecoderSize(32, 2, 2, 64)
RATE = 1e-3


@lru_cache
def encoder() -> TokenizerSpec:
    return DINOV2.spec(str(DATA / "rae_encoder"), 64)


@lru_cache
def tokenizer() -> Tokenizer:
    return build_tokenizer(encoder(), CPU)


def encode(images: Tensor) -> Tensor:
    return tokenizer().encode(images).patches


def images(count: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=draw, dtype=torch.uint8)


def decoder() -> DecoderNetwork:
    return new_decoder(SIZE, encoder(), (32, 4, 4), seed=0)


def discriminator() -> Discriminator:
    from transformers import ViTConfig, ViTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
        return Discriminator(DinoFeatures(ViTModel(config, add_pooling_layer=False), (0,)), kernel=3)


def perceptual(images: Tensor, targets: Tensor) -> Tensor:
    """A stand-in for LPIPS: a squared distance, more at the top."""
    rows = torch.linspace(1, 0, images.shape[2], device=images.device)[:, None]
    return (rows * (images - targets) ** 2).flatten(1).mean(1)


def stepper(
    phases: Phases = Phases(0, 0, 0),
    micro_batch: int | None = None,
    device: torch.device = CPU,
    encode: Callable[[Tensor], Tensor] = encode,
) -> DecoderStepper:
    optimizer = OptimizerSettings(clip=0.0)
    trained = make_state(decoder().to(device), optimizer, AverageSettings(ema=(0.9,)), RATE, 4)
    state = DecoderState(trained, make_discriminator_state(discriminator().to(device), optimizer, RATE))
    schedule = Schedule(RATE)
    return DecoderStepper(
        encode,
        state,
        schedule,
        phases,
        perceptual=perceptual,
        adversarial=DiscriminatorLoss(Augmentation(), "hinge", schedule),
        micro_batch=micro_batch,
    )
