"""What a training run will be: its settings with nothing left open, and its network's architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.data.fraction import part_of_data
from gmtool.errors import UserError
from gmtool.flow.times import shift_for
from gmtool.nn import default_lr
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import named
from gmtool.nn.settings import NetworkSettings
from gmtool.stages.train.config import TrainConfig


def resolve(config: TrainConfig, latents: LatentsFile, gmm: GmmFile | None, device: torch.device) -> TrainConfig:
    """The settings with nothing left open. Raises UserError, naming the flag, where the inputs cannot serve them."""
    published = config.objective == "mm-fm"
    source = config.source or ("gmm" if published or config.coupling == "mode" else "gaussian")
    union = config.mixture and source == "gmm"
    coupling = config.coupling or ("mode" if published or union else "independent")
    condition = config.condition
    if condition is None:
        condition = "class" if len(latents.classes) > 1 else "mode" if gmm is not None else "none"
        condition = "none" if published else condition
    if condition == "class" and not latents.classes:
        raise UserError(f"--condition class: the images of {latents.path} had no class folders; take mode or none")
    if config.spectral > latents.shape[0]:
        raise UserError(f"--spectral {config.spectral}: the latents of {latents.path} have {latents.shape[0]} channels")
    part_of_data(latents, config.fraction, config.seed)  # that there is one
    on_gpu = device.type == "cuda"
    model = config.model or ("B" if on_gpu else "tiny")
    resolved = replace(
        config,
        source=source,
        coupling=coupling,
        condition=condition,
        # whitened coordinates do not tell where in the data they are: the mode's mean does
        mode_mean=union if config.mode_mean is None else config.mode_mean,
        model=model,
        batch_size=config.batch_size or (128 if on_gpu else 32),
        lr=default_lr(model) if config.lr is None else config.lr,
        time_shift=shift_for(int(np.prod(latents.shape))) if config.time_shift is None else config.time_shift,
        gmm=gmm.path if gmm is not None else None,
    )
    if resolved.focal and not resolved.uses_modes:
        raise UserError("--focal weighs modes, and this run knows none: take --source gmm or --condition mode")
    if resolved.mode_mean and not resolved.sees_modes:
        raise UserError(
            "--mode-mean shows the network what it knows of a mode: take --condition mode, or gm-kl on --source gmm"
        )
    if resolved.uses_modes and gmm is None:
        wanted = "--source gmm" if resolved.source == "gmm" else "--condition mode"
        raise UserError(f"{wanted} needs a fitted mixture: run `gmtool fit-gmm {latents.path}` first, or give --gmm")
    return resolved


def architecture_for(config: TrainConfig, latents: LatentsFile, gmm: GmmFile | None) -> Architecture:
    """The network that resolved settings and inputs call for. Raises UserError for patches that do not fit."""
    assert config.model is not None  # resolved
    _, height, width = latents.shape
    if height % config.patch_size or width % config.patch_size:
        raise UserError(
            f"--patch-size {config.patch_size} does not divide the latents of {latents.path}, {height} x {width}"
        )
    settings = NetworkSettings(patch_size=config.patch_size, blocks=config.blocks, qk_norm=config.qk_norm)
    return replace(
        named(config.model, latents.shape).configured(settings),
        classes=len(latents.classes) if config.condition == "class" else 0,
        modes=len(gmm) if gmm is not None and config.sees_modes else 0,
        context=latents.shape[0] if config.mode_mean else 0,
        components=config.components if config.mixture else 0,
        constant_std=config.constant_std,
        spectral=config.spectral,
    )
