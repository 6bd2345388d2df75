"""Shared by the examples on points: data of curved modes, a mixture fitted to them, and the training of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from sklearn.mixture import GaussianMixture as EM
from torch import Tensor, nn

from gmtool.flow.source import ModeMixture
from gmtool.streams import generator

MODES, DIMENSIONS = 8, 10
RADIUS, THICKNESS = 1.5, 0.25
Network = TypeVar("Network", bound=nn.Module)


def curved_modes(distance: float, count: int, stream: torch.Generator) -> Tensor:
    """Points (count, 10, 1, 1) of eight curved modes; where and how these lie depends on the distance alone.

    In a mode's own axes a point lies on an arc, 1.5 (sin a, 1 - cos a, 0, ...) + 0.25 noise, a ~ N(0, 1); it is turned
    by a random rotation and moved to a random place at ``distance`` from the origin. Arcs are bounded, so that no few
    points of a tail decide a distance. All is then scaled to mean 0 and variance 1 in each dimension.
    """
    shape = generator("modes")
    centres = nn.functional.normalize(torch.randn(MODES, DIMENSIONS, generator=shape)) * distance
    turns = torch.linalg.qr(torch.randn(MODES, DIMENSIONS, DIMENSIONS, generator=shape)).Q
    mode = torch.randint(MODES, (count,), generator=stream)
    along = torch.randn(count, generator=stream)
    local = THICKNESS * torch.randn(count, DIMENSIONS, generator=stream)
    local[:, 0] += RADIUS * along.sin()
    local[:, 1] += RADIUS * (1 - along.cos())
    points = (turns[mode] @ local.unsqueeze(2)).squeeze(2) + centres[mode]
    # E sin^2 a, E (1 - cos a) and its variance, for a ~ N(0, 1)
    sine, height = (1 - math.exp(-2)) / 2, 1 - math.exp(-0.5)
    spread = (1 + math.exp(-2)) / 2 - math.exp(-1)
    arc = RADIUS**2 * torch.tensor([sine, spread, *[0.0] * (DIMENSIONS - 2)]) + THICKNESS**2
    means = centres + RADIUS * height * turns[:, :, 1]
    variance = (turns.square() * arc).sum(2).mean(0) + means.var(0, unbiased=False)
    return ((points - means.mean(0)) / variance.sqrt()).reshape(count, DIMENSIONS, 1, 1)


def fit(x: Tensor, seed: int) -> tuple[ModeMixture, Tensor]:
    """A diagonal mixture of eight modes, by EM from k-means, and p(k | x) of the data, (N, 8)."""
    data = x.flatten(1).double().numpy()
    em = EM(MODES, covariance_type="diag", random_state=seed).fit(data)
    arrays = (em.weights_, em.means_, em.covariances_, em.predict_proba(data))
    weights, means, variances, shares = (torch.from_numpy(array).float() for array in arrays)
    return ModeMixture(weights, means[..., None, None], variances[..., None, None].sqrt()), shares


def optimise(network: Network, losses: Callable[[], Tensor], rate: float, steps: int) -> Network:
    """The network after ``steps`` steps, each on the mean of fresh ``losses()`` (B,); the rate falls to 0."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)
