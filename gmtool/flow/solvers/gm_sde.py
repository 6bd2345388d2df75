"""GM-SDE: ancestral sampling, x ~ q(x | x_t), then x_s ~ q(x_s | x, x_t), of order 1 or 2.

One network evaluation per step. Source: GMFlow, arXiv 2504.05304, section 3.3, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import MixtureModel
from gmtool.flow.path import reverse_transition
from gmtool.flow.posterior import DirectPosterior
from gmtool.flow.solvers.base import Draw, Solver, SolverOptions, given
from gmtool.flow.solvers.second_order import Damping, second_order
from gmtool.flow.times import expand
from gmtool.mixture.gaussian_mixture import CHANNEL, GaussianMixture
from gmtool.streams import Noise


def independent_draw(mixture: GaussianMixture, noise: Noise) -> Tensor:
    """A draw from the mixture, the positions independent of each other: (B, C, *S)."""
    shape = mixture.means.shape[CHANNEL:]
    return mixture.draw(noise.uniform((1, *shape[1:])).to(mixture.means), noise.normal(shape).to(mixture.means))


@dataclass(frozen=True)
class LastPosterior:
    """What the second order remembers of a step: its posterior before the correction, and its length."""

    posterior: DirectPosterior
    length: float


@dataclass(frozen=True)
class GmSde(Solver[MixtureModel, LastPosterior | None]):
    """See the module. draw: how x is drawn from the mixture; see also `gmtool.flow.spectral.Spectrum.draw`."""

    order: int = 2
    draw: Draw = independent_draw
    damping: Damping = Damping()

    @classmethod
    def configured(cls, options: SolverOptions) -> GmSde:
        """See `Solver.configured`."""
        return cls(options.order, options.draw or independent_draw)

    def init(self, _x: Tensor) -> LastPosterior | None:
        """See `Solver.init`."""
        return None

    def step(
        self, model: MixtureModel, x: Tensor, t: float, s: float, last: LastPosterior | None, noise: Noise | None
    ) -> tuple[Tensor, LastPosterior | None]:
        """See `Solver.step`."""
        prediction = model(x, expand(t, x))
        mixture = guided = prediction.mixture
        if last is not None:
            before = last.posterior.mean_at(x, t)
            mixture = prediction.base.times(second_order(prediction, before, t - s, last.length, self.damping))
        remembered = LastPosterior(DirectPosterior(guided, x, t), t - s) if self.order == 2 else None
        data, fresh = self.draw(mixture, given(noise)), given(noise).normal(x.shape[1:]).to(x)
        return reverse_transition(x, expand(t, x), expand(s, x)).draw(x, data, fresh), remembered
