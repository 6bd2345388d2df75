"""Preview grids during training: the same samples every time, by the moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.run import PREVIEWS, RunFolder
from gmtool.distributed import ALONE, World
from gmtool.evaluation.plots import image_grid
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import SamplePlan
from gmtool.sampling.sampler import generate
from gmtool.tokenizers.base import Tokenizer

IMAGES = 36
"""Images of a grid."""


@dataclass(frozen=True)
class Previewer:
    """Draws ``previews/step-N.png`` with the default sampler; without a tokenizer that decodes it draws nothing.

    All processes draw the same, as a sharded network asks of them, and the first writes.
    """

    model: TrainedModel
    plan: SamplePlan
    run: RunFolder
    tokenizer: Tokenizer | None
    world: World = ALONE

    def draw(self, step: int) -> None:
        """Draw the grid of ``step``."""
        if self.tokenizer is None:
            return
        known = torch.tensor(self.run.sampled_classes or (0,))
        classes = known[torch.arange(IMAGES) % len(known)]
        latents = generate(self.model, self.plan, range(IMAGES), classes)
        if not self.world.first:
            return
        images = self.tokenizer.decode(latents).permute(0, 2, 3, 1).cpu().numpy()
        folder = self.run.path / PREVIEWS
        folder.mkdir(exist_ok=True)
        with written_aside(folder / f"step-{step:08d}.png") as part:
            Image.fromarray(image_grid(images)).save(part, format="PNG")
