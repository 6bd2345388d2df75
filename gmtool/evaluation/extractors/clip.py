"""CLIP ViT-L/14 at 336 px, the embeddings of CMMD (Jayasumana et al. 2024, arXiv 2401.09603).

The published preprocessing: images resized to 336 px (bicubic, antialiased), CLIP's colours, the projected embedding
divided by its length, 768 numbers. transformers loads the weights: torch-fidelity runs the published TorchScript, and
resizes otherwise (bilinear, without antialiasing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.extractors import Described, ExtractorSettings, extractor_row
from gmtool.evaluation.extractors.vision import VisionExtractor, WeightSource, load_network
from gmtool.progress import Progress
from gmtool.tokenizers.pretrained import model_config
from gmtool.tokenizers.vit import Statistics

WHAT = "--clip-weights"
COLOURS: Statistics = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue that CLIP was trained with."""


def prepare(settings: ExtractorSettings, patience: float | None, _: Progress) -> str:
    """See `gmtool.evaluation.extractors.Family`."""
    return _source(settings).prepare(patience)


def feature_size(settings: ExtractorSettings, _: Described | None) -> int | None:
    """See `gmtool.evaluation.extractors.Family`."""
    source = _source(settings)
    if not source.is_local:
        return 768 if settings.clip_weights is None else None
    size: int = model_config(source.folder, WHAT).get("projection_dim", 768)
    return size


def open_extractor(
    settings: ExtractorSettings, _: Described | None, device: torch.device, _progress: Progress
) -> VisionExtractor:
    """See `gmtool.evaluation.extractors.Family`. Raises UserError for the weights of another network."""
    source = _source(settings)
    network = load_network("CLIPVisionModelWithProjection", source.folder, ("clip", "clip_vision_model"), WHAT, device)

    def read(images: Tensor) -> Tensor:
        vectors: Tensor = network(pixel_values=images).image_embeds
        return vectors / vectors.norm(dim=1, keepdim=True)

    size, side = int(network.config.projection_dim), int(network.config.image_size)
    name = f"CLIP ({size} numbers, weights {source.digest[:8]}, {side} px, bicubic)"
    return VisionExtractor(read, size, side, COLOURS, device, name)


def _source(settings: ExtractorSettings) -> WeightSource:
    return WeightSource(settings.clip_weights or extractor_row("clip").weights, WHAT)
