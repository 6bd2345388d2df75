"""Spectral sampling: draws from a mixture whose noise is coherent over positions.

The Knothe-Rosenblatt map turns a draw from the mixture at each position into Gaussian noise. Independent positions
would have white noise; that of real data has a spectrum, which a small network learns from q(x | x_t) and x. Sampling
gives noise that spectrum and maps it back through the mixture. The transform of noise over positions is the sum of
the real and imaginary parts of its orthonormal Fourier transform (Hartley's, up to a reflection): real, orthonormal and
its own inverse.

Source: GMFlow, arXiv 2504.05304, section 3.5 and appendix A.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianMixture, IsotropicGaussian
from gmtool.mixture.knothe_rosenblatt import from_gaussian, principal_axes, to_gaussian
from gmtool.streams import Noise

SpectrumModel = Callable[[IsotropicGaussian], Tensor]
"""A mixture's moment-matched Gaussian -> the log power s of its noise, (B, C, H, W), of mean power 1 a channel."""


@dataclass(frozen=True)
class Spectrum:
    """A model of the noise's power, and the number of leading axes of the mixture that are transported.

    weight: of its loss beside that of the flow. GMFlow's is 1 beside a flow's loss that is 2 C times ours: 1 / (2 C)
    here.
    """

    model: SpectrumModel
    axes: int
    weight: float = 1.0

    def draw(self, mixture: GaussianMixture, noise: Noise) -> Tensor:
        """A draw from a mixture (B, C, H, W) with noise of the predicted spectrum, for GM-SDE."""
        shape = mixture.means.shape[2:]
        uniform = noise.uniform((1, *shape[1:])).to(mixture.means)
        white = noise.normal(shape).to(mixture.means)
        coloured = transform((0.5 * self.model(mixture.moment_matched())).exp() * white)
        return from_gaussian(mixture, coloured, principal_axes(mixture, self.axes), self.axes, uniform)


def transform(noise: Tensor) -> Tensor:
    """f = Re F + Im F (B, C, H, W) over H and W, F the orthonormal Fourier transform. Its own inverse."""
    frequencies = torch.fft.fft2(noise, norm="ortho")
    return frequencies.real + frequencies.imag


def spectral_nll(noise: Tensor, log_power: Tensor) -> Tensor:
    """C/2 (f^2 (exp(-s) - 1) + s), averaged over C and positions: (B,), for noise and s (B, C, H, W).

    It is C times the NLL of f ~ N(0, exp(s)), less that of white noise; the least is at exp(s) = E[f^2].
    """
    power = transform(noise).square()
    excess = power * torch.expm1(-log_power) + log_power
    return 0.5 * noise.shape[1] * excess.flatten(1).mean(1)


def spectral_loss(spectrum: Spectrum, mixture: GaussianMixture, x: Tensor, uniform: Tensor) -> Tensor:
    """The NLL (B,) of the noise that x (B, C, H, W) has in the mixture. It trains the spectrum alone, in float32.

    uniform (B, 1, H, W) in [0, 1) draws the components of the axes that are not transported.
    """
    axes = spectrum.axes
    with torch.autocast(x.device.type, enabled=False):
        fixed = GaussianMixture(
            mixture.means.detach().float(), mixture.log_weights.detach().float(), mixture.variance.detach().float()
        )
        noise = to_gaussian(fixed, x.float(), principal_axes(fixed, axes), axes, uniform)
        return spectral_nll(noise, spectrum.model(fixed.moment_matched()))
