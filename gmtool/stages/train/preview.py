"""Preview grids during training: the same samples every time, by the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.run import PREVIEWS, RunFolder
from gmtool.distributed import ALONE, World
from gmtool.evaluation.plots import image_grid
from gmtool.tokenizers.base import Tokenizer

IMAGES = 36
"""Images of a grid."""


def preview_file(run: RunFolder, step: int) -> Path:
    """The path of the preview grid of a step."""
    return run.path / PREVIEWS / f"step-{step:08d}.png"


@dataclass(frozen=True)
class Previewer:
    """Draws ``previews/step-N.png``; without a tokenizer that decodes it draws nothing.

    sample: makes the latents (B, C, H, W), not normalised, of the samples of some numbers. All processes draw the same,
    as a sharded network asks of them, and the first writes.
    """

    sample: Callable[[range], Tensor]
    run: RunFolder
    tokenizer: Tokenizer | None
    world: World = ALONE

    def is_drawn(self, step: int) -> bool:
        """Whether the grid of ``step`` is there, or cannot be drawn."""
        return self.tokenizer is None or preview_file(self.run, step).exists()

    def draw(self, step: int) -> None:
        """Draw the grid of ``step``."""
        if self.tokenizer is None:
            return
        latents = self.sample(range(IMAGES))
        if not self.world.first:
            return
        images = self.tokenizer.decode(latents).permute(0, 2, 3, 1).cpu().numpy()
        file = preview_file(self.run, step)
        with written_aside(file) as part:
            Image.fromarray(image_grid(images)).save(part, format="PNG")
