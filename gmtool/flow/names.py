"""Names of a method's parts, as flags and manifests have them; nothing heavy is imported for them."""

from __future__ import annotations

from typing import Literal

Objective = Literal["fm", "gm-kl"]
SourceName = Literal["gaussian", "gmm"]
CouplingName = Literal["independent", "mode", "batch-ot"]
TimeDistribution = Literal["logit-normal", "uniform"]
PolicyName = Literal["gm", "dx", "dx-poly"]
Condition = Literal["none", "class", "mode"]
