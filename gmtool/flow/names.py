"""Names of the parts of methods and solvers, as flags and manifests have them; nothing heavy is imported for them."""

from __future__ import annotations

from typing import Literal

Objective = Literal["fm", "gm-kl"]
SourceName = Literal["gaussian", "gmm"]
CouplingName = Literal["independent", "mode", "batch-ot"]
TimeDistribution = Literal["logit-normal", "uniform"]
PolicyName = Literal["gm", "dx", "dx-poly"]
Condition = Literal["none", "class", "mode"]
On = Literal["velocity", "mixture", "policy"]
"""The kind of model that a solver integrates; policy: what a student's network predicts, as it is."""
