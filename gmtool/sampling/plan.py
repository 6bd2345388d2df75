"""The plan of drawing samples: settings with all defaults resolved for the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gmtool.artifacts.method_record import MethodRecord, StudentRecord
from gmtool.errors import NoEffect, UserError
from gmtool.flow.guidance import ALWAYS, GUIDANCES, Form
from gmtool.flow.imitation import SUBSTEPS
from gmtool.flow.solvers import SOLVERS, SolverEntry
from gmtool.flow.solvers.base import Draw, Solver, SolverOptions
from gmtool.forecast import Choice
from gmtool.sampling.settings import (
    FEW,
    PROTOCOLS,
    SECOND_ORDER,
    SUBSTEPS_IN_ALL,
    SamplingSettings,
    check_solver,
    parse_interval,
)
from gmtool.settings import flag
from gmtool.words import counted


@dataclass(frozen=True)
class SamplePlan:
    """How to draw, with all defaults resolved; see `SamplingSettings`. steps: network evaluations.

    Samples and sweeps record its fields, by which unfinished ones are known again.
    """

    solver: str
    protocol: str
    steps: int
    order: int
    substeps: int
    spectral: bool
    guidance: str
    scale: float
    orthogonal: float
    interval: tuple[float, float]
    shift: float
    seed: int
    temperature: float = 1.0
    renewal: float = 0.0
    student: StudentRecord | None = None

    @property
    def entry(self) -> SolverEntry:
        """The solver's row."""
        return SOLVERS[self.solver]

    @property
    def truncates(self) -> bool:
        """Whether pixels are truncated to 8 bits, not rounded."""
        return PROTOCOLS[self.protocol].truncates

    def make_solver(self, draw: Draw | None = None) -> Solver[Any, Any]:
        """The solver. draw: how GM-SDE draws from a mixture; None for its own."""
        options = SolverOptions(
            evaluations=self.steps,
            shift=self.shift,
            order=self.order,
            substeps=self.substeps,
            draw=draw,
            policy="gm" if self.student is None else self.student.policy,
            temperature=self.temperature,
            renewal=self.renewal,
        )
        return self.entry.make(options)

    def grid(self, intervals: int) -> Tensor:
        """The times (intervals + 1,) float64 that the solver goes through, decreasing from 1."""
        if self.student is not None:
            return self.student.segments(self.shift).grid()
        return PROTOCOLS[self.protocol].make(intervals, self.shift)

    @property
    def words(self) -> str:
        """The plan in a line."""
        if self.student is not None:
            return f"the student's policy, {counted(self.steps, 'evaluation')}"
        substeps = f", {self.substeps} sub-steps" if self.entry.substeps else ""
        guided = "unguided" if self.guidance == "none" else f"{self.guidance} {self.scale:g}"
        return f"{self.solver}, {counted(self.steps, 'step')}, order {self.order}{substeps}, {guided}"


def make_plan(settings: SamplingSettings, method: MethodRecord, spectral: int, seed: int) -> SamplePlan:
    """The plan for a run that learned ``method``; spectral: the number of axes of its spectrum, 0 for none.

    Raises UserError, naming the flag to change, for what the run cannot do, and its subclass NoEffect for settings that
    change nothing.
    """
    if method.student is not None:
        return _plan_of_student(settings, method, method.student, seed)
    for name in ("temperature", "renewal"):
        if getattr(settings, name) is not None:
            raise NoEffect(name, f"{flag(name)} is of students, which gmtool distill makes: remove it")
    solver = settings.solver or default_solver(settings, method).value
    _check_run(settings, solver, method, spectral)
    check_solver(settings, solver)
    entry, protocol = SOLVERS[solver], PROTOCOLS[settings.protocol]
    form = None if settings.guidance == "none" else GUIDANCES[settings.guidance].forms[entry.on]
    return SamplePlan(
        solver=solver,
        protocol=settings.protocol,
        steps=settings.evaluations - 1 if protocol.counts_points else settings.evaluations,
        order=entry.order or settings.order or int(default_order(settings, method, solver).value),
        substeps=(settings.substeps or max(1, round(SUBSTEPS_IN_ALL / settings.evaluations))) if entry.substeps else 1,
        spectral=settings.spectral,
        guidance=settings.guidance,
        scale=_scale(settings, solver, form),
        orthogonal=1.0 if settings.orthogonal is None else settings.orthogonal,
        interval=parse_interval(settings.guidance_interval),
        shift=method.time_shift,
        seed=seed,
    )


def _plan_of_student(settings: SamplingSettings, method: MethodRecord, student: StudentRecord, seed: int) -> SamplePlan:
    """The plan for a student, which leaves little open. Raises UserError as `make_plan` does."""
    count = student.evaluations
    if settings.steps not in (None, count):
        raise UserError(
            f"--steps {settings.steps}: this student was made for {count}: use --steps {count}, or gmtool distill "
            f"--evaluations {settings.steps}"
        )
    if settings.solver not in (None, "policy"):
        raise UserError(f"--solver {settings.solver}: a student follows its policy: remove the flag")
    if settings.guidance != "none":
        raise UserError(
            f"--guidance {settings.guidance}: a student has learned its teacher's guidance: remove the flag"
        )
    if settings.protocol != "full":
        raise UserError(f"--protocol {settings.protocol}: a student has its own times: remove the flag")
    check_solver(settings, "policy")
    if settings.temperature is not None and student.policy != "gm":
        raise UserError(
            f"--temperature needs a mixture, and this student's policy is {student.policy}: remove it, or use gmtool "
            "distill --policy gm"
        )
    if settings.renewal and not method.starts_gaussian:
        raise UserError("--renewal renews the noise of a Gaussian source, and this student starts from --source gmm")
    return SamplePlan(
        solver="policy",
        protocol=settings.protocol,
        steps=count,
        order=1,
        substeps=settings.substeps or SUBSTEPS,
        spectral=False,
        guidance="none",
        scale=0.0,
        orthogonal=1.0,
        interval=ALWAYS,
        shift=method.time_shift,
        seed=seed,
        temperature=1.0 if settings.temperature is None else settings.temperature,
        renewal=settings.renewal or 0.0,
        student=student,
    )


def default_solver(settings: SamplingSettings, method: MethodRecord) -> Choice:
    """The solver of a run that is no student, where --solver leaves it open, and why."""
    published, guidance = PROTOCOLS[settings.protocol].solver, settings.guidance
    if published is not None:
        return Choice("--solver", published, f"that of --protocol {settings.protocol}")
    if not method.method.objective.mixture:
        return Choice("--solver", "euler", f"{method.objective} learns a velocity")
    if guidance != "none" and "mixture" not in GUIDANCES[guidance].forms:
        return Choice("--solver", "euler", f"--guidance {guidance} acts on a velocity")
    if settings.spectral:
        return Choice("--solver", "gm-sde", "the one that draws with --spectral")
    if settings.substeps is None and settings.evaluations <= FEW:
        return Choice("--solver", "gm-sde", f"at most {FEW} evaluations, at which images by gm-ode are speckled")
    return Choice("--solver", "gm-ode", "the run learned a mixture")


def default_order(settings: SamplingSettings, method: MethodRecord, solver: str) -> Choice:
    """The order of gm-ode or gm-sde where --order leaves it open, and why."""
    if solver == "gm-ode" and method.method.coordinates.by_mode and settings.evaluations > SECOND_ORDER:
        why = f"more than {SECOND_ORDER} evaluations of a union, at which images by order 2 lose detail"
        return Choice("--order", "1", why)
    return Choice("--order", "2", "as published")


def sampling_choices(settings: SamplingSettings, method: MethodRecord) -> tuple[Choice, ...]:
    """The defaults that `make_plan` settles by the run and the number of evaluations, and why."""
    if method.student is not None:
        return ()
    solver = default_solver(settings, method)
    order = default_order(settings, method, settings.solver or solver.value)
    settled = (
        (settings.solver is None, solver),
        (settings.order is None and order.value == "1", order),
    )
    return tuple(choice for was_open, choice in settled if was_open)


def _check_run(settings: SamplingSettings, solver: str, method: MethodRecord, spectral: int) -> None:
    """Refuse what the run cannot do."""
    entry = SOLVERS[solver]
    if entry.on == "policy":
        raise UserError(f"--solver {solver} is that of students, which gmtool distill makes: use another")
    forms = {} if settings.guidance == "none" else GUIDANCES[settings.guidance].forms
    if not method.method.objective.mixture:
        if forms and "velocity" not in forms:
            raise _needs_mixture(f"--guidance {settings.guidance}", method)
        if entry.on == "mixture":
            raise _needs_mixture(f"--solver {solver}", method)
    if entry.noisy and not method.starts_gaussian:
        raise UserError(
            f"--solver {solver} adds noise of a Gaussian source, and this run starts from --source gmm: use a "
            "solver without noise, such as heun or unipc"
        )
    if settings.spectral and not spectral:
        raise UserError("--spectral needs the spectrum that train --spectral AXES learns: this run has none")
    if settings.guidance != "none" and GUIDANCES[settings.guidance].away_from == "hidden":
        _check_hidden(settings.guidance, method)


def _scale(settings: SamplingSettings, solver: str, form: Form | None) -> float:
    """The guidance scale, 0 without guidance; its range is that of the scheme's form on the solver's model."""
    if form is None:
        return 0.0
    scale = form.scale.default if settings.guidance_scale is None else settings.guidance_scale
    if scale not in form.scale:
        raise UserError(f"--guidance-scale of {settings.guidance} with {solver} is {form.scale}, not {scale:g}")
    return scale


def _needs_mixture(what: str, method: MethodRecord) -> UserError:
    return UserError(
        f"{what} needs a mixture head: this run was trained with --objective {method.objective}; train with gm-kl"
    )


def _check_hidden(guidance: str, method: MethodRecord) -> None:
    """Refuse guidance by the hidden condition for a run that never saw its condition hidden."""
    if method.condition == "none":
        raise UserError(f"--guidance {guidance} needs a run with conditions: train with --condition class or mode")
    if method.hides == "none":
        raise UserError(
            f"--guidance {guidance}: this run's modes are its coordinates and cannot be hidden; train with "
            "--condition class"
        )
    if method.dropout == 0:
        raise UserError(f"--guidance {guidance} needs a run trained with --dropout above 0")
