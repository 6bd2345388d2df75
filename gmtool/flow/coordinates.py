"""The coordinates y in which a flow runs: the normalised latents x themselves, or whitened by each sample's mode.

Given the mode k, y = (x - mu_k) / s_k turns mode k's source N(mu_k, diag s_k^2) into N(0, I). So everything that holds
for a Gaussian source (GMFlow's transitions, posteriors and guidance) holds in y, whatever the mixture: this is all
that the union of GMFlow and MM-FM adds. The network must be conditioned on the mode, which y alone does not reveal.

The combination is this project's own; its parts: GMFlow, arXiv 2504.05304; MM-FM (Luo et al., CVPR 2026).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gmtool.flow.model import Predict
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import COMPONENT, GaussianMixture


class Coordinates(Protocol):
    """A change of variables between latents x and the flow's y, both (B, C, *S), given the samples' modes.

    by_mode: whether y depends on the mode, on which the network must then be conditioned.
    """

    @property
    def by_mode(self) -> bool:
        """See the class."""

    def enter(self, x: Tensor, modes: ModeStatistics | None) -> Tensor:
        """y of x."""

    def leave(self, y: Tensor, modes: ModeStatistics | None) -> Tensor:
        """x of y, the inverse of `enter`."""

    def leave_velocity(self, u: Tensor, modes: ModeStatistics | None) -> Tensor:
        """dx/dt of dy/dt = u."""

    def enter_velocity(self, u: Tensor, modes: ModeStatistics | None) -> Tensor:
        """dy/dt of dx/dt = u, the inverse of `leave_velocity`."""

    def log_scale(self, x: Tensor, modes: ModeStatistics | None) -> Tensor:
        """log |det dx/dy| at latents x, per entry, (B,)."""


@dataclass(frozen=True)
class Plain:
    """y = x."""

    by_mode = False

    def enter(self, x: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """See `Coordinates.enter`."""
        return x

    def leave(self, y: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """See `Coordinates.leave`."""
        return y

    def leave_velocity(self, u: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """See `Coordinates.leave_velocity`."""
        return u

    def enter_velocity(self, u: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """See `Coordinates.enter_velocity`."""
        return u

    def log_scale(self, x: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """0, (B,)."""
        return x.new_zeros(len(x))


@dataclass(frozen=True)
class Whitened:
    """y = (x - mu_k) / s_k, all (B, C, *S). Every method raises ValueError without modes."""

    by_mode = True

    def enter(self, x: Tensor, modes: ModeStatistics | None) -> Tensor:
        """y = (x - mu_k) / s_k."""
        given = _given(modes)
        return (x - given.mean) / given.std

    def leave(self, y: Tensor, modes: ModeStatistics | None) -> Tensor:
        """x = mu_k + s_k y."""
        given = _given(modes)
        return given.mean + given.std * y

    def leave_velocity(self, u: Tensor, modes: ModeStatistics | None) -> Tensor:
        """s_k u."""
        return _given(modes).std * u

    def enter_velocity(self, u: Tensor, modes: ModeStatistics | None) -> Tensor:
        """u / s_k."""
        return u / _given(modes).std

    def log_scale(self, _x: Tensor, modes: ModeStatistics | None) -> Tensor:
        """The mean of log s_k over the entries, (B,)."""
        return _given(modes).std.log().flatten(1).mean(1)


def converted(predict: Predict, native: Coordinates, wanted: Coordinates, modes: ModeStatistics | None) -> Predict:
    """A network with inputs and outputs in ``native`` coordinates, as one in the ``wanted`` coordinates.

    The means of a mixture are converted; its components stay isotropic, with the same standard deviation, in the new
    coordinates, which makes another family of mixtures.
    """

    def vector(u: Tensor) -> Tensor:
        return wanted.enter_velocity(native.leave_velocity(u, modes), modes)

    def vectors(u: Tensor) -> Tensor:
        return torch.stack([vector(component) for component in u.unbind(COMPONENT)], COMPONENT)

    def model(y_t: Tensor, t: Tensor) -> Tensor | GaussianMixture:
        predicted = predict(native.enter(wanted.leave(y_t, modes), modes), t)
        if isinstance(predicted, GaussianMixture):
            return replace(predicted, means=vectors(predicted.means))
        return vector(predicted) if predicted.dim() == y_t.dim() else vectors(predicted)

    return model


def _given(modes: ModeStatistics | None) -> ModeStatistics:
    if modes is None:
        raise ValueError("whitened coordinates depend on the samples' modes: give their statistics")
    return modes
