"""The settings of sampling. They stand apart from what they set because flags are made from them without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gmtool.errors import NoEffect, UserError
from gmtool.flow.guidance import ALWAYS, GUIDANCES, Form, ScaleRange
from gmtool.flow.names import On
from gmtool.flow.solvers import SOLVERS, SolverEntry, names_on
from gmtool.settings import Option, Seed, Settings, flag

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """A grid of times, and how pixels become 8 bits.

    grid: ``module:function`` of a number of intervals and a shift. counts_points: whether --steps counts its points,
    one more than its intervals. truncates: whether pixels are truncated, not rounded. solver: the one that it is
    published with, None where any is meant.
    """

    grid: str
    counts_points: bool
    truncates: bool
    solver: str | None

    def make(self, intervals: int, shift: float) -> Tensor:
        """The times (intervals + 1,) float64, decreasing from 1; shift: s of `gmtool.flow.times.shift_time`."""
        module, name = self.grid.split(":")
        made: Tensor = getattr(import_module(module), name)(intervals, shift)
        return made


PROTOCOLS: Mapping[str, Protocol] = {
    "full": Protocol("gmtool.flow.times:full_grid", counts_points=False, truncates=False, solver=None),
    "rae": Protocol("gmtool.flow.times:rae_grid", counts_points=True, truncates=True, solver="euler"),
}


def _listed(on: On) -> str:
    return ", ".join(names_on(on))


def _with(has: Callable[[SolverEntry], bool]) -> str:
    """The solvers of runs, not of students, that have something."""
    return " and ".join(name for name, row in SOLVERS.items() if has(row) and row.on != "policy")


def _schemes(has: Callable[[Form], bool]) -> str:
    """The guidance schemes that have something, and on which kind of model where they do not on all."""
    named: list[str] = []
    for name, entry in GUIDANCES.items():
        kinds = [on for on, form in entry.forms.items() if has(form)]
        named += [name] if len(kinds) == len(entry.forms) else [f"{name} on a {on}" for on in kinds]
    return ", ".join(named)


def _scales() -> str:
    """The ranges and defaults of --guidance-scale."""

    def line(scale: ScaleRange) -> str:
        return f"{_schemes(lambda form: form.scale == scale)}: {scale}, default {scale.default:g}."

    ranges = dict.fromkeys(form.scale for entry in GUIDANCES.values() for form in entry.forms.values())
    return " ".join(map(line, ranges))


def solver_names() -> tuple[str, ...]:
    """What --solver may be."""
    return tuple(SOLVERS)


def protocol_names() -> tuple[str, ...]:
    """What --protocol may be."""
    return tuple(PROTOCOLS)


def guidance_names() -> tuple[str, ...]:
    """What --guidance may be."""
    return ("none", *GUIDANCES)


STEPS = 8
"""Network evaluations by default."""
FEW = 2
"""Network evaluations up to which a mixture is drawn by gm-sde. In few, the positions of an image choose their
components apart from each other: gm-sde then has a smaller Fréchet distance at one, and at two about the same with 1.4
to 2 times the precision (examples/pictures_study.py).
"""
SECOND_ORDER = 6
"""Network evaluations up to which the default of gm-ode for a union is order 2; in more it is order 1, since order 2
then takes the detail of images away (examples/pictures_study.py: Fréchet distance 16.5 at ten instead of 9.2).
"""
SUBSTEPS_IN_ALL = 128
"""Sub-steps of a whole GM-ODE run by default: GMFlow has 16 at 8 steps, 8 at 16, 4 at 32."""


@dataclass(frozen=True)
class GuidanceSettings(Settings):
    """How a run is guided; a default of None depends on the run."""

    TITLE = "Guidance"

    guidance: Annotated[
        str,
        Option(
            f"none; {'; '.join(f'{name} ({entry.help})' for name, entry in GUIDANCES.items())}.",
            choices=guidance_names,
        ),
    ] = "none"
    guidance_scale: Annotated[
        float | None,
        Option(
            f"Strength of guidance; the least is none. {_scales()}",
            metavar="SCALE",
        ),
    ] = None
    guide: Annotated[
        Path | None,
        Option(
            "The weaker run of --guidance auto, trained on the same latents; its newest EMA is used. Default: none.",
            metavar="RUN",
        ),
    ] = None
    guidance_interval: Annotated[
        str | None,
        Option(
            "Guide only at times in this interval, ends included; 0 is data, 1 is noise. Outside of it the network is "
            "called once per evaluation. Default: all times.",
            metavar="LOW,HIGH",
            holds_commas=True,
        ),
    ] = None
    orthogonal: Annotated[
        float | None,
        Option(
            "Fraction of the guidance direction's component along the mean to project out (for "
            f"{_schemes(lambda form: form.orthogonal)}). Default: 1.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.guidance == "none":
            for name in ("guidance_scale", "guidance_interval", "orthogonal"):
                if getattr(self, name) is not None:
                    schemes = ", ".join(GUIDANCES)
                    raise NoEffect(name, f"{flag(name)} has no effect without --guidance {schemes}: remove it")
        parse_interval(self.guidance_interval)
        weaker = self.guidance != "none" and GUIDANCES[self.guidance].away_from == "weaker"
        if weaker and self.guide is None:
            raise UserError(f"--guidance {self.guidance} needs a weaker run: give its folder by --guide")
        if not weaker and self.guide is not None:
            raise NoEffect("guide", "--guide belongs to --guidance auto")


@dataclass(frozen=True)
class SamplingSettings(GuidanceSettings):
    """Solver, grid and guidance; a default of None depends on the run."""

    TITLE = "Solver and guidance"

    steps: Annotated[
        int | None,
        Option(
            "Network evaluations per sample (train --steps counts optimizer steps); with guidance each calls the "
            f"network twice. Default: {STEPS}; for a student, the number that it was trained for.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    solver: Annotated[
        str | None,
        Option(
            f"For a velocity, or the mean of a mixture: {_listed('velocity')}. For a mixture: {_listed('mixture')}. "
            f"Default: for gm-kl gm-ode, or gm-sde if --steps is at most {FEW}; policy for a student; else euler.",
            choices=solver_names,
        ),
    ] = None
    protocol: Annotated[
        str,
        Option(
            "full: from t = 1 to t = 0. rae: as RAE and MM-FM sample, by default with euler: --steps counts the "
            "points of the grid (50 make 49 evaluations), which ends at t = 0.001 before the shift, and images are "
            "truncated to 8 bits, not rounded.",
            choices=protocol_names,
        ),
    ] = "full"
    order: Annotated[
        int | None,
        Option(
            f"Order of {_with(lambda row: row.order is None)}. Default: 2, or 1 for gm-ode of a union if --steps is "
            f"more than {SECOND_ORDER}.",
            metavar="1|2",
            minimum=1,
            maximum=2,
        ),
    ] = None
    substeps: Annotated[
        int | None,
        Option(
            "Sub-steps per gm-ode step, which need no network evaluation; for a student, their total. Default: about "
            f"{SUBSTEPS_IN_ALL} / steps, as published; 128 for a student.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Option(
            "Temperature of a student's mixtures, except the last one: weights to the power 1 / T, variance times T. "
            "Default: 1.",
            metavar="T",
            minimum=0.01,
            maximum=1.0,
        ),
    ] = None
    renewal: Annotated[
        float | None,
        Option(
            "How much noise a student renews between its evaluations, h of pi-Flow's SDE. 0: none, the ODE; 10: nearly "
            "all. Default: 0.",
            metavar="H",
            minimum=0.0,
        ),
    ] = None
    spectral: Annotated[bool, Option("Draw noise with the spectrum that train --spectral AXES learned (gm-sde).")] = (
        False
    )

    @property
    def evaluations(self) -> int:
        """--steps, or its default for what is no student."""
        return self.steps or STEPS

    def check(self) -> None:
        """See `Settings.check`; what depends on the solver is checked in `gmtool.sampling.plan`."""
        super().check()
        protocol = PROTOCOLS[self.protocol]
        if protocol.counts_points and self.evaluations < 2:
            raise UserError(f"--protocol {self.protocol} counts the points of a grid: use at least --steps 2")
        if self.solver is not None:
            check_solver(self, self.solver)


def check_solver(settings: SamplingSettings, solver: str) -> None:
    """Raise UserError for guidance that a solver cannot use, and its subclass NoEffect for settings without effect."""
    entry, forms = SOLVERS[solver], {} if settings.guidance == "none" else GUIDANCES[settings.guidance].forms
    if forms and entry.on not in forms:
        kind = next(iter(forms))
        raise UserError(
            f"--guidance {settings.guidance} needs a solver of a {kind}: use --solver "
            f"{' or '.join(names_on(kind)[:2])}, not {solver}"
        )
    if settings.order is not None and entry.order is not None:
        raise NoEffect("order", f"--order belongs to {_with(lambda row: row.order is None)}, not to --solver {solver}")
    if settings.substeps is not None and not entry.substeps:
        raise NoEffect("substeps", f"--substeps belongs to {_with(lambda row: row.substeps)}, not to --solver {solver}")
    if settings.spectral and not entry.spectral:
        raise NoEffect("spectral", f"--spectral is how {_with(lambda row: row.spectral)} draws, not --solver {solver}")
    if settings.orthogonal is not None and forms and not forms[entry.on].orthogonal:
        raise NoEffect(
            "orthogonal", f"--orthogonal has no effect on --guidance {settings.guidance} with {solver}: remove it"
        )


def parse_interval(text: str | None) -> tuple[float, float]:
    """The times of ``--guidance-interval``, (low, high); all of [0, 1] for None.

    Raises UserError for a text that is not LOW,HIGH with 0 <= LOW <= HIGH <= 1.
    """
    if text is None:
        return ALWAYS
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--guidance-interval is two times LOW,HIGH, such as 0.2,0.8, not {text!r}") from None
    if not 0 <= low <= high <= 1:
        raise UserError(f"--guidance-interval lies in 0 <= LOW <= HIGH <= 1, not {text}")
    return low, high


@dataclass(frozen=True)
class SelectionSettings(Settings):
    """Number of samples and their labels."""

    TITLE = "Samples"

    num: Annotated[int, Option("Number of images.", metavar="N", minimum=1)] = 1000
    classes: Annotated[
        str | None,
        Option(
            "Class indices or names, separated by commas, used in turn. Default: all.",
            metavar="LIST",
            holds_commas=True,
        ),
    ] = None
    modes: Annotated[
        str | None,
        Option(
            "Indices of modes (fit-gmm --modes is their number), separated by commas, used in turn. Default: drawn "
            "with their frequencies in the data.",
            metavar="LIST",
            holds_commas=True,
        ),
    ] = None
    seed: Seed = 0


@dataclass(frozen=True)
class WeightSettings(Settings):
    """Which weights of a run to sample, and the path of its mixture."""

    TITLE = "Weights"

    checkpoint: Annotated[
        int | None, Option("Step of the checkpoint to use. Default: the newest.", metavar="STEP", minimum=0)
    ] = None
    weights: Annotated[
        Literal["ema", "model"], Option("ema: averaged weights. model: the weights at the checkpoint's step.")
    ] = "ema"
    ema: Annotated[
        str | None,
        Option(
            "Which EMA to use, if the run tracks several: the DECAY given to train --ema, images-N or power-WIDTH. "
            "Default: the first one.",
            metavar="NAME",
        ),
    ] = None
    gmm: Annotated[
        Path | None,
        Option("Mixture of a run with --source gmm. Default: the path used in training.", metavar="FILE"),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.ema is not None and self.weights == "model":
            raise NoEffect("ema", f"--ema {self.ema} has no effect with --weights model: remove one of them")
