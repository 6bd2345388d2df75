"""MM-FM's released mixtures: pickles of scikit-learn's GaussianMixture, alone or under ``model`` in a dict.

The mixture in patch space has means (K, C H W) in the coordinates of normalised latents, and a variance for each mode
(spherical) or for each entry (diagonal). The one over [CLS] tokens is diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifacts.run import LatentStatistics
from gmtool.errors import UserError
from gmtool.foreign.pickles import Name, Record, as_array, read_pickle
from gmtool.foreign.reading import reading
from gmtool.mixture.patch_moments import PatchMode

CLASSES = (Name("sklearn.mixture._gaussian_mixture", "GaussianMixture"),)
LEAST_VARIANCE = 1e-10
"""Floor of the variances, in squared standard deviations of the latents: a mode of one image has none."""


@dataclass(frozen=True, eq=False)
class ReleasedMixture:
    """A mixture of K modes. weights (K,) float64, means (K, D); variances (K, 1) spherical, or (K, D) diagonal."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray


def read_mixture(path: Path) -> ReleasedMixture:
    """The mixture in a pickle. Raises UserError when it is missing, damaged, something else, or no distribution."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the .pkl file of a mixture")
    content = read_pickle(path, CLASSES)
    model = content.get("model") if isinstance(content, dict) else content
    if not (isinstance(model, Record) and model.name in CLASSES):
        raise UserError(f"{path} holds no GaussianMixture of scikit-learn")
    with reading(path, "a pickle of a GaussianMixture"):
        return _checked(path, model.state if isinstance(model.state, dict) else {})


def _checked(path: Path, fields: Mapping[Any, Any]) -> ReleasedMixture:
    """The mixture of a GaussianMixture's attributes. Raises UserError when it is no distribution that can be read."""
    weights, means, variances = (as_array(fields.get(name)) for name in ("weights_", "means_", "covariances_"))
    if weights is None or variances is None or means is None or means.ndim != 2:
        raise UserError(f"{path} holds a GaussianMixture without weights_, means_, covariances_: was it ever fitted?")
    kind, (count, size) = fields.get("covariance_type"), means.shape
    if kind not in ("spherical", "diag"):
        named = kind if kind in ("full", "tied") else "unknown"
        raise UserError(f"{path} holds a mixture of {named} covariance; spherical and diag can be read")
    expected = (count,) if kind == "spherical" else (count, size)
    if not means.size or weights.shape != (count,) or variances.shape != expected:
        raise UserError(f"{path} holds a mixture whose arrays do not fit together")
    if not all(np.isfinite(array).all() for array in (weights, means, variances)) or variances.min() < 0:
        raise UserError(f"{path} holds a mixture with numbers that are not finite, or variances below 0")
    weights, total = weights.astype(np.float64), float(weights.sum(dtype=np.float64))
    if weights.min() < 0 or abs(total - 1) > 1e-3:
        raise UserError(f"{path} holds weights that sum to {total:.4g}, not to 1")
    return ReleasedMixture(weights / total, means, np.maximum(variances.reshape(count, -1), LEAST_VARIANCE))


def patch_modes(mixture: ReleasedMixture, statistics: LatentStatistics) -> Iterator[PatchMode]:
    """The modes of a mixture over normalised latents, in order, in the coordinates of the latents themselves.

    With m and s the latents' mean and standard deviation (C, H, W), a mode has the mean mu_k s + m and the standard
    deviation sqrt(v_k) s, both (C, H, W) float32.
    """
    mean, std = statistics.mean.double().numpy(), statistics.std.double().numpy()
    for mode, (center, variance) in enumerate(zip(mixture.means, mixture.variances, strict=True)):
        spread = np.sqrt(variance) if len(variance) == 1 else np.sqrt(variance).reshape(mean.shape)
        yield PatchMode(
            mode, (center.reshape(mean.shape) * std + mean).astype(np.float32), (spread * std).astype(np.float32)
        )
