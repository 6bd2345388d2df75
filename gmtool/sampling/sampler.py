"""Drawing latents from a trained network: the one place where network, method, guidance and solver meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gmtool.flow.coupling import draw_modes
from gmtool.flow.guidance import GUIDANCES
from gmtool.flow.guidance.interval import within
from gmtool.flow.model import Predict, VelocityModel, mixture_model, velocity_model
from gmtool.flow.names import On
from gmtool.flow.solvers.base import integrate
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import SamplePlan
from gmtool.streams import Noise, SampleNoise

VIEWS: dict[On, Callable[[Predict], Any]] = {
    "velocity": velocity_model,
    "mixture": mixture_model,
    "policy": lambda predict: predict,
}
"""A network as the model of a solver."""


@dataclass(frozen=True)
class SampleStart:
    """What is drawn first for samples.

    conditions: of the network, weaker: of the weaker one if there is one. source_modes: statistics of the modes that
    the noise comes from. x: where the samples begin, (B, C, H, W) at t = 1 in the coordinates of the flow.
    """

    conditions: Conditions
    weaker: Conditions | None
    source_modes: ModeStatistics | None
    x: Tensor


@torch.inference_mode()
def generate(
    model: TrainedModel,
    plan: SamplePlan,
    indices: Sequence[int],
    classes: Tensor,
    modes: Tensor | None = None,
    observe: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Latents (B, C, H, W) float32, not normalised, of the samples ``indices`` with labels ``classes`` (B,) int64.

    Sample i depends on the seed, i, its label and its mode alone. classes: not used by a run without classes. modes:
    the samples' modes (B,) int64; default: drawn. The other random numbers of a sample do not depend on them. observe:
    see `gmtool.flow.solvers.base.integrate`.
    """
    noise = SampleNoise(plan.seed, indices)
    start = draw_start(model, noise, classes, modes)
    draw = model.spectrum.draw if plan.spectral and model.spectrum is not None else None
    solver = plan.make_solver(draw)
    grid = plan.grid(solver.intervals(plan.steps))
    end = integrate(solver, _guided(model, plan, start), start.x, grid, noise, observe)
    return model.statistics.restore(model.method.finish(end, start.source_modes))


def evaluations_of(plan: SamplePlan) -> int:
    """Evaluations of the network for one sample: what the solver asks for, and once more wherever it is guided.

    Counted while the plan's solver integrates a single number; a student's are those that it was made for.
    """
    if plan.student is not None:
        return plan.steps
    asked: list[int] = []
    on = plan.entry.on

    def model(costs: int) -> Any:
        def predict(x_t: Tensor, _: Tensor) -> Tensor | GaussianMixture:
            asked.append(costs)
            point = torch.zeros(1, 1, 1, 1, 1)
            return torch.zeros_like(x_t) if on == "velocity" else GaussianMixture(point, point, point + 1)

        return VIEWS[on](predict)

    solver = plan.make_solver()
    guided = model(1) if plan.guidance == "none" else within(plan.interval, model(2), model(1))
    integrate(solver, guided, torch.zeros(1, 1, 1, 1), plan.grid(solver.intervals(plan.steps)), SampleNoise(0, [0]))
    return sum(asked)


def unguided_field(
    model: TrainedModel, seed: int, indices: Sequence[int], classes: Tensor, modes: Tensor | None = None
) -> tuple[VelocityModel, Tensor]:
    """The unguided flow of samples, in normalised latents: its velocity, and where they begin, (B, C, H, W) at t = 1.

    The arguments are those of `generate`.
    """
    start = draw_start(model, SampleNoise(seed, indices), classes, modes)
    field = model.method.field(model.predict(start.conditions), start.source_modes)
    return field, model.method.finish(start.x, start.source_modes)


def draw_start(model: TrainedModel, noise: Noise, classes: Tensor, chosen: Tensor | None = None) -> SampleStart:
    """What is drawn first for samples with labels ``classes`` (B,) int64.

    chosen: their modes (B,) int64, by default drawn from p(mode | class).
    """
    drawn = _draw_modes(model, noise, classes)
    modes = drawn if chosen is None else chosen
    free = _draw_modes(model, noise, classes) if model.mode_inputs.apart else None
    source_modes, mean = model.mode_inputs.of(modes, free)
    x = model.method.start(noise.normal(model.network.architecture.shape).to(model.device), source_modes)
    weaker = None if model.weaker is None else model.weaker.conditions(classes, modes, mean)
    return SampleStart(model.conditions(classes, modes, mean), weaker, source_modes, x)


def _draw_modes(model: TrainedModel, noise: Noise, classes: Tensor) -> Tensor | None:
    """A mode a sample, (B,) int64, drawn from p(mode | class); None for a run that knows no modes."""
    weights = model.statistics.mode_weights
    if weights is None:
        return None
    rows = weights[classes] if len(weights) > 1 else weights.expand(len(classes), -1)
    every = torch.arange(weights.shape[1]).expand(len(classes), -1)
    return draw_modes(every, rows, noise.uniform(()))


def _guided(model: TrainedModel, plan: SamplePlan, start: SampleStart) -> Any:
    """The model of the plan's solver, guided as the plan says."""
    plain = VIEWS[plan.entry.on](model.method.in_flow(model.predict(start.conditions), start.source_modes))
    if plan.guidance == "none":
        return plain
    return within(plan.interval, guidance_of(model, plan, start.conditions, start.weaker)(plain), plain)


def guidance_of(
    model: TrainedModel, plan: SamplePlan, conditions: Conditions, weaker: Conditions | None
) -> Callable[[Any], Any]:
    """The guidance of the plan: a function of the model of its solver, which it guides at all times.

    conditions, weaker: the samples' conditions for the network, and for the weaker one. Raises ValueError for
    autoguidance without a weaker one.
    """
    entry = GUIDANCES[plan.guidance]
    form = entry.forms[plan.entry.on]
    other = model.predict(model.conditioning.all_hidden(conditions))
    if entry.away_from == "weaker":
        if model.weaker is None or weaker is None:
            raise ValueError("a plan with autoguidance needs a model with a weaker one")
        other = model.weaker.predict(weaker)
    scheme, away_from = form.make(plan.scale, plan.orthogonal), VIEWS[form.other](other)
    return lambda plain: scheme(plain, away_from)
