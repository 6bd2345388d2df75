"""What a student imitates: a trained run's mean velocity, guided, for the samples of a training batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import RunFolder
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.flow.coordinates import converted
from gmtool.flow.guidance import ALWAYS
from gmtool.flow.guidance.interval import inside
from gmtool.flow.method import Method
from gmtool.flow.model import Prediction, VelocityModel, velocity_model
from gmtool.flow.path import mean_velocity, per_sample
from gmtool.flow.source import ModeStatistics
from gmtool.flow.times import EARLIEST
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.network import Network
from gmtool.nn.widen import begin_as
from gmtool.sampling.drawing import Drawing
from gmtool.sampling.model import TrainedModel, load_network
from gmtool.sampling.plan import SamplePlan
from gmtool.sampling.sampler import VIEWS, guidance_of
from gmtool.streams import generator
from gmtool.training.checkpoint import REPAIR


@dataclass(frozen=True)
class Teacher:
    """The velocity of a run in the coordinates of its student.

    model: the run's network, and the weaker one of autoguidance. plan: how it is guided. student: the student's method.
    """

    model: TrainedModel
    plan: SamplePlan
    student: Method

    def __call__(self, conditions: Conditions, modes: ModeStatistics | None) -> VelocityModel:
        """The velocity (B, C, H, W), without gradient, for samples with these conditions and statistics of their modes.

        A call of it costs one evaluation, or two where it is guided.
        """
        own = self.velocity(conditions)
        flow, native = self.student.coordinates, self.model.method.coordinates
        velocity = own if flow == native else converted(own, native, flow, modes)

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad():
                predicted = velocity(x_t, t.clamp(min=EARLIEST))
            assert isinstance(predicted, Tensor)
            return predicted

        return model

    def velocity(self, conditions: Conditions) -> VelocityModel:
        """The guided velocity in the teacher's own coordinates."""
        model = self.model
        predict = model.predict(conditions)
        if self.plan.guidance == "none":  # not by way of the data, which loses digits near t = 0
            return velocity_model(predict)
        plain = VIEWS[self.plan.entry.on](predict)
        weaker = None
        if model.weaker is not None:
            weaker = model.weaker.conditioning.given(
                classes=conditions.classes, modes=conditions.modes, mean=conditions.context
            )
        guided = guidance_of(model, self.plan, conditions, weaker)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            unguided = plain(x_t, t)
            u = _velocity(guided(lambda _x, _t: unguided)(x_t, t), x_t, t)
            if self.plan.interval == ALWAYS:
                return u
            return torch.where(per_sample(inside(self.plan.interval, t), x_t), u, _velocity(unguided, x_t, t))

        return velocity


def _velocity(predicted: Tensor | Prediction, x_t: Tensor, t: Tensor) -> Tensor:
    """The mean velocity of what a solver's model gives."""
    return predicted if isinstance(predicted, Tensor) else mean_velocity(x_t, t, predicted.mixture.mean())


@dataclass(frozen=True)
class LoadedTeacher:
    """A run that teaches, its network loaded.

    weights: the file that holds them. plan: how it is guided. student: its student's network.
    """

    run: RunFolder
    weights: Path
    model: TrainedModel
    plan: SamplePlan
    student: Architecture

    def of(self, student: Method) -> Teacher:
        """The teacher of a student with this method."""
        return Teacher(self.model, self.plan, student)

    def begin(self, network: Network, seed: int) -> None:
        """Load a student's first weights into its new network; see `gmtool.nn.widen`.

        Raises UserError when the teacher's file is missing or damaged, ValueError when the networks differ in more than
        their heads.
        """
        stream = generator(seed, "student")
        begin_as(
            network, read_tensors(self.weights, repair=REPAIR), self.run.architecture.head, self.student.head, stream
        )


def teacher_inputs(drawing: Drawing) -> tuple[Input, ...]:
    """What a student is made from, besides data."""
    own = Input("teacher", str(drawing.run.path.absolute()), file_fingerprint(drawing.weights))
    return (own,) if drawing.guide is None else (own, drawing.guide.input)


def load_teacher(
    drawing: Drawing, student: Architecture, device: torch.device, precision: torch.dtype, compiled: bool
) -> LoadedTeacher:
    """Load the networks of a teacher and of its guide. student: the architecture of its student.

    precision: of the networks' arithmetic. Raises UserError when weights are missing, damaged or of another network,
    MachineError when the networks are to be ``compiled`` and there is no compiler.
    """
    run = drawing.run
    network = load_network(run.architecture, drawing.weights, device, compiled)
    weaker = None if drawing.guide is None else drawing.guide.load(device, precision, compiled)
    model = TrainedModel.of(run.method, network, run.statistics(), None, device, precision, weaker)
    model.network.requires_grad_(False)
    return LoadedTeacher(run, drawing.weights, model, drawing.plan, student)
