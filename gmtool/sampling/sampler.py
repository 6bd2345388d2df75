"""Drawing latents from a trained network: the one place where network, source, guidance and solver meet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gmtool.artifacts.run import LatentStatistics
from gmtool.data.mode_statistics import ModeFrames
from gmtool.flow.coupling import draw_modes
from gmtool.flow.guidance.auto import auto_mixture, auto_velocity
from gmtool.flow.guidance.cfg import classifier_free
from gmtool.flow.guidance.interval import within
from gmtool.flow.guidance.probabilistic import probabilistic
from gmtool.flow.guidance.weights import component_weights
from gmtool.flow.path import data_mixture
from gmtool.flow.prediction import MixtureModel, Prediction, VelocityModel, unguided
from gmtool.flow.solvers.mixture import Draw, gm_ode, gm_sde, independent_draw
from gmtool.flow.solvers.table import integrate
from gmtool.flow.solvers.velocity import euler
from gmtool.flow.source import Frame
from gmtool.flow.spectral import spectral_draw
from gmtool.flow.times import RAE_LAST
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.network import Network
from gmtool.sampling.plan import Plan
from gmtool.stages.train.config import TrainConfig
from gmtool.streams import Noise


@dataclass(frozen=True)
class Model:
    """A network ready to draw from.

    frames: the modes' frames, for a mixture source, or to show their means. weaker: what autoguidance leads away from,
    in the same coordinates.
    """

    network: Network
    config: TrainConfig
    statistics: LatentStatistics
    frames: ModeFrames | None
    device: torch.device
    precision: torch.dtype
    weaker: Model | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic of the network."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def predict(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        """The network's velocity, or mixture over the velocity."""
        with self.autocast():
            return self.network(x_t, t, conditions)

    def velocity(self, conditions: Conditions) -> VelocityModel:
        """The network as a velocity model; a mixture over the velocity gives its mean."""

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            predicted = self.predict(x_t, t, conditions)
            return predicted.mean() if isinstance(predicted, GaussianMixture) else predicted

        return model

    def mixture(self, conditions: Conditions) -> MixtureModel:
        """The network as a mixture model."""

        def model(x_t: Tensor, t: Tensor) -> Prediction:
            return unguided(data_mixture(cast(GaussianMixture, self.predict(x_t, t, conditions)), x_t, t))

        return model


@torch.inference_mode()
def generate(model: Model, plan: Plan, indices: Sequence[int], classes: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Latents (B, C, H, W) float32, not normalised, of the samples ``indices`` with labels ``classes`` (B,) int64.

    Sample i depends on the seed, i and its label alone. classes is not read by a run that does not know classes.
    chosen: the samples' modes (B,) int64; default: drawn. The other numbers of a sample do not depend on it.
    """
    noise = Noise(plan.seed, indices)
    modes, frame, start = _draw_source(model, noise, classes, chosen)
    conditions, hidden = _conditions(model, model.frames, classes, modes)
    weaker = None
    if model.weaker is not None:
        weaker = model.weaker.velocity(_conditions(model.weaker, model.frames, classes, modes)[0])
    if frame is not None and not model.config.union:
        start = frame.restore(start)
    if plan.solver == "gm-ode":
        mixture = _guided_mixture(model, plan, conditions, hidden, weaker)
        end = gm_ode(mixture, start, plan.steps, plan.shift, plan.order, plan.substeps)
    elif plan.solver == "gm-sde":
        mixture = _guided_mixture(model, plan, conditions, hidden, weaker)
        end = gm_sde(mixture, start, plan.steps, plan.shift, noise, plan.order, _draw_of(model, plan))
    else:
        velocity = _guided_velocity(model, plan, conditions, hidden, weaker)
        if plan.protocol == "rae":
            end = euler(velocity, start, plan.steps, plan.shift, RAE_LAST)
        else:
            end = integrate(plan.solver, velocity, start, plan.steps, plan.shift, noise)
    if frame is not None and model.config.union:
        end = frame.restore(end)
    return model.statistics.restore(end)


def flow_of(
    model: Model, seed: int, indices: Sequence[int], classes: Tensor, chosen: Tensor | None = None
) -> tuple[VelocityModel, Tensor]:
    """The unguided flow of samples, in normalised latents: its velocity, and where they begin, (B, C, H, W) at t = 1.

    The arguments are those of `generate`. A mixture gives its mean; a union, which flows in its modes' coordinates
    y = (x - mu_k) / s_k, the velocity s_k u(y).
    """
    modes, frame, start = _draw_source(model, Noise(seed, indices), classes, chosen)
    velocity = model.velocity(_conditions(model, model.frames, classes, modes)[0])
    if frame is None:
        return velocity, start
    if not model.config.union:
        return velocity, frame.restore(start)
    return lambda x_t, t: frame.std * velocity(frame.whiten(x_t), t), frame.restore(start)


def _draw_source(
    model: Model, noise: Noise, classes: Tensor, chosen: Tensor | None
) -> tuple[Tensor | None, Frame | None, Tensor]:
    """The samples' modes, the frames that their noise comes from, and standard noise: what a sample draws first."""
    drawn = _draw_modes(model, noise, classes)
    modes = drawn if chosen is None else chosen
    frame = _draw_frame(model, noise, classes, modes)
    return modes, frame, noise.normal(model.network.architecture.shape).to(model.device)


def _draw_of(model: Model, plan: Plan) -> Draw:
    """How gm-sde draws from a mixture."""
    if not plan.spectral:
        return independent_draw
    assert model.network.spectrum is not None  # a plan is spectral only where the run is
    return spectral_draw(model.network.spectrum, model.network.architecture.spectral)


def _draw_modes(model: Model, noise: Noise, classes: Tensor) -> Tensor | None:
    """A mode a sample, (B,) int64, drawn from p(mode | class); None for a run that knows no modes."""
    weights = model.statistics.mode_weights
    if weights is None:
        return None
    rows = weights[classes] if len(weights) > 1 else weights.expand(len(classes), -1)
    every = torch.arange(weights.shape[1]).expand(len(classes), -1)
    return draw_modes(every, rows, noise.uniform(()))


def _draw_frame(model: Model, noise: Noise, classes: Tensor, modes: Tensor | None) -> Frame | None:
    """The frames that noise comes from, as in training: of their own modes, or of modes drawn apart."""
    if model.frames is None or model.config.source != "gmm":
        return None
    if model.config.coupling != "mode":
        modes = _draw_modes(model, noise, classes)
    assert modes is not None  # a run with a mixture source stores their weights
    return model.frames.frame(modes)


def _conditions(
    model: Model, frames: ModeFrames | None, classes: Tensor, modes: Tensor | None
) -> tuple[Conditions, Conditions]:
    """What the network is told, and the same with the condition hidden."""
    architecture, count = model.network.architecture, len(classes)

    def on_device(labels: Tensor | None) -> Tensor | None:
        return None if labels is None else labels.to(model.device)

    def null(label: int) -> Tensor:
        return torch.full((count,), label, device=model.device)

    context = None
    if architecture.context:
        assert frames is not None and modes is not None  # a run that shows the modes' means opens its mixture
        context = frames.frame(modes).mean
    given = Conditions(
        classes=on_device(classes) if architecture.classes else None,
        modes=on_device(modes) if architecture.modes else None,
        context=context,
    )
    if model.config.condition == "class":
        return given, replace(given, classes=null(architecture.classes))
    if model.config.condition == "mode":
        blank = None if context is None else torch.zeros_like(context)
        return given, replace(given, modes=null(architecture.modes), context=blank)
    return given, given


def _guided_velocity(
    model: Model, plan: Plan, conditions: Conditions, hidden: Conditions, weaker: VelocityModel | None
) -> VelocityModel:
    """The network as the guided velocity that the plan asks for."""
    plain = model.velocity(conditions)
    if plan.guidance == "none":
        return plain
    if plan.guidance == "auto":
        assert weaker is not None  # the stage opens the weaker run of a plan with auto
        return within(plan.interval, auto_velocity(plain, weaker, plan.scale), plain)
    return within(plan.interval, classifier_free(plain, model.velocity(hidden), plan.scale), plain)


def _guided_mixture(
    model: Model, plan: Plan, conditions: Conditions, hidden: Conditions, weaker: VelocityModel | None
) -> MixtureModel:
    """The network as the guided mixture that the plan asks for."""
    plain = model.mixture(conditions)
    if plan.guidance == "none":
        return plain
    if plan.guidance == "auto":
        assert weaker is not None  # the stage opens the weaker run of a plan with auto
        return within(plan.interval, auto_mixture(plain, weaker, plan.scale, plan.orthogonal), plain)
    unconditional = model.mixture(hidden)
    if plan.guidance == "prob-weights":
        return within(plan.interval, component_weights(plain, unconditional, plan.scale), plain)
    return within(plan.interval, probabilistic(plain, unconditional, plan.scale, plan.orthogonal), plain)
