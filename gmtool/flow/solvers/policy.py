"""A student's solver: one network evaluation per step, whose policy is then followed in sub-steps.

With noise that is renewed (h > 0), a step from t to s leads along the policy to an earlier time s' <= s, and from there
back to s by the forward transition: with m = (s alpha_t / (t alpha_s))^(h^2),

    s' = s m / (alpha_s + s m),    x_s = (alpha_s + s m) x_s' + s sqrt(1 - m^2) noise.

h = 0 is the ODE, and h = inf draws all noise anew at s. Source: pi-Flow (ICLR 2026), arXiv 2510.14974, FlowMapSDE.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import Predict
from gmtool.flow.path import forward_transition
from gmtool.flow.policy import POLICIES, Segment, roll_grid
from gmtool.flow.solvers.base import Memoryless, SolverOptions, given
from gmtool.flow.times import expand, raw_time
from gmtool.streams import Noise


def kept_noise(t: float, s: float, renewal: float) -> float:
    """m in [0, 1]: the share of x_s's noise that is that of x_t, for h = ``renewal``; s < t."""
    if not renewal:
        return 1.0
    return float((s * (1 - t) / (t * (1 - s))) ** (renewal**2))


@dataclass(frozen=True)
class PolicySolver(Memoryless[Predict]):
    """See the module. The model is the student's network itself, in the coordinates of the flow.

    policy: its row in `gmtool.flow.policy.POLICIES`. substeps: a unit of raw time. temperature: of all policies but the
    last. renewal: h.
    """

    policy: str = "gm"
    shift: float = 1.0
    substeps: int = 128
    temperature: float = 1.0
    renewal: float = 0.0

    @classmethod
    def configured(cls, options: SolverOptions) -> PolicySolver:
        """See `Solver.configured`."""
        return cls(options.policy, options.shift, options.substeps, options.temperature, options.renewal)

    def step(
        self, model: Predict, x: Tensor, t: float, s: float, _state: None, noise: Noise | None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        kept = kept_noise(t, s, self.renewal)
        aim = s * kept / (1 - s + s * kept)
        raw, raw_end, raw_aim = (raw_time(time, self.shift) for time in (t, s, aim))
        start = expand(raw, x)
        policy = POLICIES[self.policy](model(x, expand(t, x)), x, Segment(start, start - raw_end, self.shift))
        if self.temperature < 1 and s > 0:
            policy = policy.cooled(self.temperature)
        x = policy.roll(x, roll_grid(start, expand(raw_aim, x), self.shift, self.substeps, raw - raw_aim))
        if aim < s:
            x = forward_transition(x, expand(aim, x), expand(s, x), given(noise).normal(x.shape[1:]).to(x))
        return x, None
