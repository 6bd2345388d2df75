"""Length and straightness of a run's sampling paths, and the Lipschitz constant of its flow.

Source: MM-FM (Luo et al., CVPR 2026), sections 3 and 4.1; see `gmtool.evaluation.trajectory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Measurement
from gmtool.evaluation.trajectory import FollowedPath, mean_lipschitz
from gmtool.streams import generator


def measure(
    known: Callable[[], Iterator[FollowedPath]], context: Context
) -> tuple[Measurement, Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`: means over all samples whose paths are given."""
    lengths: list[Tensor] = []
    bends: list[Tensor] = []
    constants: list[Tensor] = []
    stream = generator(context.seed, "trajectories")
    for followed in known():
        lengths.append(followed.path.length())
        bends.append(followed.path.straightness())
        constants.append(mean_lipschitz(followed.field, followed.path, stream))
    return _mean(lengths), _mean(bends), _mean(constants)


def _mean(parts: list[Tensor]) -> Measurement:
    values = torch.cat(parts)
    return Measurement(float(values.mean()), None, len(values), None)
