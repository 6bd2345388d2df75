"""What is in the small world of digits that `conftest` makes."""

from dataclasses import dataclass
from pathlib import Path

from gmtool.mixture.settings import EmSettings
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.tokenizers.settings import TokenizerSettings

PIXELS = EncodeConfig(TokenizerSettings("pixels", patch_size=4), workers=0, device="cpu")
MIXTURE = FitGmmConfig(modes=4, em=EmSettings(10), device="cpu")


@dataclass(frozen=True)
class Small:
    """Images of digits, their latents (16, 2, 2) and a mixture of 4 modes: in three classes, and without any."""

    classes: Path
    flat: Path

    def latents(self, kind: str) -> Path:
        return getattr(self, kind) / "latents.h5"

    def gmm(self, kind: str) -> Path:
        return getattr(self, kind) / "gmm.h5"
