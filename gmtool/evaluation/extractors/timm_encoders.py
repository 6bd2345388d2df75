"""Five of the networks of FDr6 (Yang et al. 2026, arXiv 2604.28190; RAEv2, arXiv 2605.18324) by timm, beside Inception.

The published preprocessing: images resized to 224 px, or to 256 px for DINOv2 and CLIP (bicubic, antialiased, not
rounded), in the colours that timm records for the weights. A grid of patches that 256 px do not fill is padded, and
position embeddings are resized to it, by timm. The vector is the class token after the last LayerNorm; SigLIP's is its
attention pooling, ConvNeXt's the mean of its last maps. In float32, where the published figures took bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gmtool.errors import MachineError, UserError, install
from gmtool.evaluation.extractors import Described, ExtractorSettings, extractor_row
from gmtool.evaluation.extractors.vision import VisionExtractor, WeightSource
from gmtool.progress import Progress
from gmtool.tokenizers.pretrained import model_config, reading_model

WHAT = "--fdr-weights"


@dataclass(frozen=True)
class TimmEncoder:
    """A network of timm; methods as in `gmtool.evaluation.extractors.Family`.

    name: in `gmtool.evaluation.extractors.EXTRACTORS`. size: D of the published network. side: of resized images.
    tokens: whether it is a transformer, of images of any size.
    """

    name: str
    size: int
    side: int
    tokens: bool = True

    def prepare(self, settings: ExtractorSettings, patience: float | None, _: Progress) -> str:
        """See `gmtool.evaluation.extractors.Family`."""
        try:
            import_module("timm")  # which is wanted before a long download
        except ImportError as error:
            raise MachineError(f"{self.name} needs timm: {install('fdr')} ({error})") from error
        return self._source(settings).prepare(patience)

    def feature_size(self, settings: ExtractorSettings, _: Described | None) -> int:
        """See `gmtool.evaluation.extractors.Family`."""
        source = self._source(settings)
        return int(model_config(source.folder, WHAT)["num_features"]) if source.is_local else self.size

    def open_extractor(
        self, settings: ExtractorSettings, _: Described | None, device: torch.device, _progress: Progress
    ) -> VisionExtractor:
        """See `gmtool.evaluation.extractors.Family`. Raises UserError for a damaged or another network."""
        timm: Any = import_module("timm")  # as Any: its types say less than its documentation
        source = self._source(settings)
        any_size = {"dynamic_img_size": True, "dynamic_img_pad": True} if self.tokens else {}
        with reading_model(source.folder, WHAT):
            place = f"local-dir:{source.folder.resolve()}"
            network = timm.create_model(place, pretrained=True, num_classes=0, **any_size)
        network.requires_grad_(False).eval().to(device)
        recorded = timm.data.resolve_data_config(network.pretrained_cfg)
        colours = tuple(recorded["mean"]), tuple(recorded["std"])
        size = int(network.num_features)
        title = extractor_row(self.name).title
        name = f"{title} ({size} numbers, weights {source.digest[:8]}, {self.side} px, bicubic)"
        return VisionExtractor(lambda images: _pooled(network, images), size, self.side, colours, device, name)

    def _source(self, settings: ExtractorSettings) -> WeightSource:
        if settings.fdr_weights is None:
            return WeightSource(extractor_row(self.name).weights, WHAT)
        given = settings.fdr_weights
        folder = given.expanduser() / self.name
        if not folder.is_dir():
            raise UserError(f"{WHAT} {given} holds no folder {self.name}: put one there as timm saves it")
        return WeightSource(str(folder), WHAT)


def _pooled(network: Any, images: Tensor) -> Tensor:
    """The vectors (B, D) of normalised images (B, 3, S, S)."""
    features: Tensor = network.forward_features(images)
    if features.ndim == 4:
        return features.mean((2, 3))
    pool = getattr(network, "attn_pool", None)
    if pool is not None:
        vectors: Tensor = pool(features)
        return vectors
    return features[:, 0]


CONVNEXT = TimmEncoder("fdr-convnext", 1024, 224, tokens=False)
DINOV2 = TimmEncoder("fdr-dinov2", 1024, 256)
MAE = TimmEncoder("fdr-mae", 1024, 224)
SIGLIP = TimmEncoder("fdr-siglip", 1152, 224)
CLIP = TimmEncoder("fdr-clip", 1024, 256)
