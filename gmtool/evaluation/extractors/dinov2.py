"""DINOv2 ViT-L/14, on which the Fréchet distance is FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675).

The published preprocessing: images resized to 224 px (bicubic, antialiased), ImageNet's colours, the class token after
the last LayerNorm, 1024 numbers. transformers loads the weights, because torch-fidelity's extractor runs code of the
network's repository, takes no file, and resizes otherwise (bilinear, without antialiasing).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gmtool.evaluation.extractors import Described, ExtractorSettings, extractor_row
from gmtool.evaluation.extractors.vision import VisionExtractor, WeightSource, load_network
from gmtool.progress import Progress
from gmtool.tokenizers.pretrained import model_config
from gmtool.tokenizers.vit import IMAGENET

WHAT = "--dinov2-weights"
SIDE = 224
OFFSET = 0.1
"""What the published network adds to the number of patches of a side before it resizes its position embeddings."""


def prepare(settings: ExtractorSettings, patience: float | None, _: Progress) -> str:
    """See `gmtool.evaluation.extractors.Family`."""
    return _source(settings).prepare(patience)


def feature_size(settings: ExtractorSettings, _: Described | None) -> int | None:
    """See `gmtool.evaluation.extractors.Family`."""
    source = _source(settings)
    if not source.is_local:
        return 1024 if settings.dinov2_weights is None else None
    return int(model_config(source.folder, WHAT)["hidden_size"])


def open_extractor(
    settings: ExtractorSettings, _: Described | None, device: torch.device, _progress: Progress
) -> VisionExtractor:
    """See `gmtool.evaluation.extractors.Family`. Raises UserError for the weights of another network."""
    source = _source(settings)
    network = load_network("Dinov2Model", source.folder, ("dinov2",), WHAT, device)
    patch = int(network.config.patch_size)
    side = SIDE - SIDE % patch
    _resize_positions(network, side // patch)

    def read(images: Tensor) -> Tensor:
        vectors: Tensor = network(pixel_values=images).pooler_output
        return vectors

    size = int(network.config.hidden_size)
    name = f"DINOv2 ({size} numbers, weights {source.digest[:8]}, {side} px, bicubic)"
    return VisionExtractor(read, size, side, IMAGENET, device, name)


def _resize_positions(network: Any, patches: int) -> None:
    """Resize the position embeddings as the published network does, which transformers does a little otherwise."""
    embeddings = network.embeddings
    class_token, grid = embeddings.position_embeddings.split([1, embeddings.position_embeddings.shape[1] - 1], dim=1)
    side = round(grid.shape[1] ** 0.5)
    if side == patches:
        return
    maps = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (patches + OFFSET) / side
    resized = interpolate(maps, scale_factor=(scale, scale), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat([class_token, resized], dim=1), requires_grad=False)


def _source(settings: ExtractorSettings) -> WeightSource:
    return WeightSource(settings.dinov2_weights or extractor_row("dinov2").weights, WHAT)
