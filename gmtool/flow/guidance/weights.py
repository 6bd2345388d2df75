"""Component re-weighting (`prob-weights`): pi_k ~ pi_c,k (pi_c,k / pi_u,k)^(w - 1), w >= 1; the means stay.

pi_u,k is the weight that the unconditional mixture gives the component of the same index: components of one network
keep their meaning from one condition to the other. It is classifier-free guidance on the log-weights alone, so samples
never leave the conditional mixture's components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.flow.model import MixtureModel, Prediction, unguided
from gmtool.mixture.gaussian_mixture import COMPONENT, GaussianMixture


def reweight(conditional: GaussianMixture, unconditional: GaussianMixture, scale: float) -> GaussianMixture:
    """The conditional mixture with its weights extrapolated from the unconditional ones by ``scale`` >= 1.

    Both of the same K and shape; a component of conditional weight zero keeps it.
    """
    # a weight of zero on the unconditional side must not make an infinite one
    smallest = math.log(torch.finfo(unconditional.log_weights.dtype).tiny)
    against = unconditional.log_weights.clamp(min=smallest)
    log_weights = torch.log_softmax(scale * conditional.log_weights - (scale - 1) * against, COMPONENT)
    return GaussianMixture(conditional.means, log_weights, conditional.variance)


@dataclass(frozen=True)
class ComponentWeights:
    """The mixture re-weighted by ``scale`` >= 1; to the second order it is a mixture like any other."""

    scale: float

    def __call__(self, model: MixtureModel, other: MixtureModel) -> MixtureModel:
        """See `gmtool.flow.guidance.base.Scheme`."""

        def guided(x_t: Tensor, t: Tensor) -> Prediction:
            return unguided(reweight(model(x_t, t).mixture, other(x_t, t).mixture, self.scale))

        return guided
