"""Monitoring of a decoder's training: pairs of held-out images and reconstructions, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.run import METRICS, PREVIEWS
from gmtool.data.images import image_batches
from gmtool.distributed import World
from gmtool.evaluation.plots import image_grid
from gmtool.reconstruction.network import DecoderNetwork
from gmtool.reconstruction.quality import psnr, ssim
from gmtool.reconstruction.step import Perceptual
from gmtool.stages.train_decoder.plan import TrainDecoderPlan
from gmtool.tokenizers.base import Tokenizer, to_uint8
from gmtool.training.logging import Logger, has_record
from gmtool.training.loop import Event

PAIRS = 16
"""Pairs of a preview."""
AT_ONCE = 16
"""Images reconstructed at once."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out images, and how a decoder reconstructs them.

    network: the moving average of the decoder's weights. perceptual: LPIPS, None without it.
    """

    plan: TrainDecoderPlan
    tokenizer: Tokenizer
    network: DecoderNetwork
    perceptual: Perceptual | None
    folder: Path
    loggers: Sequence[Logger]
    world: World
    autocast: Callable[[], object]

    def draw(self, step: int) -> None:
        """Write the grid of the first `PAIRS` images, each beside its reconstruction, as `preview_file`."""
        if not self.world.first:
            return
        images = self._images[:PAIRS]
        made = torch.cat([self._reconstructed(part) for part in images.split(AT_ONCE)])
        file = preview_file(self.folder, step)
        with written_aside(file) as part:
            Image.fromarray(pair_grid(images, made)).save(part, format="PNG")

    def score(self, step: int) -> None:
        """Write the means of PSNR, SSIM, L1 and LPIPS over all held-out images to the loggers; processes share them."""
        totals = torch.zeros(5, dtype=torch.float64, device=self.world.device)
        mine = self._images[self.world.rows(len(self._images))]
        for images in mine.split(AT_ONCE) if len(mine) else ():
            made = self._reconstructed(images)
            images = images.to(made.device)
            figures = [
                psnr(made, images),
                ssim(made, images),
                (made.float() - images.float()).abs().mean((1, 2, 3)) / 255,
            ]
            if self.perceptual is not None:
                with torch.no_grad():
                    figures.append(self.perceptual(made.float() / 127.5 - 1, images.float() / 127.5 - 1))
            for index, values in enumerate(figures):
                totals[index] += values.double().sum()
            totals[4] += len(images)
        totals = self.world.sum(totals)
        means = (totals[:4] / totals[4]).tolist()
        names = ("psnr", "ssim", "l1_8bit", "lpips") if self.perceptual is not None else ("psnr", "ssim", "l1_8bit")
        for logger in self.loggers:
            logger.write(
                [{"step": step, **{f"held_out_{name}": value for name, value in zip(names, means, strict=False)}}],
                "samples",
            )

    @cached_property
    def _images(self) -> Tensor:
        """uint8 (N, 3, S, S), the centre crops."""
        plan = self.plan
        batches = image_batches(
            plan.held_out, plan.image_size, AT_ONCE, workers=plan.config.crops.workers, rows=plan.held_out_rows
        )
        return torch.from_numpy(np.concatenate([batch.images for batch in batches]))

    def _reconstructed(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S)."""
        with torch.no_grad(), self.autocast():  # type: ignore[attr-defined]
            latents = self.tokenizer.encode(images.to(self.world.device)).patches
            return to_uint8(255 * self.network(latents).float(), truncate=False)


def pair_grid(images: Tensor, made: Tensor, columns: int | None = None) -> np.ndarray:
    """A grid (H, W, 3) uint8 of pairs, image left and reconstruction right, from uint8 (N, 3, S, S) each."""
    pairs = torch.cat([images.cpu(), made.cpu()], 3).permute(0, 2, 3, 1).contiguous().numpy()
    return image_grid(pairs, columns)


def preview_file(folder: Path, step: int) -> Path:
    """The path of the preview grid of a step."""
    return folder / PREVIEWS / f"step-{step:08d}.png"


def events_of(held_out: HeldOut) -> tuple[Event, ...]:
    """What is drawn and scored, at the steps that the settings say."""
    settings = held_out.plan.config.logging
    return (
        Event(settings.preview_every, held_out.draw, lambda step: preview_file(held_out.folder, step).exists()),
        Event(settings.eval_every, held_out.score, partial(has_record, held_out.folder / METRICS, "held_out_psnr")),
    )
