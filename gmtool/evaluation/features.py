"""What images are compared by: a vector an image, from Inception or from the run's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.distributed import World
from gmtool.errors import MachineError
from gmtool.evaluation.inception import (
    FETCH_SECONDS,
    build_inception,
    fetch_weights,
    read_weights,
    weights_cache,
)
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer


@dataclass(frozen=True, eq=False)
class Features:
    """vectors: (N, D) float32 on the CPU. logits: (N, classes) float32 of Inception's classifier, or None."""

    vectors: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, index: Tensor) -> Features:
        """The features of some images."""
        return Features(self.vectors[index], None if self.logits is None else self.logits[index])


class Extractor(Protocol):
    """Features of images."""

    @property
    def name(self) -> str:
        """The extractor in words, exact enough to know whether two figures may be compared."""

    @property
    def size(self) -> int:
        """D of a feature vector."""

    def __call__(self, images: Tensor) -> Features:
        """Features of images uint8 (B, 3, S, S)."""


@dataclass(frozen=True)
class InceptionExtractor:
    """The 2048 pooled features and the class logits of the Inception network that FID is defined by."""

    network: nn.Module
    device: torch.device
    name: str

    size = 2048

    def __call__(self, images: Tensor) -> Features:
        """See `Extractor`."""
        with torch.inference_mode():
            vectors, logits = self.network(images.to(self.device))
        return Features(vectors.float().cpu(), logits.float().cpu())


@dataclass(frozen=True)
class TokenizerExtractor:
    """The descriptors of the tokenizer that the run was trained with."""

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


def choose_extractor(
    config: EvaluateConfig, spec: TokenizerSpec, device: torch.device, progress: Progress
) -> InceptionExtractor | TokenizerExtractor:
    """The extractor that ``config.features`` asks for; with auto, say in a note which one it is and why.

    Raises UserError for a wrong weights file, MachineError when Inception is asked for and cannot be had.
    """
    if config.features == "tokenizer":
        return _tokenizer_extractor(spec, device)
    asked = config.features == "inception"
    if config.inception_weights is not None:
        return _inception_extractor(config.inception_weights, device, progress)
    try:
        weights = weights_cache()
        if not weights.is_file():
            weights = fetch_weights(progress, None if asked else FETCH_SECONDS)
    except MachineError as error:
        if asked:
            raise
        progress.note(f"features: the run's own tokenizer, because {error}")
        return _tokenizer_extractor(spec, device)
    if not asked:
        progress.note(f"features: Inception, whose weights are in {weights}")
    return _inception_extractor(weights, device, progress)


def extract_features(
    extractor: Extractor, batches: Iterable[Tensor], total: int, what: str, progress: Progress
) -> Features:
    """Features of ``total`` images that come in batches uint8 (B, 3, S, S); ``what`` they are, for the progress bar."""
    found = []
    progress.begin(f"features of {what}", total, "images")
    try:
        for images in batches:
            found.append(extractor(images))
            progress.advance(len(images))
    finally:
        progress.end()
    if not found:  # of several processes, some may have no image to see to
        return Features(torch.empty(0, extractor.size))
    return _joined(found)


def gather_features(features: Features, world: World) -> Features:
    """The features of all processes in the order of ranks, for the first process; the others keep their own."""
    logits = {} if features.logits is None else {"logits": features.logits}
    found = [
        Features(each["vectors"], each.get("logits")) for each in world.gather({"vectors": features.vectors, **logits})
    ]
    return _joined(found) if found else features


def _joined(parts: Sequence[Features]) -> Features:
    """Parts of a set of images, one after another."""
    logits = [each.logits for each in parts if each.logits is not None]
    return Features(torch.cat([each.vectors for each in parts]), torch.cat(logits) if logits else None)


def _tokenizer_extractor(spec: TokenizerSpec, device: torch.device) -> TokenizerExtractor:
    return TokenizerExtractor(build_tokenizer(spec, device, "float32"), spec)


def _inception_extractor(path: Path, device: torch.device, progress: Progress) -> InceptionExtractor:
    weights = read_weights(path)
    if not weights.published:
        progress.note(f"{path} differs from the published Inception weights: compare with no published figure")
    import torch_fidelity

    name = f"Inception v3 (2048 numbers, weights {weights.digest}, torch-fidelity {torch_fidelity.__version__})"
    return InceptionExtractor(build_inception(weights, path, device), device, name)
