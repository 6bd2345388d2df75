"""The descriptors of the tokenizer that the run was trained with: no download, comparable within one run's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.features import Features
from gmtool.progress import Progress
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer


@dataclass(frozen=True)
class TokenizerExtractor:
    """Features are descriptors of the tokenizer ``spec``."""

    tokenizer: Tokenizer
    spec: TokenizerSpec

    @property
    def name(self) -> str:
        """See `Extractor`."""
        return f"{self.spec.name} descriptor ({self.size} numbers)"

    @property
    def size(self) -> int:
        """See `Extractor`."""
        return self.tokenizer.descriptor_size

    def __call__(self, images: Tensor) -> Features:
        """See `Extractor`."""
        with torch.inference_mode():
            return Features(self.tokenizer.describe(images).float().cpu())


def prepare(_: ExtractorSettings, _patience: float | None, _progress: Progress) -> str:
    """See `gmtool.evaluation.extractors.Family`."""
    return "it needs no download"


def feature_size(samples: LatentsFile) -> int:
    """See `gmtool.evaluation.extractors.Family`."""
    return samples.descriptor_size


def open_extractor(
    _: ExtractorSettings, tokenizer: TokenizerSpec, device: torch.device, _progress: Progress
) -> TokenizerExtractor:
    """See `gmtool.evaluation.extractors.Family`."""
    return TokenizerExtractor(build_tokenizer(tokenizer, device, "float32"), tokenizer)
