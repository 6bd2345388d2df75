"""DDIM and DDPM: solvers that put the model's mean of the data, x^ = E[x | x_t] = x_t - t u, in the place of the data.

DDIM keeps x^ and the noise it implies and moves between them; DDPM draws from q(x_s | x_t, x = x^). Both step from
exactly t = 1 and onto exactly t = 0, where the step gives x^ itself; one network evaluation a step.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gmtool.flow.path import ReverseTransition, mean_data, per_sample, reverse_transition
from gmtool.flow.prediction import VelocityModel
from gmtool.flow.times import expand, time_grid
from gmtool.streams import Noise


def denoise(model: VelocityModel, x_t: Tensor, t: Tensor) -> Tensor:
    """x^ (B, C, *S) by one network evaluation at the grid time t ()."""
    time = expand(t, x_t)
    return mean_data(x_t, time, model(x_t, time))


def deterministic_step(x_t: Tensor, t: Tensor, s: Tensor, data: Tensor) -> Tensor:
    """x_s = (s / t) x_t + (1 - s / t) x^, for grid times s < t: the flow's exact step while x^ stays constant.

    With e^lambda = alpha / sigma the flow reads x_s / sigma_s - x_t / sigma_t = integral of x^ d(e^lambda), whatever
    the schedule. Here e^lambda = 1/t - 1, so the step's integral is x^ (1/s - 1/t): finite from t = 1, where
    lambda = -inf, and after multiplication by sigma_s = s also onto s = 0, where lambda = +inf and x_0 = x^.
    """
    ratio = float(s / t)
    return ratio * x_t + (1 - ratio) * data


def ddim(model: VelocityModel, x: Tensor, steps: int, shift: float) -> Tensor:
    """DDIM without noise (eta = 0), order 1. x (B, C, *S) at t = 1; returns x at t = 0.

    x_s = alpha_s x^ + sigma_s z^ with z^ = (x_t - alpha_t x^) / sigma_t. On the linear path z^ - x^ = u, which makes
    this x_t + (s - t) u: DDIM is Euler's method here, up to rounding. Source: Song et al., arXiv 2010.02502, eq. 12.
    """
    for start, stop in itertools.pairwise(time_grid(steps, shift)):
        x = deterministic_step(x, start, stop, denoise(model, x, start))
    return x


def ddpm_small(model: VelocityModel, x: Tensor, steps: int, shift: float, noise: Noise) -> Tensor:
    """Ancestral sampling with the variance of q(x_s | x_t, x), the least possible: exact for data of one value.

    x (B, C, *S) at t = 1; returns x at t = 0. Source: DDPM, arXiv 2006.11239, section 3.2.
    """
    for start, stop in itertools.pairwise(time_grid(steps, shift)):
        step = reverse_transition(x, expand(start, x), expand(stop, x))
        x = step.draw(x, denoise(model, x, start), noise.normal(x.shape[1:]).to(x))
    return x


def ddpm_large(model: VelocityModel, x: Tensor, steps: int, shift: float, noise: Noise) -> Tensor:
    """Ancestral sampling with the variance of q(x_s | x_t) for data N(0, I), the largest possible, and exact for them.

    The closing step onto t = 0 is x^ without noise, as in DDPM. x (B, C, *S) at t = 1; returns x at t = 0.
    Source: DDPM, arXiv 2006.11239, section 3.2.
    """
    for start, stop in itertools.pairwise(time_grid(steps, shift)):
        step = _with_large_variance(x, expand(start, x), expand(stop, x))
        x = step.draw(x, denoise(model, x, start), noise.normal(x.shape[1:]).to(x))
    return x


def _with_large_variance(x_t: Tensor, t: Tensor, s: Tensor) -> ReverseTransition:
    """The reverse transition with variance b sigma_t^2 (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2); 0 onto s = 0.

    b sigma_t^2 / (alpha_t^2 + sigma_t^2) is DDPM's beta, whose states have alpha^2 + sigma^2 = 1.
    """
    step = reverse_transition(x_t, t, s)
    late, early = per_sample(t, x_t), per_sample(s, x_t)
    gain = step.from_x / (1 - early)
    variance = gain * late.square() * _power(early) / _power(late)
    return ReverseTransition(step.from_x_t, step.from_x, torch.where(early > 0, variance, 0))


def _power(t: Tensor) -> Tensor:
    """alpha_t^2 + sigma_t^2."""
    return (1 - t).square() + t.square()
