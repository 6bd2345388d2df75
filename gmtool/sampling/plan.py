"""The plan of drawing samples: settings with all defaults resolved for the run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.artifacts.method_record import MethodRecord
from gmtool.errors import UserError
from gmtool.flow.guidance import GUIDANCES, Form
from gmtool.flow.solvers import SOLVERS, SolverEntry
from gmtool.sampling.settings import PROTOCOLS, SamplingSettings, check_solver, parse_interval

SUBSTEPS_IN_ALL = 128
"""Sub-steps of a whole GM-ODE run by default: GMFlow has 16 at 8 steps, 8 at 16, 4 at 32."""


@dataclass(frozen=True)
class SamplePlan:
    """How to draw, with all defaults resolved; see `SamplingSettings`. steps: network evaluations."""

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

    @property
    def entry(self) -> SolverEntry:
        """The solver's row."""
        return SOLVERS[self.solver]

    @property
    def truncates(self) -> bool:
        """Whether pixels are truncated to 8 bits, not rounded."""
        return PROTOCOLS[self.protocol].truncates

    def grid(self, intervals: int) -> Tensor:
        """The times (intervals + 1,) that the solver goes through."""
        return PROTOCOLS[self.protocol].make(intervals, self.shift)

    @property
    def words(self) -> str:
        """The plan in a line."""
        substeps = f", {self.substeps} sub-steps" if self.entry.substeps else ""
        guided = "unguided" if self.guidance == "none" else f"{self.guidance} {self.scale:g}"
        return f"{self.solver}, {self.steps} steps, order {self.order}{substeps}, {guided}"


def make_plan(settings: SamplingSettings, method: MethodRecord, spectral: int, seed: int) -> SamplePlan:
    """The plan for a run that learned ``method``; spectral: the axes of its spectrum, 0 for none.

    Raises UserError, naming the flag to change, for what the run cannot do.
    """
    solver = _solver(settings, method)
    _check_run(settings, solver, method, spectral)
    check_solver(settings, solver)
    entry, protocol = SOLVERS[solver], PROTOCOLS[settings.protocol]
    form = None if settings.guidance == "none" else GUIDANCES[settings.guidance].forms[entry.on]
    return SamplePlan(
        solver=solver,
        protocol=settings.protocol,
        steps=settings.steps - 1 if protocol.counts_points else settings.steps,
        order=entry.order or settings.order or 2,
        substeps=(settings.substeps or max(1, round(SUBSTEPS_IN_ALL / settings.steps))) if entry.substeps else 1,
        spectral=settings.spectral,
        guidance=settings.guidance,
        scale=_scale(settings, solver, form),
        orthogonal=1.0 if settings.orthogonal is None else settings.orthogonal,
        interval=parse_interval(settings.guidance_interval),
        shift=method.time_shift,
        seed=seed,
    )


def _solver(settings: SamplingSettings, method: MethodRecord) -> str:
    if settings.solver is not None:
        return settings.solver
    published = PROTOCOLS[settings.protocol].solver
    if published is not None:
        return published
    on_velocity = settings.guidance != "none" and "mixture" not in GUIDANCES[settings.guidance].forms
    return "gm-ode" if method.method.objective.mixture and not on_velocity else "euler"


def _check_run(settings: SamplingSettings, solver: str, method: MethodRecord, spectral: int) -> None:
    """Refuse what the run cannot do."""
    entry = SOLVERS[solver]
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
