"""VGG16, on whose second fully connected layer precision and recall were first published (arXiv 1904.06991).

torch-fidelity's extractor and preprocessing (224 px, bilinear as TensorFlow resizes, ImageNet's colours), with
torchvision's weights, of which only tensors are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gmtool.downloads import download
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import Described, ExtractorSettings
from gmtool.evaluation.extractors.inception import as_stream, read_weights
from gmtool.evaluation.features import Features
from gmtool.evaluation.library import require_torch_fidelity
from gmtool.progress import Progress

LAYER, SIZE = "fc2_relu", 4096
"""torch-fidelity's name of the layer, and D of its features."""


@dataclass(frozen=True, eq=False)
class Vgg16Extractor:
    """The 4096 numbers of the second fully connected layer, after its ReLU."""

    network: nn.Module
    device: torch.device
    name: str

    size = SIZE

    def __call__(self, images: Tensor) -> Features:
        """See `Extractor`."""
        with torch.inference_mode():
            (vectors,) = self.network(images.to(self.device))
        return Features(vectors.float().cpu())


def prepare(settings: ExtractorSettings, patience: float | None, progress: Progress) -> str:
    """See `gmtool.evaluation.extractors.Family`."""
    require_torch_fidelity()
    path = _path(settings)
    if settings.vgg16_weights is not None:
        if not path.is_file():
            raise UserError(f"--vgg16-weights {path} is not a file: leave the flag out to download the weights")
    elif not path.is_file():
        if patience == 0:
            return f"its weights would be downloaded from {_url()}"
        digest = re.search(r"-([0-9a-f]{8})\.pth$", _url())
        try:
            download(_url(), path, digest[1] if digest else "", "VGG16 weights", progress, patience)
        except OSError as error:
            raise MachineError(
                f"VGG16's weights could not be fetched from {_url()} ({getattr(error, 'reason', error)}): give a copy "
                "with --vgg16-weights FILE"
            ) from error
    return f"its weights are in {path}"


def feature_size(_: ExtractorSettings, _described: Described | None) -> int:
    """See `gmtool.evaluation.extractors.Family`."""
    return SIZE


def open_extractor(
    settings: ExtractorSettings, _: Described | None, device: torch.device, _progress: Progress
) -> Vgg16Extractor:
    """See `gmtool.evaluation.extractors.Family`. Raises UserError for a wrong weights file."""
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    path = _path(settings)
    wrong = UserError(f"{path} does not hold the weights of torchvision's VGG16: give {_url().rpartition('/')[2]}")
    weights = read_weights(path, wrong)
    try:
        network = FeatureExtractorVGG16("vgg16", [LAYER], feature_extractor_weights_path=as_stream(weights))
    except RuntimeError as error:
        raise wrong from error
    return Vgg16Extractor(network.to(device), device, f"VGG16 ({SIZE} numbers, weights {weights.digest})")


def _url() -> str:
    from torchvision.models import VGG16_Weights

    return str(VGG16_Weights.IMAGENET1K_V1.url)


def _path(settings: ExtractorSettings) -> Path:
    """The file that the user named, or that of torch's hub."""
    return settings.vgg16_weights or Path(torch.hub.get_dir()) / "checkpoints" / _url().rpartition("/")[2]
