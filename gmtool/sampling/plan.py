"""How samples will be drawn: the settings of ``sample`` with nothing left open, checked against the run."""

from __future__ import annotations

from dataclasses import dataclass

from gmtool.errors import UserError
from gmtool.flow.solvers.table import VELOCITY_SOLVERS, SdeSolver
from gmtool.stages.sample.config import (
    MIXTURE_SOLVERS,
    Guidance,
    Protocol,
    SampleConfig,
    Solver,
    check_scale,
    parse_interval,
)
from gmtool.stages.train.config import TrainConfig

SHIFT_SCALE, EXTRAPOLATION_SCALE = 0.04, 1.5
"""Guidance scales where none is given: of prob, GMFlow's best for FID; of the schemes that extrapolate, MM-FM's."""
SUBSTEPS_IN_ALL = 128
"""Sub-steps of a whole GM-ODE run by default: GMFlow takes 16 at 8 steps, 8 at 16, 4 at 32."""


@dataclass(frozen=True)
class Plan:
    """How to draw, with defaults resolved; see `gmtool.stages.sample.config`. steps: network evaluations."""

    solver: Solver
    protocol: Protocol
    steps: int
    order: int
    substeps: int
    spectral: bool
    guidance: Guidance
    scale: float
    orthogonal: float
    interval: tuple[float, float]
    shift: float
    seed: int


def make_plan(config: SampleConfig, run: TrainConfig) -> Plan:
    """Fill in what follows the run's objective, and refuse what the run cannot do.

    Raises UserError that names the flag to change.
    """
    solver = config.solver or ("gm-ode" if run.mixture and config.guidance != "cfg" else "euler")
    if config.protocol == "rae":
        solver = "euler"
    mixture_solver = solver in MIXTURE_SOLVERS
    if not run.mixture and (mixture_solver or config.guidance in ("prob", "prob-weights")):
        wanted = f"--solver {solver}" if mixture_solver else f"--guidance {config.guidance}"
        raise UserError(
            f"{wanted} needs a mixture head: this run was trained with --objective {run.objective}; train with gm-kl"
        )
    if isinstance(VELOCITY_SOLVERS.get(solver), SdeSolver) and run.source == "gmm" and not run.union:
        raise UserError(
            f"--solver {solver} adds noise of a Gaussian source, and this run starts from --source gmm: take a solver "
            "without noise, such as heun or unipc"
        )
    if config.spectral and not run.spectral:
        raise UserError("--spectral needs the spectrum that train --spectral AXES learns: this run has none")
    if config.guidance not in ("none", "auto"):
        _check_hidden(config.guidance, run)
    assert run.time_shift is not None  # a run's config is resolved
    return Plan(
        solver=solver,
        protocol=config.protocol,
        steps=config.steps - 1 if config.protocol == "rae" else config.steps,
        order=(config.order or 2) if mixture_solver else VELOCITY_SOLVERS[solver].order,
        substeps=(config.substeps or max(1, round(SUBSTEPS_IN_ALL / config.steps))) if solver == "gm-ode" else 1,
        spectral=config.spectral,
        guidance=config.guidance,
        scale=_scale(config, solver),
        orthogonal=config.orthogonal,
        interval=parse_interval(config.guidance_interval),
        shift=run.time_shift,
        seed=config.seed,
    )


def _check_hidden(guidance: Guidance, run: TrainConfig) -> None:
    """Refuse guidance by the hidden condition for a run that never saw its condition hidden."""
    if run.condition == "none":
        raise UserError(f"--guidance {guidance} needs a run with conditions: train with --condition class or mode")
    if run.union and run.condition == "mode":
        raise UserError(
            f"--guidance {guidance}: this run's modes are its coordinates and cannot be hidden; train with "
            "--condition class"
        )
    if run.dropout == 0:
        raise UserError(f"--guidance {guidance} needs a run trained with --dropout above 0")


def _scale(config: SampleConfig, solver: Solver) -> float:
    """The guidance scale, 0 without guidance. auto takes the form, and so the range, that suits the solver's model."""
    if config.guidance == "none":
        return 0.0
    shifts = config.guidance == "prob" or (config.guidance == "auto" and solver in MIXTURE_SOLVERS)
    if config.guidance_scale is None:
        return SHIFT_SCALE if shifts else EXTRAPOLATION_SCALE
    check_scale(f"{config.guidance} with {solver}", config.guidance_scale, shifts)
    return config.guidance_scale
