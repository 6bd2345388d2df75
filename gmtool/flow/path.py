"""The linear path between data and source, and its transitions. No network in here.

Time t is 0 at the data and 1 at the source: x_t = (1 - t) x + t z, alpha_t = 1 - t, sigma_t = t, velocity
u = dx_t/dt = z - x. For a Gaussian source z ~ N(0, I) the transitions between two times s < t are Gaussian too.

Data and noise are (B, C, *S), with *S any number of position dimensions. Times are one number per sample, (B,);
`per_sample` is the one place where they are broadcast.

Source: GMFlow, arXiv 2504.05304, sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """t (B,) as (B, 1, ..., 1) with as many dimensions as ``like``. Raises ValueError for another shape."""
    if t.shape != like.shape[:1]:
        raise ValueError(f"one time per sample: expected shape ({like.shape[0]},), got {tuple(t.shape)}")
    return t.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t z. x, z (B, C, *S), t (B,)."""
    time = per_sample(t, x)
    return (1 - time) * x + time * z


def velocity(x: Tensor, z: Tensor) -> Tensor:
    """u = z - x (B, C, *S), constant along the path."""
    return z - x


def data_mixture(velocity_mixture: GaussianMixture, x_t: Tensor, t: Tensor) -> GaussianMixture:
    """q(x | x_t) of a mixture q(u | x_t) over the velocity, by x = x_t - t u: std_x = t std_u.

    x_t (B, C, *S), t (B,). Source: GMFlow, section 3.1.
    """
    return velocity_mixture.affine(-per_sample(t, x_t), x_t)


def mean_velocity(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """u = (x_t - E[x | x_t]) / t, for t > 0. x_t, mean (B, C, *S), t (B,)."""
    return (x_t - mean) / per_sample(t, x_t)


def mean_data(x_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """E[x | x_t] = x_t - t u for the mean velocity u (B, C, *S): the inverse of `mean_velocity`."""
    return x_t - per_sample(t, x_t) * u


def forward_transition(x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw x_t ~ q(x_t | x_s) = N(a x_s, (sigma_t^2 - a^2 sigma_s^2) I), a = alpha_t / alpha_s, for s <= t, s < 1.

    x_s, standard normal noise (B, C, *S); s, t (B,).
    """
    early, late = per_sample(s, x_s), per_sample(t, x_s)
    ratio = (1 - late) / (1 - early)
    return ratio * x_s + (late.square() - (ratio * early).square()).clamp(min=0).sqrt() * noise


@dataclass(frozen=True)
class ReverseTransition:
    """x_s | x, x_t ~ N(from_x_t x_t + from_x x, variance I): three coefficients per sample, (B, 1, ..., 1)."""

    from_x_t: Tensor
    from_x: Tensor
    variance: Tensor

    def draw(self, x_t: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """The x_s drawn with standard normal ``noise``. All (B, C, *S)."""
        return self.from_x_t * x_t + self.from_x * x + self.variance.sqrt() * noise


def reverse_transition(x_t: Tensor, t: Tensor, s: Tensor) -> ReverseTransition:
    """The coefficients of q(x_s | x, x_t), s < t. x_t (B, C, *S); t, s (B,).

    With r = sigma_s / sigma_t, a = alpha_t / alpha_s and b = 1 - (r a)^2: r^2 a, b alpha_s and b sigma_s^2.
    Source: GMFlow, eq. 5.
    """
    late, early = per_sample(t, x_t), per_sample(s, x_t)
    ratio, fade = early / late, (1 - late) / (1 - early)
    gain = 1 - (ratio * fade).square()
    return ReverseTransition(ratio.square() * fade, gain * (1 - early), gain * early.square())


def transition_mixture(mixture: GaussianMixture, x_t: Tensor, t: Tensor, s: Tensor) -> GaussianMixture:
    """q(x_s | x_t) for a mixture q(x | x_t) over the data: each component pushed through the reverse transition.

    x_t (B, C, *S); t, s (B,).

    Means r^2 a x_t + b alpha_s m_k, variance (b alpha_s)^2 v + b sigma_s^2, the same weights. Source: GMFlow, eq. 7.
    """
    step = reverse_transition(x_t, t, s)
    pushed = mixture.affine(step.from_x, step.from_x_t * x_t)
    return GaussianMixture(pushed.means, pushed.log_weights, pushed.variance + step.variance.unsqueeze(1))


def bridge_factor(x_r: Tensor, r: Tensor, x_t: Tensor, t: Tensor, center: Tensor) -> GaussianFactor:
    """The factor in x that turns q(x | x_t) into q(x | x_r), r < t.

    It is N(x_r; alpha_r x, sigma_r^2) / N(x_t; alpha_t x, sigma_t^2), written around ``center`` (B, C, *S), any point
    near the data; flat when (x_r, r) = (x_t, t). Needs r > 0.
    Source: GMFlow, section 3.3 and appendix A.3.
    """
    late, early = per_sample(t, x_t), per_sample(r, x_t)
    seen_early, seen_late = (1 - early) / early.square(), (1 - late) / late.square()
    return GaussianFactor(
        precision=seen_early * (1 - early) - seen_late * (1 - late),
        shift=seen_early * (x_r - (1 - early) * center) - seen_late * (x_t - (1 - late) * center),
        center=center,
    )
