"""A method: a source, a coupling, coordinates and an objective, put together. Training and sampling use the same one.

           source     coupling      coordinates   objective          papers
fm         N(0, I)    independent   x             least squares      flow matching
gmflow     N(0, I)    independent   x             transition NLL     GMFlow (ICML 2025)
mm_fm      mixture    mode          x             least squares      MM-FM (CVPR 2026)
union      N(0, I)    mode          whitened      transition NLL     both: GMFlow in each mode's whitened coordinates
student    those of its teacher                   imitation          pi-Flow (ICLR 2026)

A training step, and a sample of B latents (C, H, W):

    draws = method.draw(B, (C, H, W), generator)
    loss = method.loss(predict, method.pair(x, draws.noise, modes), draws)

    x = integrate(GmOde(order=2, substeps=16), method.model(predict), method.start(noise, modes), full_grid(8, shift))
    x = method.finish(x, modes)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from gmtool.flow.coordinates import Coordinates, Plain, Whitened, converted
from gmtool.flow.coupling import BatchOT, Coupling, Independent, ModeCoupling
from gmtool.flow.imitation import Imitation
from gmtool.flow.model import MixtureModel, Predict, VelocityModel, mixture_model, velocity_model
from gmtool.flow.names import Objective as Objectives
from gmtool.flow.objective import Draws, FlowMatching, Objective, Pairs, TransitionNLL
from gmtool.flow.source import GaussianSource, MixtureSource, ModeStatistics, Source
from gmtool.flow.spectral import Spectrum
from gmtool.flow.times import TrainingTimes


@dataclass(frozen=True)
class Method:
    """The path from data to source, and what a network learns of it.

    source: in the coordinates of the flow. times: the distribution of training times. native: the coordinates of the
    network's inputs and outputs, where they are not those of the flow; see `in_flow`.
    """

    source: Source
    coupling: Coupling
    coordinates: Coordinates
    objective: Objective[Any]
    times: TrainingTimes = TrainingTimes()
    native: Coordinates | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for parts that do not go together."""
        if self.objective.transitions and not self.source.gaussian:
            raise ValueError("the transition loss needs a Gaussian source: whiten the coordinates of a mixture's modes")
        if self.objective.transitions and self.coupling.whole_batch:
            raise ValueError("the transition loss draws x_t from x_s: its noise cannot be permuted within the batch")
        if self.coordinates.by_mode and not self.coupling.own_mode:
            raise ValueError("coordinates that depend on the mode need the data's own mode: use mode coupling")

    @property
    def uses_modes(self) -> bool:
        """Whether `pair`, `start` and `finish` need the statistics of the samples' modes."""
        return self.coordinates.by_mode or self.source.by_mode

    def draw(self, count: int, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """The random numbers of ``count`` samples of a shape (C, *S), all from ``generator`` and on its device.

        step: of training, from 0.
        """
        t = self.times.draw(count, generator)
        noise = torch.randn(count, *shape, generator=generator, device=generator.device)
        return self.objective.draw(Draws(t, noise), generator, step)

    def pair(self, x: Tensor, noise: Tensor, modes: ModeStatistics | None = None) -> Pairs:
        """Data x and source points z, both (B, C, *S) in the coordinates of the flow, as the coupling pairs them.

        noise (B, C, *S): standard normal. modes: those that the noise comes from, under mode coupling the data's own.
        """
        y = self.coordinates.enter(x, modes)
        return Pairs(y, self.coupling.pair(y, self.source.draw(noise, modes)))

    def loss(self, predict: Predict, pairs: Pairs, draws: Draws) -> Tensor:
        """The loss of each sample, (B,) float32. predict: the network with the samples' conditions."""
        return self.objective.loss(predict, pairs, draws)

    def taught(self, teacher: VelocityModel) -> Method:
        """The method of a student whose teacher has this velocity, in the coordinates of the flow.

        Raises TypeError for a method that has no teacher.
        """
        if not isinstance(self.objective, Imitation):
            raise TypeError("only a student has a teacher")
        return replace(self, objective=self.objective.taught(teacher))

    def in_flow(self, predict: Predict, modes: ModeStatistics | None = None) -> Predict:
        """A network in the coordinates of the flow: itself, unless its own are others (`native`)."""
        return predict if self.native is None else converted(predict, self.native, self.coordinates, modes)

    def model(self, predict: Predict) -> VelocityModel | MixtureModel:
        """What solvers integrate: a model of the velocity, or of the mixture over the data, by objective."""
        return mixture_model(predict) if self.objective.mixture else velocity_model(predict)

    def start(self, noise: Tensor, modes: ModeStatistics | None = None) -> Tensor:
        """Source points at t = 1, in the coordinates of the flow, of standard normal noise (B, C, *S)."""
        return self.source.draw(noise, modes)

    def finish(self, y: Tensor, modes: ModeStatistics | None = None) -> Tensor:
        """Normalised latents (B, C, *S) of points in the coordinates of the flow."""
        return self.coordinates.leave(y, modes)

    def field(self, predict: Predict, modes: ModeStatistics | None = None) -> VelocityModel:
        """The flow's mean velocity dx/dt at (x, t) in normalised latents, whatever the coordinates of the flow."""
        velocity = velocity_model(predict)

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            u = velocity(self.coordinates.enter(x_t, modes), t)
            return self.coordinates.leave_velocity(u, modes)

        return model


def fm(times: TrainingTimes = TrainingTimes(), coupling: Coupling = Independent()) -> Method:
    """Flow matching from a Gaussian source."""
    return Method(GaussianSource(), coupling, Plain(), FlowMatching(), times)


def gmflow(ratio: float = 0.5, spectrum: Spectrum | None = None, times: TrainingTimes = TrainingTimes()) -> Method:
    """GMFlow: the network's output is a mixture over the velocity. ratio: lambda of the transition loss."""
    return Method(GaussianSource(), Independent(), Plain(), TransitionNLL(ratio, spectrum), times)


def mm_fm(times: TrainingTimes = TrainingTimes(), coupling: Coupling = ModeCoupling()) -> Method:
    """MM-FM: flow matching from a mixture fitted to the data, each sample coupled with noise from its own mode."""
    return Method(MixtureSource(), coupling, Plain(), FlowMatching(), times)


def union(ratio: float = 0.5, spectrum: Spectrum | None = None, times: TrainingTimes = TrainingTimes()) -> Method:
    """GMFlow from a mixture source: in the coordinates that each mode whitens, its source is N(0, I)."""
    return Method(GaussianSource(), ModeCoupling(), Whitened(), TransitionNLL(ratio, spectrum), times)


def student(teacher: Method, objective: Imitation, whitened: bool = False) -> Method:
    """The method of a student of few evaluations: its teacher's, with another objective (pi-Flow, ICLR 2026).

    whitened: let the flow of a teacher that starts from a mixture run in each mode's whitened coordinates, while the
    network, which starts from the teacher's weights, keeps the teacher's coordinates.
    """
    times = TrainingTimes("uniform", objective.segments.shift)
    if not whitened or teacher.coordinates.by_mode:
        return replace(teacher, objective=objective, times=times)
    return Method(GaussianSource(), teacher.coupling, Whitened(), objective, times, native=teacher.coordinates)


SOURCES: Mapping[str, Source] = {"gaussian": GaussianSource(), "gmm": MixtureSource()}
COUPLINGS: Mapping[str, Coupling] = {"independent": Independent(), "mode": ModeCoupling(), "batch-ot": BatchOT()}
"""Sources and couplings by their names in flags and manifests."""


def method_of(
    objective: str,
    source: str,
    coupling: str,
    ratio: float | None = 0.5,
    spectrum: Spectrum | None = None,
    times: TrainingTimes = TrainingTimes(),
) -> Method:
    """The method with the given names, as in flags and manifests: objective ``fm`` or ``gm-kl``, a source, a coupling.

    ratio: lambda of gm-kl; fm has none. Raises ValueError for unknown names and for parts that do not go together.
    """
    if objective not in get_args(Objectives) or source not in SOURCES or coupling not in COUPLINGS:
        raise ValueError(f"no method has objective {objective}, source {source} and coupling {coupling}")
    coordinates = coordinates_of(objective, source)
    start = GaussianSource() if coordinates.by_mode else SOURCES[source]
    if objective == "fm":
        return Method(start, COUPLINGS[coupling], coordinates, FlowMatching(), times)
    if ratio is None:
        raise ValueError("gm-kl needs a transition ratio")
    return Method(start, COUPLINGS[coupling], coordinates, TransitionNLL(ratio, spectrum), times)


def coordinates_of(objective: str, source: str) -> Coordinates:
    """The coordinates of a method's flow, by its names: gm-kl whitens a mixture's modes, which makes them N(0, I)."""
    return Whitened() if objective == "gm-kl" and source == "gmm" else Plain()
