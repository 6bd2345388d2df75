"""LPIPS, the perceptual distance of two images: torchmetrics' network, on VGG16's features.

    d(x, y) = sum_l mean over positions of sum_c w_lc (f_lc(x) - f_lc(y))^2,

with f_l the l-th of five layers of VGG16, divided at each position by its norm over the channels c. The linear layers w
(v0.1) come with torchmetrics, and VGG16's weights from torchvision's file. Source: Zhang et al., The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmtool.downloads import download
from gmtool.errors import MachineError, UserError, install
from gmtool.foreign.torch_files import read_checkpoint
from gmtool.progress import Progress

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
"""torchvision's VGG16, trained on ImageNet; the start of its SHA-256 is in the name."""
_FLAG = "--lpips-weights"


class Lpips(nn.Module):
    """LPIPS of pairs of images (B, 3, H, W) in [-1, 1] -> (B,); the weights are frozen, gradients reach both images."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """See the class."""
        return self.network(images, targets).flatten()


def vgg_cache() -> Path:
    """Where torch's hub keeps VGG16's weights; the file may not exist yet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG_URL.rpartition("/")[2]


def vgg_file(given: Path | None, progress: Progress, seconds: float | None = None) -> Path:
    """The file of VGG16's weights: the one given, or that of the hub, downloaded if need be.

    seconds: time limit of a download; None for none. Raises UserError when the given one is missing,
    MachineError when it cannot be fetched.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"{_FLAG} {given} is not a file: leave the flag out to download the weights")
        return given
    target = vgg_cache()
    if not target.is_file():
        digest = re.search(r"-([0-9a-f]{8})\.pth$", VGG_URL)
        try:
            download(VGG_URL, target, digest[1] if digest else "", "VGG16 weights of LPIPS", progress, seconds)
        except OSError as error:
            raise MachineError(
                f"VGG16's weights, which LPIPS needs, could not be fetched from {VGG_URL} ({error}): give a copy with "
                f"{_FLAG} FILE, or use --perceptual none"
            ) from error
    return target


def load_lpips(file: Path, device: torch.device) -> Lpips:
    """LPIPS with the weights of a file of torchvision's VGG16.

    Raises UserError when torchmetrics is missing, or the file is damaged or holds the weights of another network.
    """
    try:
        from torchmetrics.functional.image.lpips import _LPIPS as Network
    except ImportError as error:
        raise UserError(f"LPIPS needs torchmetrics: {install('rae')}, or use --perceptual none") from error
    network = Network(net="vgg", pnet_rand=True)
    weights = read_checkpoint(file).ema
    try:
        network.net.load_state_dict(_vgg_weights(weights, network.net.state_dict()))
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{_FLAG} {file} does not hold the weights of VGG16: give torchvision's {vgg_cache().name}"
        ) from error
    return Lpips(network).to(device)


def _vgg_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's VGG16 under the names of the network's slices: slice2.5.weight is features.5.weight.

    Raises KeyError for weights of another network.
    """
    return {name: weights[f"features.{name.split('.', 1)[1]}"] for name in expected}
