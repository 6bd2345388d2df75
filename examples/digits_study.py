"""Both papers and their union on real handwritten digits: the same network, budget and evaluations.

{gaussian, gmm} source x {fm, gm-kl} objective: flow matching, GMFlow, MM-FM and the union, all conditioned on the
class, each trained from several seeds and drawn with 1 ... 50 network evaluations. The score is the Fréchet distance to
397 digits that took no part in training (`digits`), beside that of real training digits. The table holds mean and
standard deviation over the seeds, the picture the same; both also for other numbers of modes. A second table shows how
far samples are from the nearest training digit, since a network that memorised the training digits would score well
too.

    python examples/digits_study.py             # two to three hours on one idle core; may be stopped, and resumes
    python examples/digits_study.py --quick     # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from digits import SAMPLES, Digits, Score, budget, mixture, prepare, score, trained

from gmtool.console import print_table
from gmtool.settings import changed, make
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.train.config import TrainConfig


@dataclass(frozen=True)
class Method:
    """A corner of the study; modes of its source, 0 for a Gaussian one."""

    name: str
    objective: str
    modes: int

    @property
    def label(self) -> str:
        return f"{self.name}, {self.modes} modes" if self.modes else self.name


@dataclass(frozen=True)
class Setting:
    """How much is spent: training steps, images per step, seeds, samples of a score, and the main number of modes.

    draws: the evaluations of each solver, those of a velocity and of a mixture.
    """

    steps: int
    batch: int
    seeds: int
    samples: int
    modes: tuple[int, ...]
    velocity: tuple[tuple[str, tuple[int, ...]], ...]
    mixture: tuple[tuple[str, tuple[int, ...]], ...]


ALL, FEW = (1, 2, 4, 6, 10, 50), (4, 6, 10)
FULL = Setting(
    steps=1500,
    batch=64,
    seeds=3,
    samples=SAMPLES,
    modes=(32, 8, 128),
    velocity=(("euler", ALL), ("heun", FEW)),
    mixture=(("gm-ode", ALL), ("gm-sde", FEW)),
)
QUICK = Setting(
    steps=3,
    batch=16,
    seeds=2,
    samples=100,
    modes=(4,),
    velocity=(("euler", (1, 2)), ("heun", (2,))),
    mixture=(("gm-ode", (1, 2)),),
)


def methods(modes: int) -> tuple[Method, ...]:
    """The methods that start from a mixture of so many modes."""
    return Method("MM-FM", "fm", modes), Method("union", "gm-kl", modes)


def every_method(setting: Setting) -> tuple[Method, ...]:
    """All methods, the four of the main number of modes first."""
    first = (Method("flow matching", "fm", 0), Method("GMFlow", "gm-kl", 0))
    return first + tuple(method for modes in setting.modes for method in methods(modes))


@dataclass(frozen=True)
class Curve:
    """One method under one solver from one seed: the score at each number of evaluations."""

    method: Method
    solver: str
    seed: int
    scores: dict[int, Score]


def training(digits: Digits, method: Method, setting: Setting, seed: int) -> TrainConfig:
    """The settings of a method's run."""
    source = {"source": "gaussian"}
    if method.modes:
        source = {"source": "gmm", "coupling": "mode", "gmm": mixture(digits, method.modes, seed)}
    chosen = {"objective": method.objective, "batch_size": setting.batch, **source}
    return changed(budget(setting.steps, seed), chosen)


def sampler(method: Method, solver: str, count: int, seed: int) -> SampleConfig:
    """The settings of ``count`` samples; the solver of a mixture is of order 2 at every number of evaluations."""
    order = 2 if method.objective == "gm-kl" else None
    return make(SampleConfig, {"solver": solver, "order": order, "num": count, "seed": seed, "device": "cpu"})


def curves(digits: Digits, method: Method, setting: Setting, seed: int) -> list[Curve]:
    """Train one method from one seed and score it under every solver; what has been done is read."""
    run = trained(digits, training(digits, method, setting, seed))
    by_solver = []
    for solver, evaluations in setting.mixture if method.objective == "gm-kl" else setting.velocity:
        sampling = sampler(method, solver, setting.samples, seed)
        scores = {count: score(digits, run, changed(sampling, {"steps": count})) for count in evaluations}
        by_solver.append(Curve(method, solver, seed, scores))
    return by_solver


@dataclass(frozen=True)
class Line:
    """A curve over the seeds: mean and standard deviation at each number of evaluations."""

    label: str
    means: dict[int, float]
    spreads: dict[int, float]


def lines(all_curves: list[Curve], value: Callable[[Score], float]) -> list[Line]:
    """A value of the scores, the curves of the same method and solver put together."""
    groups: dict[tuple[Method, str], list[Curve]] = {}
    for curve in all_curves:
        groups.setdefault((curve.method, curve.solver), []).append(curve)
    result = []
    for (method, solver), group in groups.items():
        values = {count: [value(curve.scores[count]) for curve in group] for count in group[0].scores}
        spreads = {count: stdev(repeats) if len(repeats) > 1 else 0.0 for count, repeats in values.items()}
        result.append(
            Line(f"{method.label}, {solver}", {count: mean(repeats) for count, repeats in values.items()}, spreads)
        )
    return result


def floor(all_curves: list[Curve]) -> float:
    """The score of real training digits, the mean over seeds."""
    return mean(score.floor for curve in all_curves for score in curve.scores.values())


def report(all_curves: list[Curve], path: Path) -> None:
    """Print both tables, and draw the first into ``path``."""
    distances, least = lines(all_curves, lambda score: score.distance), floor(all_curves)
    _print(f"Fréchet distance to held-out digits, by network evaluations (real digits: {least:.2f})", distances)
    newness = lines(all_curves, lambda score: score.newness)
    _print("distance to the nearest training digit (held-out digits: 1, copies: 0)", newness)
    _draw(distances, least, path)


def _print(title: str, rows: list[Line]) -> None:
    evaluations = sorted({count for line in rows for count in line.means})
    print_table(
        title,
        ("method, solver", *map(str, evaluations)),
        [(line.label, *(_cell(line, count) for count in evaluations)) for line in rows],
    )


def _cell(line: Line, count: int) -> str:
    return f"{line.means[count]:.2f} ±{line.spreads[count]:.2f}" if count in line.means else ""


def _draw(rows: list[Line], least: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="network evaluations", ylabel="Fréchet distance to held-out digits"
    )
    for line in rows:
        axes.errorbar(*zip(*line.means.items(), strict=True), line.spreads.values(), label=line.label, capsize=2)
    axes.axhline(least, color="grey", linestyle="dashed", label="real digits")
    ticks = sorted({count for line in rows for count in line.means})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("digits-study"), help="runs, scores and pictures")
    parser.add_argument("--quick", action="store_true", help="a miniature, whose figures mean nothing")
    parser.add_argument("--seeds", type=int, help="seeds instead of three")
    parser.add_argument("--part", choices=("validation", "test"), default="test", help="digits to score on")
    return parser.parse_args()


def main() -> None:
    options = parse()
    setting = QUICK if options.quick else FULL
    setting = replace(setting, seeds=options.seeds or setting.seeds)
    digits = prepare(options.folder, options.part)
    four, others = every_method(setting)[:4], every_method(setting)[4:]
    for name, chosen in (("methods", four), ("modes", (*four, *others))):
        all_curves = [
            curve
            for seed in range(setting.seeds)
            for method in chosen
            for curve in curves(digits, method, setting, seed)
        ]
        report(sorted(all_curves, key=lambda curve: chosen.index(curve.method)), options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
