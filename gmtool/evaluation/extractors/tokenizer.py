"""The descriptors of the tokenizer that the run was trained with: no download, comparable within one run's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.evaluation.extractors import Described, ExtractorSettings
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


def feature_size(_: ExtractorSettings, described: Described | None) -> int | None:
    """See `gmtool.evaluation.extractors.Family`."""
    return None if described is None else described.size


def open_extractor(
    _: ExtractorSettings, described: Described | None, device: torch.device, _progress: Progress
) -> TokenizerExtractor:
    """See `gmtool.evaluation.extractors.Family`. Raises ValueError without a tokenizer."""
    if described is None:
        raise ValueError("there is no tokenizer")
    return TokenizerExtractor(build_tokenizer(described.tokenizer, device, "float32"), described.tokenizer)
