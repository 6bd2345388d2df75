"""Guidance and saturation: classifier-free and probabilistic guidance of one run, over their scales.

For each scale: precision and recall of the samples, the mean magnitude of their values and the share of saturated ones
(`gmtool.evaluation.metrics.saturation`), mean and standard deviation over sampling seeds. Scales of the two schemes
mean different things, so a second table compares them where they reach the same precision, by linear interpolation
between the scales of each seed. The picture shows recall and saturated share against precision.

    python examples/guidance_study.py                     # trains on the embedded digits first
    python examples/guidance_study.py --run RUN           # any class- or mode-conditional gm-kl run, with its latents
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from digits import budget, prepare, trained

from gmtool.console import ConsoleProgress, print_table
from gmtool.settings import changed, make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample

LEVELS = 4
"""Precisions at which the schemes are compared."""


@dataclass(frozen=True)
class Scheme:
    """A kind of guidance, the solver that carries it, and its scales in rising order."""

    guidance: str
    solver: str
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """The figures of the samples at one scale."""

    precision: float
    recall: float
    magnitude: float
    saturated: float


Curve = dict[float, Point]
"""The points of a scheme from one seed, by scale."""


def measure(run: Path, folder: Path, sampling: SampleConfig, scoring: EvaluateConfig) -> Point:
    """Draw from the run into the folder, and score."""
    sample(run, folder, sampling, ConsoleProgress())
    report = evaluate(folder, scoring, ConsoleProgress())

    def value(metric: str) -> float:
        figure = report.figure(metric)
        assert figure is not None  # a reference of real images gives every figure
        return figure.generated.value

    return Point(value("precision"), value("recall"), value("magnitude"), value("saturated_share"))


def draw_curve(run: Path, folder: Path, scheme: Scheme, sampling: SampleConfig, scoring: EvaluateConfig) -> Curve:
    """The scheme at each scale. Both schemes begin with no guidance: scale 1 of cfg, 0 of prob."""
    curve = {}
    for scale in scheme.scales:
        plain = scale == (1 if scheme.guidance == "cfg" else 0)
        guided = {} if plain else {"guidance": scheme.guidance, "guidance_scale": scale}
        guided = changed(sampling, {"solver": scheme.solver, **guided})
        curve[scale] = measure(run, folder, guided, scoring)
    return curve


def at_precision(curve: Curve, precision: float) -> Point | None:
    """Where the curve, followed from the least scale on, first has this precision; None where it never does."""
    for before, after in itertools.pairwise(curve.values()):
        low, high = sorted((before.precision, after.precision))
        if low <= precision <= high:
            part = 0.0 if low == high else (precision - before.precision) / (after.precision - before.precision)
            pairs = zip(astuple(before), astuple(after), strict=True)
            return Point(*(first + part * (second - first) for first, second in pairs))
    return None


def common_levels(curves: list[Curve]) -> list[float]:
    """Precisions that every curve reaches from no guidance on, evenly spaced; none when there are none."""
    low = max(next(iter(curve.values())).precision for curve in curves)
    high = min(max(point.precision for point in curve.values()) for curve in curves)
    return [] if low > high else [float(level) for level in np.linspace(low, high, LEVELS)]


def summary(values: list[float]) -> str:
    """Mean and standard deviation: '0.912 ±0.004'."""
    return f"{mean(values):.3f}" + (f" ±{stdev(values):.3f}" if len(values) > 1 else "")


def cells(points: list[Point]) -> list[str]:
    """Each figure of the points, over the seeds."""
    return [summary(list(values)) for values in zip(*map(astuple, points), strict=True)]


def report(curves: dict[Scheme, list[Curve]], path: Path) -> None:
    """Print both tables, and draw the picture into ``path``. curves: of each scheme, one per seed."""
    columns = ("precision", "recall", "mean magnitude", "saturated share")
    print_table(
        "by scale",
        ("guidance", "scale", *columns),
        [
            (scheme.guidance, f"{scale:g}", *cells([curve[scale] for curve in group]))
            for scheme, group in curves.items()
            for scale in scheme.scales
        ],
    )
    rows = []
    for level in common_levels([curve for group in curves.values() for curve in group]):
        for scheme, group in curves.items():
            points = [point for curve in group if (point := at_precision(curve, level)) is not None]
            rows.append((f"{level:.3f}", scheme.guidance, *cells(points)[1:]))
    if rows:
        print_table("at equal precision", ("precision", "guidance", *columns[1:]), rows)
    else:
        print("no precision is reached by every curve: give scales that overlap")
    _draw(curves, path)


def _draw(curves: dict[Scheme, list[Curve]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("recall", "saturated"), strict=True):
        axes.set(xlabel="precision", ylabel={"recall": "recall", "saturated": "share of saturated values"}[name])
        for colour, (scheme, group) in zip(("C0", "C1"), curves.items(), strict=True):
            for seed, curve in enumerate(group):
                axes.plot(
                    [point.precision for point in curve.values()],
                    [getattr(point, name) for point in curve.values()],
                    f"{colour}o-",
                    alpha=0.7,
                    label=f"{scheme.guidance}, {scheme.solver}" if seed == 0 else None,
                )
        axes.legend()
    figure.savefig(path, dpi=150)


def scales(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(scale) for scale in text.split(",")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("guidance-study"), help="samples and the picture")
    parser.add_argument("--run", type=Path, help="a trained run instead of one on the digits")
    parser.add_argument("--training-steps", type=int, default=1500, help="of the run on the digits")
    parser.add_argument("--reference", type=Path, help="real images instead of those of the run's latents")
    parser.add_argument("--features", default="tokenizer", help="of precision and recall: tokenizer or inception")
    parser.add_argument("--steps", type=int, default=8, help="evaluations of the network, guidance apart")
    parser.add_argument("--num", type=int, default=1400, help="samples a scale and seed")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds")
    parser.add_argument("--cfg", type=scales, default=scales("1,1.2,1.5,2,4"), help="its scales, 1 being none")
    parser.add_argument("--cfg-solver", default="heun", help="solver of cfg")
    parser.add_argument(
        "--prob", type=scales, default=scales("0,0.03,0.05,0.1,0.2,0.4"), help="its scales, 0 being none"
    )
    parser.add_argument("--prob-solver", default="gm-ode", help="solver of prob")
    parser.add_argument("--decoder", help="of dinov2 latents, as in gmtool sample")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    options = parse()
    run = options.run
    if run is None:
        config = changed(budget(options.training_steps, 0), {"objective": "gm-kl", "source": "gaussian"})
        run = trained(prepare(options.folder, "test"), config)
    drawing = {"steps": options.steps, "num": options.num, "decoder": options.decoder, "device": options.device}
    comparison = {"reference": options.reference, "features": options.features, "device": options.device}
    sampling, scoring = make(SampleConfig, drawing), make(EvaluateConfig, comparison)
    schemes = (Scheme("cfg", options.cfg_solver, options.cfg), Scheme("prob", options.prob_solver, options.prob))
    curves = {
        scheme: [
            draw_curve(run, options.folder / "samples", scheme, changed(sampling, {"seed": seed}), scoring)
            for seed in range(options.seeds)
        ]
        for scheme in schemes
    }
    report(curves, options.folder / "guidance.png")


if __name__ == "__main__":
    main()
