"""Preview grids during training: the same samples every time, by the moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.run import PREVIEWS, RunFolder
from gmtool.distributed import ALONE, World
from gmtool.evaluation.plots import image_grid
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import Model, generate
from gmtool.stages.sample.config import SampleConfig
from gmtool.tokenizers.base import Tokenizer

IMAGES = 36
"""Images of a grid."""


@dataclass(frozen=True)
class Previewer:
    """Draws ``previews/step-N.png`` with the default sampler; without a tokenizer that decodes it draws nothing.

    All processes draw the same, as a sharded network asks of them, and the first writes.
    """

    model: Model
    run: RunFolder
    tokenizer: Tokenizer | None
    world: World = ALONE

    def draw(self, step: int) -> None:
        """Draw the grid of ``step``."""
        if self.tokenizer is None:
            return
        classes = torch.arange(IMAGES) % max(1, len(self.run.classes))
        latents = generate(self.model, make_plan(SampleConfig(), self.model.config), range(IMAGES), classes)
        if not self.world.first:
            return
        images = self.tokenizer.decode(latents).permute(0, 2, 3, 1).cpu().numpy()
        folder = self.run.path / PREVIEWS
        folder.mkdir(exist_ok=True)
        with written_aside(folder / f"step-{step:08d}.png") as part:
            Image.fromarray(image_grid(images)).save(part, format="PNG")
