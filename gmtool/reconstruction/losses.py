"""The losses of a decoder and of its discriminator.

The decoder learns from L1 + lambda_P LPIPS + lambda_A w G. G = -mean of the discriminator's logits of reconstructions;
the adaptive weight w makes the adversarial gradient at the decoder's last layer as large as that of the other terms:

    w = |grad (L1 + lambda_P LPIPS)| / (|grad G| + 1e-6), at most 1e4.

The discriminator learns 0.5 (mean m(real logits) + mean m(-fake logits)) with a margin m: hinge, m(a) = relu(1 - a), or
vanilla, m(a) = softplus(-a). Sources: VQGAN (arXiv 2012.09841), equation 7; RAE (arXiv 2510.11690), appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

MarginName = Literal["hinge", "vanilla"]
EPS = 1e-6


def hinge(advantage: Tensor) -> Tensor:
    """relu(1 - a)."""
    return functional.relu(1 - advantage)


def vanilla(advantage: Tensor) -> Tensor:
    """softplus(-a), the logistic loss."""
    return functional.softplus(-advantage)


MARGINS: Mapping[MarginName, Callable[[Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def l1_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean |images - targets| of each sample, (B,); images (B, C, H, W) of any range."""
    return (images - targets).abs().flatten(1).mean(1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-mean of the logits (B, n) of each sample, (B,)."""
    return -fake_logits.mean(1)


def discriminator_loss(margin: Callable[[Tensor], Tensor], real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0.5 (mean m(real) + mean m(-fake)) of each sample, (B,), of logits (B, n)."""
    return half_loss(margin, real_logits) + half_loss(margin, -fake_logits)


def half_loss(margin: Callable[[Tensor], Tensor], advantage: Tensor) -> Tensor:
    """0.5 mean m(a) of each sample, (B,): a (B, n) are the logits of real images, or minus those of fake ones."""
    return 0.5 * margin(advantage).mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    """w (), from the gradients of L1 + lambda_P LPIPS and of G at one weight, of any one shape; a constant."""
    ratio = reconstruction.detach().norm() / (adversarial.detach().norm() + EPS)
    return torch.clamp(ratio, 0.0, limit)
