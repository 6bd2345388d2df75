"""The losses of a decoder and of its discriminator.

The decoder minimises

    L1 + lambda_P LPIPS + lambda_A w G,    G = -mean D(reconstruction),

with D the logits of the discriminator. The adaptive weight w makes the adversarial gradient at the decoder's last layer
as large as that of the other terms:

    w = min(|grad (L1 + lambda_P LPIPS)| / (|grad G| + 1e-6), 1e4).

The discriminator minimises

    0.5 (mean m(D(image)) + mean m(-D(reconstruction)))

with m(a) = relu(1 - a) (hinge) or m(a) = softplus(-a) (vanilla).
Source: VQGAN, arXiv 2012.09841, equation 7; RAE, arXiv 2510.11690, appendix.
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
    """m(a) = relu(1 - a), for logits a (B, n); see the module."""
    return functional.relu(1 - advantage)


def vanilla(advantage: Tensor) -> Tensor:
    """m(a) = softplus(-a), the logistic loss, for logits a (B, n); see the module."""
    return functional.softplus(-advantage)


MARGINS: Mapping[MarginName, Callable[[Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def l1_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean |images - targets| of each sample, (B,). images, targets (B, C, H, W): of any range."""
    return (images - targets).abs().flatten(1).mean(1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """G of each sample, (B,): minus the mean of the logits (B, n) of its reconstruction."""
    return -fake_logits.mean(1)


def discriminator_loss(margin: Callable[[Tensor], Tensor], real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The loss of the discriminator for each sample, (B,); see the module.

    margin: m, `hinge` or `vanilla`. real_logits, fake_logits (B, n): D of images and of reconstructions.
    """
    return half_loss(margin, real_logits) + half_loss(margin, -fake_logits)


def half_loss(margin: Callable[[Tensor], Tensor], advantage: Tensor) -> Tensor:
    """0.5 mean m(a) of each sample, (B,). advantage: a (B, n), D(image) or -D(reconstruction)."""
    return 0.5 * margin(advantage).mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    """w, a tensor () without gradient; see the module.

    reconstruction, adversarial: the gradients of L1 + lambda_P LPIPS and of G with respect to the last layer's weight,
    both of its shape (...). limit: upper bound of w.
    """
    ratio = reconstruction.detach().norm() / (adversarial.detach().norm() + EPS)
    return torch.clamp(ratio, 0.0, limit)
